"""Errors that DFS-RL raises for bad input and foreseeable faults.

A command prints such an error as one sentence and exits with code 2; any other exception is a bug
and keeps its traceback.
"""


class DfsRlError(Exception):
    """Base of all errors of DFS-RL; the text is one sentence for the user."""


class ConfigError(DfsRlError, ValueError):
    """Invalid setting; the text names the setting, its value and the allowed values."""


class DataError(DfsRlError):
    """Data set that cannot be found, read or used."""


class CheckpointError(DfsRlError):
    """Stored backbone, gate or training state that is missing, damaged or does not fit."""


class RunFolderError(DfsRlError):
    """Run folder that cannot be created, resumed or read."""


class BusyError(RunFolderError):
    """Run folder that another process is writing to."""


class HubError(DfsRlError):
    """Repository on the Hugging Face hub that cannot be read or written."""


class TrainingError(DfsRlError):
    """Training that cannot continue, for example because the loss is no longer finite."""


def wrong_type(name: str, value: object, allowed: str) -> ConfigError:
    """Return the error of an argument of a wrong type; ``allowed`` ends its sentence."""
    plain = value is None or isinstance(value, str | int | float)
    shown = repr(value) if plain else f"of type {type(value).__name__}"  # networks are long
    return ConfigError(f"{name} is {shown}; allowed {allowed}.")
