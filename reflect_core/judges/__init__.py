"""Judges by name, address or folder: who judges, reflects and rewrites prompts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..types import UserError
from ..vlm.keys import shown
from .judge import Actors, Judge

__all__ = ["Actors", "JUDGES", "Judge", "find_judge"]

JUDGES = {"shapes": (".builtin", "ShapesJudge"), "me": (".builtin", "PersonJudge"), "none": (".builtin", "NoJudge"),
          "server": (".server", "ServerJudge"), "local": (".local", "LocalJudge"),
          **dict.fromkeys(("clip-score", "pick-score", "aesthetic", "image-verifier"), (".reward", "RewardJudge")),
          "ensemble": (".several", "EnsembleJudge"), "audited": (".several", "AuditedJudge")}
"""Where each is; the first three need no options."""


def find_judge(name: Any, options: dict[str, Any] | None = None) -> Judge:
    """The judge of that name; of an address (http...), the model behind it; of a folder, the model in it.

    `name` may also be what `Judge.settings` made, from a record, or a judge itself. UserError for one that there is
    not, or options that it does not have.
    """
    if isinstance(name, Judge):
        return name
    if isinstance(name, dict):
        name, options = name.get("name"), {**_mapping(name.get("options")), **_mapping(options)}
    options = _mapping(options)
    if isinstance(name, str) and name.lower().startswith(("http:", "https:")):
        name, options = "server", {"url": name, **options}
    elif isinstance(name, str) and name not in JUDGES and Path(name).expanduser().is_dir():
        name, options = "local", {"folder": str(Path(name).expanduser().absolute()), **options}
    if name not in list(JUDGES):  # A list: a damaged record may name anything, also what has no hash.
        name = shown(name) if isinstance(name, str) else name
        raise UserError(f"there is no judge {name!r}; expected shapes, me, none, the address of an OpenAI-compatible "
                        "server such as http://127.0.0.1:1234/v1, the folder of a language model that sees pictures, "
                        f"or one of {', '.join(list(JUDGES)[5:-1])}")
    module, kind = JUDGES[name]
    cls = getattr(import_module(module, __package__), kind)
    if kind == "RewardJudge":
        return cls(name, options)
    if name in ("server", "local", "ensemble", "audited"):
        return cls(options)
    if options:
        raise UserError(f"the judge {name!r} has no option {sorted(options)[0]!r}; expected none")
    return cls()


def _mapping(options: Any) -> dict[str, Any]:
    if not isinstance(options, dict | None):
        raise UserError(f"the options of a judge are {options!r}; expected names and values")
    return dict(options or {})
