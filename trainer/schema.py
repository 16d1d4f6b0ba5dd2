"""A dataclass from what YAML read: every key and type is checked, and the nearest known key is named."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from reflect_core.types import UserError

T = TypeVar("T")


def parse(kind: type[T], raw: Any, prefix: str = "") -> T:
    """The dataclass `kind` from what YAML read, with every key and type checked.

    `prefix` is what stands before a key in messages, such as `model.`.
    """
    if not isinstance(raw, dict):
        raise UserError(f"{prefix.rstrip('.')} is {raw!r}; expected `key: value` lines below it")
    known = {f.name: f for f in fields(kind)}
    hints = typing.get_type_hints(kind)
    for key, value in raw.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(sorted(known))}"
            raise UserError(f"unknown key {prefix}{key}; {hint}")
        if not _fits(value, hints[key]):
            raise UserError(f"{prefix}{key} is {value!r}; expected {_named(hints[key])}"
                            + _float_hint(value))
    for name, f in known.items():
        if name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise UserError(f"the key {prefix}{name} is missing; expected {_named(hints[name])}")
    return kind(**raw)


def filled(kind: type, raw: dict[str, Any]) -> dict[str, Any]:
    """`raw` in the order of the dataclass's keys, with the default of every one that it lacks. What is required and
    missing stays out; what is unknown comes last."""
    full = {}
    for f in fields(kind):
        if f.name in raw:
            full[f.name] = raw[f.name]
        elif f.default is not MISSING or f.default_factory is not MISSING:
            full[f.name] = f.default_factory() if f.default is MISSING else f.default
    return full | {key: value for key, value in raw.items() if key not in full}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of YAML is of the annotated type; a whole number also passes for a float."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, args[0]) and _fits(v, args[1]) for k, v in value.items())
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_named(option) for option in args)
    if origin is list:
        return "a list, each " + _named(args[0])
    if origin is dict:
        return "`key: value` lines below it"
    return names.get(hint, str(hint))


def _float_hint(value: Any) -> str:
    try:
        float(value if isinstance(value, str) else "-")
    except ValueError:
        return ""
    return " (YAML reads 1e-3 as text: write 1.0e-3)"
