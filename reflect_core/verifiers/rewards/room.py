"""Running out of memory in a judge, as an error that says what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...generators.memory import is_out_of_memory
from ...types import UserError


@contextmanager
def enough_room(what: str, cure: str) -> Iterator[None]:
    """UserError, with what to try, where the block runs out of memory; other errors pass."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"not enough memory for {what}; expected room for it; try {cure}") from error
