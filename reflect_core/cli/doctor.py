"""`reflect doctor`: what is here, what is missing, and whether the judge answers."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from .. import doctor as look
from ..judges import find_judge
from ..presets.roots import find_roots
from ..text import readable
from ..types import UserError
from . import NOT_ACCEPTED
from .output import dumps
from .settings import named_values

MARKS = {True: "ok", None: "--", False: "!!"}


def doctor(args: argparse.Namespace) -> int:
    """`reflect doctor`: 0 if all that was looked at works, 3 if something does not."""
    options = named_values(args.judge_options, "--judge-option")
    if args.judge == "me":
        raise UserError("the judge 'me' is you; expected one that can be asked, such as the address of a server")
    who = None if args.judge is None else find_judge(args.judge, options)
    if who is None and options:
        raise UserError("got --judge-option without --judge; expected both")
    parts = {"environment": look.environment(), "models": look.models(find_roots(args.roots))}
    if who is not None:
        parts["judge"] = look.judge(who, args.prompt)
    if args.json:
        print(dumps({name: [asdict(one) for one in found] for name, found in parts.items()}))
    else:
        print("\n\n".join(_table(name, found) for name, found in parts.items()))
    return NOT_ACCEPTED if any(one.good is False for found in parts.values() for one in found) else 0


def _table(name: str, found: list[look.Finding]) -> str:
    width = max(len(one.name) for one in found)
    return "\n".join([name, *(f"  {MARKS[one.good]} {one.name:{width}}  {readable(one.said)}" for one in found)])
