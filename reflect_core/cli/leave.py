"""Ctrl+C while torch and its relatives are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def leave_at_once() -> Iterator[None]:
    """While heavy libraries are imported, Ctrl+C ends the process on the spot, with exit code 130.

    An exception in the middle of their C++ start-up aborts the interpreter, now or at its end. There is
    nothing to clean up yet. A process that was told to ignore it, by `nohup` or a shell's `&`, ignores it.
    """
    ignored = signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None)
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
