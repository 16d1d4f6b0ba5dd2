"""Checks that the settings of several tasks share."""

from __future__ import annotations

from typing import Any

from reflect_core.types import UserError


def at_least(section: Any, prefix: str, least: float, *names: str) -> None:
    for name in names:
        value = getattr(section, name)
        if value is not None and value < least:
            raise UserError(f"{prefix}{name} is {value}; expected at least {least:g}")


def share(section: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(section, name) <= 1:
            raise UserError(f"model.{name} is {getattr(section, name)}; expected a share from 0 to 1")


def check_tasks(weights: dict[str, float] | None, key: str) -> None:
    from reflect_core.shapes.sample import TASKS

    for name, weight in (weights or {}).items():
        if name not in TASKS:
            raise UserError(f"{key}: there is no task {name!r}; expected some of {', '.join(TASKS)}")
        if weight < 0:
            raise UserError(f"{key}.{name} is {weight}; expected at least 0")
