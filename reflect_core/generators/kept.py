"""What was made once and is asked for again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Kept:
    """The latest results of a function by key, oldest use forgotten first."""

    def __init__(self, size: int):
        self.size = size
        self.values: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> tuple[Any, bool]:
        """(value, whether it was made anew)."""
        new = key not in self.values
        value = make() if new else self.values[key]
        self.values[key] = value
        self.values.move_to_end(key)
        while len(self.values) > self.size:
            self.values.popitem(last=False)
        return value, new
