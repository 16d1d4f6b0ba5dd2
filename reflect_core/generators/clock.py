"""How long something takes, also on an accelerator that works on after a call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


class Stopwatch:
    """Adds up the seconds of the blocks that it is entered for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds += time.perf_counter() - self._start


def seconds_of(work: Callable[[], None], device: str) -> float:
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start
