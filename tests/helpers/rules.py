"""Rules that stop by predicted gains."""

from dfs_rl.gating.rules import GainModel


def confident_gains(n_classes: int, unlike: float = 0.05) -> tuple[GainModel, GainModel]:
    """Return two models whose certainty is the confidence, but for up to about ``unlike``."""

    def model(*others: float) -> GainModel:
        offsets = (1.0 + (unlike if i % 2 else -unlike) for i in range(n_classes))
        return GainModel(weights=(-1.0, *(unlike * w for w in others)), offsets=tuple(offsets))

    return model(0.4, -0.2, 0.6, -0.4, 0.2), model(-0.4, 0.2, 0.2, 0.4, -0.2)
