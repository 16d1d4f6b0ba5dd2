"""Who judges, reflects, refines and audits, as the arguments or a record say: one for the first three, or others."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..judges import Actors, Judge, find_judge
from ..types import Request, UserError
from ..verifiers.rewards import Audited
from .settings import named_values

ROLES = ("judge", "reflector", "refiner", "audit")


class Judges:
    """`by_role`: the judge, a reflector and refiner where those are others, and an audit where there is one."""

    def __init__(self, by_role: dict[str, Judge]) -> None:
        self.by_role = by_role

    @classmethod
    def of(cls, args: argparse.Namespace) -> Judges:
        """UserError for one that there is not."""
        found = {}
        for role in ROLES:
            who, options = getattr(args, role), named_values(getattr(args, f"{role}_options"), f"--{role}-option")
            if who is not None:
                found[role] = find_judge(who, options)
            elif options:
                raise UserError(f"got --{role}-option without --{role}; expected both")
        if isinstance(args.reflector, str) and args.reflector == "me":
            raise UserError("the reflector is 'me', who cannot be asked for that alone; try --judge me")
        return cls(found)

    @classmethod
    def recorded(cls, settings: dict[str, Any], args: argparse.Namespace) -> Judges:
        """Those of a record, with the options that are other ones now."""
        known = {"judge": settings.get("judge", "shapes"), **{role: settings[role] for role in ROLES[1:]
                                                             if role in settings}}
        found = {}
        for role in ROLES:
            changed = named_values(getattr(args, f"{role}_options"), f"--{role}-option")
            if role in known:
                found[role] = find_judge(known[role], changed or None)
            elif changed:
                raise UserError(f"got --{role}-option, and the run has no {role} of its own")
        return cls(found)

    def check_prompt(self, prompt: str) -> None:
        for judge in self.by_role.values():
            judge.check_prompt(prompt)

    def check(self, request: Request) -> None:
        for judge in self.by_role.values():
            judge.check(request)

    def suit(self, policy: str, scripts: str | None = None) -> None:
        """Have it speak as the model learned it, where nobody said how."""
        for judge in self.by_role.values():
            judge.suit(policy, scripts)

    def prepare(self, prompt: str) -> list[str]:
        """What the user should know of them, a line each. UserError where one cannot work."""
        told = []
        for role, judge in self.by_role.items():
            told += judge.prepare(prompt) if role in ("judge", "audit") else judge.connect(judges=False)
        return told

    def close(self) -> None:
        for judge in self.by_role.values():
            judge.close()

    def actors(self, folder: Path) -> Actors:
        actors = {role: judge.actors(folder) for role, judge in self.by_role.items()}
        judge = actors["judge"]
        verifier = Audited(judge.verifier, actors["audit"].verifier) if "audit" in actors else judge.verifier
        return Actors(verifier, actors.get("reflector", judge).reflector, actors.get("refiner", judge).refiner)

    def settings(self, prompt: str) -> dict[str, Any]:
        """For a record."""
        return {role: judge.settings(prompt) for role, judge in self.by_role.items()}
