"""How long something takes, also on an accelerator that works on after a call returns."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds_of(work: Callable[[], None], device: str) -> float:
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if str(device).startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start
