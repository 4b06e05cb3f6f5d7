"""Stop requests by Ctrl-C and SIGTERM, which long work checks at safe points."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Flag that a stop signal sets."""

    requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C within the block into a stop request; a second one interrupts as usual.

    Only the main thread receives signals; in other threads the request is never made.
    """
    request = StopRequest()
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        del number, frame
        request.requested = True
        signal.signal(signal.SIGINT, before)

    with _handling(signal.SIGINT, note):
        yield request


@contextmanager
def sigterm_as_interrupt() -> Iterator[StopRequest]:
    """Handle SIGTERM like Ctrl-C within the block.

    Batch systems and containers end jobs with SIGTERM, which sets the request. Outside the main
    thread its handling does not change.
    """
    request = StopRequest()

    def pass_on(number: int, frame: FrameType | None) -> None:
        request.requested = True
        take_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(take_interrupt):  # background jobs of a shell ignore Ctrl-C
            take_interrupt = signal.default_int_handler
        take_interrupt(number, frame)

    with _handling(signal.SIGTERM, pass_on):
        yield request


@contextmanager
def _handling(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Install a signal handler for the block; does nothing outside the main thread."""
    try:
        previous = signal.signal(number, handler)
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, previous)
