"""Configuration of ``train_exits``."""

from dfs_rl.errors import ConfigError
from dfs_rl.experiments.config import RunConfig
from dfs_rl.utils.config import Seed, configuration


@configuration
class TrainExitsConfig(RunConfig):
    """Settings of ``train_exits``.

    Attributes:
        after: Numbers of gated layers before the exits, ascending: 1 3 makes two exits, before the
            second and the fourth layer. Leave it out with --resume.
        seed: Seed of the augmentation and of the bits that the heads are fitted under.
    """

    after: tuple[int, ...]
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.after:
            raise ConfigError("after is empty; allowed are one or more numbers of gated layers.")
