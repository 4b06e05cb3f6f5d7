"""What commands tell the user while they work."""

import sys


def print_status(text: str) -> None:
    """Tell the user, at once."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
