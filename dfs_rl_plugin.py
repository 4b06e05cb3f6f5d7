"""Makes Gymnasium know DFS-RL's environments as soon as it is imported.

Gymnasium 1.0 gave up loading plugins from entry points. ``dfs_rl_plugin.pth`` imports this module
when Python starts, and it waits for ``import gymnasium``. Every start of Python pays for it, so it
imports nothing that Python has not loaded already.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the name that type checkers know, without the cost of importing typing
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class GymnasiumWatcher:
    """A finder that finds nothing itself, and adds a step to the import of ``gymnasium``."""

    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        """Let the other finders find ``gymnasium``; register the environments once it has run."""
        if name != "gymnasium":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def register() -> None:
    """Register the environments, unless a package of another project stands before ``envs``."""
    try:
        from envs.registration import register_envs
    except ImportError:
        return
    register_envs()


def watch() -> None:
    """Wait for ``gymnasium``, or register at once where it is imported already."""
    if "gymnasium" in sys.modules:
        register()
    elif not any(isinstance(finder, GymnasiumWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, GymnasiumWatcher())
