"""Checks of values from outside, for requests and for the options of every family."""

from __future__ import annotations

import math

from ..types import UserError


def is_number(value: object) -> bool:
    """Whether it is a finite int or float, and not a bool, which Python counts among the ints."""
    return is_whole(value) or isinstance(value, float) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """UserError unless an option is one of these."""
    if value not in choices:
        raise UserError(f"option {name} is {value!r}; expected {' or '.join(map(repr, choices))}")


def check_device(flag: str, device: object) -> None:
    """UserError if torch cannot use a device. None is none."""
    import torch

    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: a build without CUDA
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the device {device!r} cannot be used ({said}); try {flag}cpu") from None
