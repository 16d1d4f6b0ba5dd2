"""A transformer's blocks through torch.compile: each kind of block is compiled once and serves all blocks of its kind.

The first picture of each shape (size, batch, with or without context) waits for the compiler; the numbers are equal up
to rounding. torch compiles a few shapes (eight, if nothing else is configured) and runs further ones as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..types import UserError
from .places import Places

Run = Callable[..., Any]
"""Called with a function of a block, the block and the function's other arguments; returns what the function does."""


def directly(function: Callable, *arguments: Any) -> Any:
    """A `Run` that changes nothing."""
    return function(*arguments)


def check_compile(compiles: bool, quantise: str) -> None:
    """UserError for weights in fp8: each layer's cast ends what can be compiled together, and nothing is gained."""
    if compiles and quantise == "fp8":
        raise UserError("option compile is true and option quantise is 'fp8', whose casts cannot be compiled; expected "
                        "one of them; try quantise=nf4 with it")


class Compiled:
    """A `Run`. UserError where torch cannot compile."""

    def __init__(self, places: Places, backend: str = "inductor") -> None:
        self.places, self.backend = places, backend
        self.functions: dict[Callable, Callable] = {}

    def __call__(self, function: Callable, block: nn.Module, *arguments: Any) -> Any:
        if function not in self.functions:
            self.functions[function] = torch.compile(function, backend=self.backend)
        # Hooks of layers are not part of what is compiled, so a block that is streamed is asked for here.
        self.places.arrive(block)
        try:
            return self.functions[function](block, *arguments)
        except torch._dynamo.exc.TorchDynamoException as error:
            said = " ".join(str(error).split())[:300] or type(error).__name__
            raise UserError(f"option compile: torch cannot compile a block here ({said}); expected a C++ compiler, and "
                            "on CUDA Triton; try compile=false") from error
