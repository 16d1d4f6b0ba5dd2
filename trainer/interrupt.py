"""Ctrl+C and SIGTERM that never leave a state half changed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers and containers send it: whatever saves on Ctrl+C saves on this too."""


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`, unless this process was told to ignore it."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def held() -> Iterator[None]:
    """Within the block Ctrl+C and SIGTERM wait; they take effect when it ends. Blocks may be nested."""
    # One manager for each signal: should the second come while the first is put back, it is put back all the same.
    with _held(signal.SIGINT), _held(signal.SIGTERM):
        yield


@contextmanager
def _held(number: signal.Signals) -> Iterator[None]:
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # no signal comes here, or none is listened to
        return
    pressed = []
    signal.signal(number, lambda *frame: pressed.append(frame))
    try:
        yield
    finally:
        signal.signal(number, before)
    if pressed:
        before(*pressed[0])
