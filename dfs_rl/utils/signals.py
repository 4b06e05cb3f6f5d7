"""Ctrl-C as a request that long work grants at its next safe point, so that nothing is lost or half-done; SIGTERM likewise."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the user asked to stop.

    Attributes:
        requested: True from the first Ctrl-C on.
    """

    def __init__(self) -> None:
        self.requested = False


@contextmanager
def stop_on_interrupt() -> Iterator[StopRequest]:
    """Turn the first Ctrl-C within the block into a request; a second one interrupts as usual.

    Outside the main thread, which alone receives signals, the request is never made.
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
    """Have SIGTERM, with which batch systems and containers end their jobs, do within the block what Ctrl-C does.

    Outside the main thread it does what it did before.

    Yields:
        Whether it came.
    """
    request = StopRequest()

    def pass_on(number: int, frame: FrameType | None) -> None:
        request.requested = True
        take_interrupt = signal.getsignal(signal.SIGINT)
        if not callable(take_interrupt):  # a shell's background jobs ignore Ctrl-C
            take_interrupt = signal.default_int_handler
        take_interrupt(number, frame)

    with _handling(signal.SIGTERM, pass_on):
        yield request


@contextmanager
def _handling(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Handle a signal in the block, if this is the main thread."""
    try:
        previous = signal.signal(number, handler)
    except ValueError:  # another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(number, previous)
