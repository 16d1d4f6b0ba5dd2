"""Where the parts of a model compute: where they lie, or where somebody who manages memory puts them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

Manager = Callable[[str, int], "torch.device | str"]
"""(a part's name, pixels that it works on at once) -> the device that it computes on, the part loaded there."""


class Places:
    """Asked for a part before it is used. An object of its own, so that a model that nobody wants any more is freed at
    once: the encoders hold this, and not the generator that holds them."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        self.parts = parts
        self.manager: Manager | None = None
        """Set by a memory manager; it loads the part (and with 'transformer' the LoRA)."""
        self.arrive: Callable[[nn.Module], None] = _is_there
        """Set by one that streams blocks; called with a block that computes without its layers' hooks."""
        self.rest: Callable[[], None] = _stays
        """Set by one that makes room for others; called when the model has drawn or judged, see `turn`."""

    def __call__(self, name: str, pixels: int = 0) -> torch.device | str:
        if self.manager is not None:
            return self.manager(name, pixels)
        return next(self.parts[name].parameters()).device

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The model draws or judges; whoever needs the room has it when the block ends, however that is."""
        try:
            yield
        finally:
            self.rest()

    def now(self, name: str) -> torch.device | None:
        """Where a part lies at this moment; None if it lies in several places, and cannot compute as it is."""
        devices = {parameter.device for parameter in self.parts[name].parameters()}
        return devices.pop() if len(devices) == 1 else None


def _stays() -> None:
    """Where nobody else needs the room."""


def _is_there(block: nn.Module) -> None:
    """With its part, where blocks are not streamed."""
