"""From arguments to policy, budget, request and output folder: all that can be checked without a model."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..presets.choice import ModelChoice, from_settings
from ..presets.roots import find_roots
from ..search import Budget, Policy, policy_from_json
from ..search.record import LINES
from ..search.registry import policy_for
from ..types import Request, UserError
from .help import PICTURES
from .output import PAGE, TREE, resume_command
from .person import LOOK

MOST_STEPS, MOST_PIXELS = 1000, 16_384
"""No model has a use for more; a typing mistake has, and would end in an error of the machine's memory."""


def named_values(pairs: Sequence[str], flag: str) -> dict[str, Any]:
    """`NAME=VALUE` arguments; values are JSON where they read as JSON, else text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{flag} {pair!r}; expected NAME=VALUE, e.g. {flag} "
                            f"{'text_join=search' if flag == '--option' else 'parents=last'}")
        try:
            values[name.strip()] = json.loads(text)
        except ValueError:
            values[name.strip()] = text
    return values


def named_paths(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` arguments of --part."""
    paths = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not name.strip() or not path.strip():
            raise UserError(f"--part {pair!r}; expected NAME=PATH, e.g. --part vae=ae.safetensors")
        paths[name.strip()] = path
    return paths


def make_choice(args: argparse.Namespace, options: dict[str, Any]) -> ModelChoice:
    """The one model that the arguments name."""
    return ModelChoice(args.model, args.lora, args.device, args.dtype, options, named_paths(args.parts),
                       find_roots(getattr(args, "roots", None)))


def moved_choice(args: argparse.Namespace, settings: Any) -> ModelChoice:
    """The model of a record, or where the arguments say that it is now."""
    return from_settings(settings, args.model, args.lora, args.device, named_paths(args.parts), find_roots(args.roots),
                         named_values(args.options, "--option"))


def make_budget(args: argparse.Namespace) -> Budget:
    pictures = args.pictures
    if pictures is None and args.policy != "official":
        pictures = PICTURES
    return Budget(pictures, args.evaluations, args.judge_calls, args.seconds)


def make_policy(name: str, pictures: int | None, settings: dict[str, Any], own: str, edits: bool = False) -> Policy:
    """The policy for so many pictures (None: `official`, which has a number of its own); `own`: that of the model's
    paper; `edits`: it is an editor."""
    policy = policy_for(name, pictures, own, edits)
    if getattr(policy, "patience", None) and settings.get("parents", "chain") != "chain" and "patience" not in settings:
        settings = {**settings, "patience": None}  # an editor's own goes with chains alone
    return policy_from_json({**policy.to_json(), **settings}) if settings else policy


def make_request(args: argparse.Namespace, defaults: dict[str, Any]) -> Request:
    """What the arguments say, and the model's defaults for what they do not."""
    values = {k: v for k, v in defaults.items() if k in ("width", "height", "steps", "guidance")}
    values |= {k: v for k in ("steps", "guidance") if (v := getattr(args, k)) is not None}
    if args.size is not None:
        values["width"], values["height"] = _size(args.size)
    request = Request(args.prompt, args.seed, **values)
    for name, most in (("steps", MOST_STEPS), ("width", MOST_PIXELS), ("height", MOST_PIXELS)):
        if getattr(request, name) > most:
            raise UserError(f"{name} is {getattr(request, name)}; expected {most:,} at most; try without "
                            f"{'--steps' if name == 'steps' else '--size'}, for what the model has by default")
    return request


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    if not match:
        raise UserError(f"the size is {text!r}; expected a number of pixels such as 64, or 64x64")
    return int(match[1]), int(match[2] or match[1])


def choose_folder(prompt: str, runs: Path = Path("runs")) -> Path:
    """A new folder below `runs`: the time and what is drawn."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].strip("-")
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{slug}".strip("-")
    folder, number = runs / name, 1
    while folder.exists():
        number += 1
        folder = runs / f"{name}-{number}"
    return folder


def check_folder(folder: Path) -> None:
    """UserError if a record cannot be started there, or would write over something. Leaves no trace."""
    try:
        _check_folder(folder)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        # A name that is too long, a folder that may not be looked into, a zero byte.
        raise UserError(f"the output folder {folder} cannot be made ({error}); try another --out") from error


def _check_folder(folder: Path) -> None:
    if (folder / LINES).exists():
        raise UserError(f"{folder} already holds a record; try '{resume_command(folder)}', or another --out")
    for name in (TREE, PAGE, LOOK):
        if (folder / name).exists():
            raise UserError(f"the output folder {folder} already holds {name}, which a run writes; expected an empty "
                            "or a new folder; try another --out")
    at = folder.absolute()
    while not at.exists():
        at = at.parent
    if not at.is_dir():
        raise UserError(f"the output folder {folder} cannot be made: {at} is a file; expected a folder; try another "
                        "--out")
    if not os.access(at, os.W_OK | os.X_OK):
        raise UserError(f"the output folder {folder} cannot be written: no right to write to {at}; try another --out")


def check_writable(path: Path, flag: str) -> None:
    """Before hours of work: UserError if a file cannot be written there in the end. Leaves no trace."""
    why = ""
    try:
        at = path.absolute()
        if at.is_dir():
            why = "it is a folder"
        while not at.exists():
            at = at.parent
        if at != path.absolute() and not at.is_dir():
            why = f"{at} is a file"
        elif not os.access(at, os.W_OK):
            why = f"no right to write to {at}"
    except (OSError, ValueError) as error:
        why = str(error)
    if why:
        raise UserError(f"{path} cannot be written ({why}); try another {flag}")
