"""Messages and results of commands."""

import sys


def print_status(text: str) -> None:
    """Write a line to stderr and flush it."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def print_result(text: str) -> None:
    """Write text to stdout and flush it."""
    sys.stdout.write(text)
    sys.stdout.flush()
