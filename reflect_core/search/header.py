"""The first line of a record: everything that a resume or a replay needs besides the actors themselves.

There is no place in it for keys: those belong to the actors. The official
runs keep their settings in a configuration file somewhere else, if at all (spec 4.6).
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from .. import __version__
from ..types import Request, UserError
from . import codec
from .budget import Budget

FORMAT = 1


def versions_here() -> dict[str, str]:
    """Versions of what can change a picture's bits, without importing any of it."""
    found = {"reflect": __version__, "python": platform.python_version()}
    for name in ("torch", "diffusers", "transformers", "peft", "pillow", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Header:
    """See the module."""

    request: Request
    """The user's prompt, the run's seed, size, steps and guidance."""
    policy: dict[str, Any]
    """`policy.to_json()`."""
    budget: Budget = Budget()
    chunk: int = 4
    """Requests for one generator call."""
    model: str = ""
    """Name of the model set, for people."""
    fingerprint: str = ""
    """Hash of weights and configuration, made by the caller; a resume with another is refused."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What else the caller needs to set the actors up again (names, not secrets)."""
    versions: dict[str, str] = field(default_factory=versions_here)
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    format: int = FORMAT


_SECRET = re.compile(r"api[-_ ]?key|secret|password|authorization|token$", re.IGNORECASE)
"""Names of settings that hold one; `max_tokens` and the like are none."""


def header_to_json(header: Header) -> dict[str, Any]:
    """UserError if the settings hold something that is called like a secret."""
    refuse_secrets([header.settings, header.policy])
    return {"line": "header", **codec.flat_to_json(header), "request": codec.request_to_json(header.request),
            "budget": header.budget.to_json()}


def header_from_json(data: Any) -> Header:
    data = dict(codec.mapping(data, "the header"))
    if data.pop("line", None) != "header":
        raise UserError("the first line is not a header")
    if data.get("format") != FORMAT:
        raise UserError(f"format {data.get('format')!r}; expected {FORMAT}; try another version of Reflect")
    for name in ("policy", "settings", "versions"):
        codec.mapping(data.get(name, {}), f"the header's {name}")
    return codec.flat_from_json(Header, data, request=codec.request_from_json(data.get("request")),
                                budget=Budget.from_json(data.get("budget")))


def refuse_secrets(settings: Any) -> None:
    """UserError if something in the settings, however deep, is called like a secret."""
    for name in _names(settings):
        if _SECRET.search(name):
            raise UserError(f"the setting {name!r} looks like a secret; records are shared and must hold "
                            "none; try to give it to the actor by an environment variable")


def _names(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        yield from map(str, data)
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ()
    for value in inner:
        yield from _names(value)
