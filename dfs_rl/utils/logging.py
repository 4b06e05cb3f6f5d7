"""Status messages of commands."""

import sys


def print_status(text: str) -> None:
    """Write a line to stderr and flush it."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
