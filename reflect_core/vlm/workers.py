"""Several things at once, their results in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T, R = TypeVar("T"), TypeVar("R")
LOOK = 0.05
"""Seconds between two looks at whether somebody wants to stop."""


def in_order(items: Sequence[T], do: Callable[[T, threading.Event], R], workers: int,
             on_wait: Callable[[], Any] | None = None, results: list[R | None] | None = None) -> list[R]:
    """`do(item, stop)` of each, at most `workers` at a time; the results in the order of the items.

    The first error, of `do` or of `on_wait` (called every now and then in the calling thread; it may raise to
    cancel), sets `stop`, begins nothing more and is raised. What is then under way is left to itself: a server that
    does not answer must not hold up Ctrl+C. `results`: a list to be filled, for who wants what there was by then.
    """
    results = [] if results is None else results
    results[:] = [None] * len(items)
    errors: list[BaseException] = []
    left, lock, stop = iter(enumerate(items)), threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                at, item = next(left, (None, None))
            if at is None:
                return
            try:
                results[at] = do(item, stop)
            except BaseException as error:  # raised again in the calling thread
                errors.append(error)
                stop.set()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not errors:
                thread.join(LOOK)
                if on_wait is not None:
                    on_wait()
    except BaseException:
        stop.set()
        raise
    if errors:
        raise errors[0]
    return results
