"""Several judges as one: their scores averaged, or one that selects and another that audits.

An option of one of them is `MEMBER.NAME`, with the member's name as its scores have it: `server-2.url`. So a record's
ensemble can be taken up again where one of its members is somewhere else now, as one judge can.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..types import UserError
from ..verifiers.rewards import Audited, Ensemble
from .judge import Actors, Judge
from .reward import RewardJudge


class Several(Judge):
    """`members` by name. To be derived from."""

    members: dict[str, Judge]

    def _members(self, of: list[tuple[str | None, Any, Any]], changes: dict[str, dict[str, Any]]) -> None:
        """Make `members`, of (name or None for the judge's own, judge, options) each, with what is other of them.
        UserError for a change of none of them."""
        from . import find_judge

        self.members = {}
        for name, who, options in of:
            judge = find_judge(who, options)
            name = _unused(judge.name, self.members) if name is None else name
            if name in changes:
                judge = find_judge(who, {**(options or {}), **changes[name]})
            self.members[name] = judge
        if strange := sorted(set(changes) - set(self.members)):
            raise UserError(f"the judge {self.name!r} has no member {strange[0]!r} to have the option "
                            f"{next(iter(changes[strange[0]]))!r}; expected one of {', '.join(self.members)}")

    def check_prompt(self, prompt: str) -> None:
        for judge in self.members.values():
            judge.check_prompt(prompt)

    def check(self, request) -> None:
        for judge in self.members.values():
            judge.check(request)

    def suit(self, policy: str, scripts: str | None = None) -> None:
        for judge in self.members.values():
            judge.suit(policy, scripts)

    def connect(self, judges: bool = True) -> list[str]:
        return [line for judge in self.members.values() for line in judge.connect(judges)]

    def prepare(self, prompt: str) -> list[str]:
        return [line for judge in self.members.values() for line in judge.prepare(prompt)]

    def wait_with(self, on_wait) -> None:
        for judge in self.members.values():
            judge.wait_with(on_wait)

    def close(self) -> None:
        for judge in self.members.values():
            judge.close()


class EnsembleJudge(Several):
    """Several judges whose scores are averaged. `options`: `members`, a list of objects with `judge` (as for
    `find_judge`), `options` and `weight`; and mode, threshold and missing as of `Ensemble`.

    The first member that has words reflects and rewrites.
    """

    name = "ensemble"

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, changes = _own(options)
        members = self.options.get("members")
        if not isinstance(members, list) or len(members) < 2 or not all(isinstance(m, dict) for m in members):
            raise UserError(f"the judge 'ensemble' has members {members!r}; expected a list of two or more such as "
                            '[{"judge": "clip-score", "options": {"folder": "..."}, "weight": 2}, ...]')
        for member in members:
            if strange := sorted(set(member) - {"judge", "options", "weight"}):
                raise UserError(f"a member of the judge 'ensemble' has {strange[0]!r}; expected judge, options and "
                                "weight")
        self._members([(None, member.get("judge"), member.get("options")) for member in members], changes)
        if unknown := sorted(set(self.options) - {"members", "mode", "threshold", "missing"}):
            raise UserError(f"the judge 'ensemble' has no option {unknown[0]!r}; expected members, mode, threshold or "
                            f"missing, or one of a member: {_dotted(self.members, unknown[0])}")
        self.weights = {name: member.get("weight", 1.0) for name, member in zip(self.members, members)}
        shared: dict[Any, Any] = {}
        for judge in self.members.values():
            if isinstance(judge, RewardJudge):
                judge.shared = shared

    def actors(self, folder: Path | None = None) -> Actors:
        from ..reflectors import SilentReflector

        found = {name: judge.actors(folder) for name, judge in self.members.items()}
        chosen = {key: self.options[key] for key in ("mode", "threshold", "missing") if key in self.options}
        verifier = Ensemble({name: one.verifier for name, one in found.items()}, self.weights, **chosen)
        speaker = next((one for one in found.values() if not isinstance(one.reflector, SilentReflector)), None)
        return Actors(verifier, SilentReflector()) if speaker is None else \
            Actors(verifier, speaker.reflector, speaker.refiner)

    def settings(self, prompt: str | None = None) -> dict[str, Any]:
        members = [{"judge": judge.settings(prompt), "weight": self.weights[name]}
                   for name, judge in self.members.items()]
        return {"name": self.name, "options": {**self.options, "members": members}}


class AuditedJudge(Several):
    """One judge, and another that looks too and has no say. `options`: `judge` and `audit`, as for `find_judge`."""

    name = "audited"

    def __init__(self, options: dict[str, Any]) -> None:
        own, changes = _own(options)
        roles = ("judge", "audit")
        if unknown := sorted(set(own) - set(roles)):
            raise UserError(f"the judge 'audited' has no option {unknown[0]!r}; expected judge and audit, or one of "
                            f"theirs: {_dotted(roles, unknown[0])}")
        if missing := [role for role in roles if role not in own]:
            raise UserError(f"the judge 'audited' lacks the option {missing[0]!r}; expected judge and audit")
        self._members([(role, own[role], None) for role in roles], changes)

    def actors(self, folder: Path | None = None) -> Actors:
        judge, audit = (one.actors(folder) for one in self.members.values())
        return Actors(Audited(judge.verifier, audit.verifier), judge.reflector, judge.refiner)

    def settings(self, prompt: str | None = None) -> dict[str, Any]:
        return {"name": self.name, "options": {name: one.settings(prompt) for name, one in self.members.items()}}


def _own(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Options of the whole, and those that are said of members, by member."""
    own: dict[str, Any] = {}
    changes: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        member, dot, name = key.partition(".")
        if dot:
            changes.setdefault(member, {})[name] = value
        else:
            own[key] = value
    return own, changes


def _dotted(members: Iterable[str], option: str) -> str:
    return ", ".join(f"{member}.{option}" for member in members)


def _unused(name: str, taken: dict[str, Judge]) -> str:
    number = 1
    while (said := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return said
