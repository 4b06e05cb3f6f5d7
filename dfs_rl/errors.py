"""The one family of errors that DFS-RL raises on purpose.

A command prints such an error as one sentence and exits with code 2; any other exception is a bug
and keeps its traceback.
"""


class DfsRlError(Exception):
    """Base of every error raised for bad input or a foreseeable fault; its text is one sentence for the user."""


class ConfigError(DfsRlError, ValueError):
    """A setting has a value that is not allowed; the text names the setting, the value and what is allowed."""


class DataError(DfsRlError):
    """A data set cannot be found, read or used."""


class CheckpointError(DfsRlError):
    """A stored backbone, gate or training state is missing, damaged or does not fit."""


class RunFolderError(DfsRlError):
    """A run folder cannot be created, resumed or read."""


class BusyError(RunFolderError):
    """Another process is writing to a run folder."""


class TrainingError(DfsRlError):
    """Training cannot go on, for example because the loss is no longer finite."""
