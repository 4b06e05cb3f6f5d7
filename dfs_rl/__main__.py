"""Program ``dfs-rl``, also ``python -m dfs_rl``: run a command by its name."""

import sys
from collections.abc import Sequence
from importlib import import_module

from dfs_rl import __version__
from dfs_rl.utils.cli import EXIT_BAD_INPUT
from dfs_rl.utils.logging import print_status

COMMANDS = {
    "train-backbone": "train a supernet: one network that works at every bit option",
    "train-exits": "fit exits to a trained backbone, where an image may leave it",
    "train-agent": "train a gate by reinforcement learning",
    "train-gumbel": "train a gate by supervision: Gumbel-softmax, DFS, SkipNet or BlockDrop",
    "train-static": "search a static bit table",
    "train-cascade": "tune rules over several passes, such as a cascade",
    "evaluate": "evaluate a run on its test split, with every baseline",
    "compare": "compare gates with each other and with their baselines",
    "sweep": "search settings of a training",
    "export": "write a trained gate with its network into a file",
    "profile": "measure the time of each part of a network on this machine",
}
_HELP = "\n".join(
    (
        "usage: dfs-rl COMMAND [OPTIONS], dfs-rl COMMAND --help or dfs-rl --version\n",
        *(f"  {name:16}{line}" for name, line in COMMANDS.items()),
    )
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    name, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "--version"):
        sys.stdout.write(f"dfs-rl {__version__}\n" if name == "--version" else f"{_HELP}\n")
        return 0
    if name.replace("_", "-") not in COMMANDS:
        print_status(f"error: {name!r} is no command; allowed are {', '.join(COMMANDS)}.")
        return EXIT_BAD_INPUT
    code: int = import_module(f"dfs_rl.{name.replace('-', '_')}").main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
