"""Policies by name, for records and the command line: a plain dict, nothing to register with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..types import UserError
from . import codec
from .best_of_n import BestOfN
from .noise_prompt import NoisePromptScaling
from .policy import Policy
from .reflect_dit import ReflectDiTSearch
from .reflection_flow import EDITING, OFFICIAL_OPTIONS, ReflectionFlow

POLICIES: dict[str, type[Policy]] = {p.name: p for p in (BestOfN, NoisePromptScaling, ReflectionFlow, ReflectDiTSearch)}

OFFICIAL = "official"
"""The name of a model's own search as its authors' script has it, with their number of pictures."""
_OFFICIAL = {ReflectionFlow.name: (ReflectionFlow.official, OFFICIAL_OPTIONS), ReflectDiTSearch.name: (
    ReflectDiTSearch.official, {})}


def policy_for(name: str, pictures: int | None, own: str = ReflectionFlow.name, edits: bool = False) -> Policy:
    """A policy for so many pictures. `own`: that of the model's paper, which `official` is as published.

    `edits`: the model is an editor, the depth of whose pictures is bounded, in the official search too. UserError for
    a name that there is not, and for `official` of a model that corrects nothing.
    """
    if name == OFFICIAL:
        policy = _official(own)[0]()
        return replace(policy, max_depth=EDITING["max_depth"]) if edits else policy
    if name not in POLICIES:
        raise UserError(f"there is no policy {name!r}; expected one of {', '.join([*POLICIES, OFFICIAL])}")
    if edits and name == ReflectDiTSearch.name:
        raise UserError(f"the policy {name!r} shows a model several pictures, and an editor takes one; expected "
                        f"{ReflectionFlow.name}, {BestOfN.name} or {NoisePromptScaling.name}")
    return POLICIES[name].for_budget(pictures, **(EDITING if edits and name == ReflectionFlow.name else {}))


def official_options(own: str, edits: bool = False) -> dict[str, Any]:
    """Options of the generator that go with `official`; an editor has none. UserError as of `policy_for`."""
    options = dict(_official(own)[1])
    return {} if edits else options


def _official(own: str) -> tuple[Callable[[], Policy], dict[str, Any]]:
    if own not in _OFFICIAL:
        raise UserError("'official' is the search of a paper, and this model corrects nothing; expected a model with a "
                        f"corrector; try another policy, such as {BestOfN.name}")
    return _OFFICIAL[own]


def policy_from_json(data: Any) -> Policy:
    """The policy of `{"name": ..., setting: value, ...}`; settings left out take their defaults.

    UserError for an unknown name or setting, or a value out of range.
    """
    settings = dict(codec.mapping(data, "a policy"))
    name = settings.pop("name", None)
    if name not in POLICIES:
        raise UserError(f"unknown policy {name!r}; expected one of {', '.join(POLICIES)}")
    return codec.flat_from_json(POLICIES[name], settings)
