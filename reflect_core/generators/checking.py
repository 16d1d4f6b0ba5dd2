"""Checks of values from outside, for requests and for the options of every family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from ..types import UserError

LOADING = ("encoder_device", "offload", "quantise")
"""Options of all families that are about a machine: how a model is loaded there, and not how it draws."""
OFFLOADS = ("none", "component", "layers")
"""See `offload.py`."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""'auto': float32 on a CPU, else bfloat16."""
Options = TypeVar("Options")


def is_number(value: object) -> bool:
    """Whether it is a finite int or float, and not a bool, which Python counts among the ints."""
    return is_whole(value) or isinstance(value, float) and math.isfinite(value)


def is_whole(value: object) -> bool:
    """Whether it is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def options_of(kind: type[Options], who: str, path: object, options: Options | None, folder: Mapping[str, Any],
               changes: Mapping[str, Any], loading: tuple[str, ...] = LOADING) -> Options:
    """All options of a model: `options`, or those of its folder's reflect.json, with the changes on top.

    Args:
        kind: the family's dataclass of options; who: what an error calls the family.
        loading: what else can be said where the model is loaded.

    UserError for an option that there is not, and for one in a reflect.json that is about a machine.
    """
    own = {} if options is not None else folder
    if elsewhere := sorted(set(own) & set(LOADING)):
        raise UserError(f"{path}: its reflect.json has the option {elsewhere[0]!r}, which is about a machine and not "
                        "about the model; expected it where the model is loaded; try --option "
                        f"{elsewhere[0]}={own[elsewhere[0]]}")
    known, settings = {f.name for f in fields(kind)}, {**own, **changes}
    if unknown := sorted(set(settings) - known):
        raise UserError(f"{path}: {who} has no option {unknown[0]!r}; expected one of "
                        f"{', '.join(sorted(known | set(loading)))}")
    return replace(kind() if options is None else options, **settings)


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """UserError unless an option is one of these."""
    if value not in choices:
        raise UserError(f"option {name} is {value!r}; expected {' or '.join(map(repr, choices))}")


def check_finite(image: Any) -> None:
    """UserError if a picture's numbers (a tensor) are none: they would become a black picture that nobody explains."""
    if not bool(image.isfinite().all()):
        raise UserError(f"the model drew no numbers: in {str(image.dtype).removeprefix('torch.')} they grew too large; "
                        "expected a picture; try dtype=bfloat16 or float32")


def check_device(flag: str, device: object) -> None:
    """UserError if torch cannot use a device. None is none."""
    import torch

    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: a build without CUDA
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"the device {device!r} cannot be used ({said}); try {flag}cpu") from None
