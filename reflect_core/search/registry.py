"""Policies by name, for records and the command line: a plain dict, nothing to register with."""

from __future__ import annotations

from typing import Any

from ..types import UserError
from . import codec
from .best_of_n import BestOfN
from .noise_prompt import NoisePromptScaling
from .policy import Policy
from .reflect_dit import ReflectDiTSearch
from .reflection_flow import ReflectionFlow

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (BestOfN, NoisePromptScaling, ReflectionFlow, ReflectDiTSearch)}

OFFICIAL = "official"
"""The name of ReflectionFlow as published, which has a number of pictures of its own."""


def policy_for(name: str, pictures: int | None) -> Policy:
    """A policy for so many pictures. UserError for a name that there is not."""
    if name == OFFICIAL:
        return ReflectionFlow.official()
    if name not in POLICIES:
        raise UserError(f"there is no policy {name!r}; expected one of {', '.join([*POLICIES, OFFICIAL])}")
    return POLICIES[name].for_budget(pictures)


def policy_from_json(data: Any) -> Policy:
    """The policy of `{"name": ..., setting: value, ...}`; settings left out take their defaults.

    UserError for an unknown name or setting, or a value out of range.
    """
    settings = dict(codec.mapping(data, "a policy"))
    name = settings.pop("name", None)
    if name not in POLICIES:
        raise UserError(f"unknown policy {name!r}; expected one of {', '.join(POLICIES)}")
    return codec.flat_from_json(POLICIES[name], settings)
