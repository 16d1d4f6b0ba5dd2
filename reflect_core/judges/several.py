"""Several judges as one: their scores averaged, or one that selects and another that audits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import UserError
from ..verifiers.rewards import Audited, Ensemble
from .judge import Actors, Judge
from .reward import RewardJudge


class Several(Judge):
    """`members` by name. To be derived from."""

    members: dict[str, Judge]

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
        from . import find_judge

        self.options = dict(options)
        if unknown := sorted(set(options) - {"members", "mode", "threshold", "missing"}):
            raise UserError(f"the judge 'ensemble' has no option {unknown[0]!r}; expected members, mode, threshold or "
                            "missing")
        members = options.get("members")
        if not isinstance(members, list) or len(members) < 2 or not all(isinstance(m, dict) for m in members):
            raise UserError(f"the judge 'ensemble' has members {members!r}; expected a list of two or more such as "
                            '[{"judge": "clip-score", "options": {"folder": "..."}, "weight": 2}, ...]')
        self.members: dict[str, Judge] = {}
        self.weights: dict[str, float] = {}
        shared: dict[Any, Any] = {}
        for member in members:
            if strange := sorted(set(member) - {"judge", "options", "weight"}):
                raise UserError(f"a member of the judge 'ensemble' has {strange[0]!r}; expected judge, options and "
                                "weight")
            judge = find_judge(member.get("judge"), member.get("options"))
            if isinstance(judge, RewardJudge):
                judge.shared = shared
            name = _unused(judge.name, self.members)
            self.members[name], self.weights[name] = judge, member.get("weight", 1.0)

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
        from . import find_judge

        if set(options) != {"judge", "audit"}:
            raise UserError(f"the judge 'audited' has the options {sorted(options)}; expected judge and audit")
        self.members = {name: find_judge(options[name]) for name in ("judge", "audit")}

    def actors(self, folder: Path | None = None) -> Actors:
        judge, audit = (one.actors(folder) for one in self.members.values())
        return Actors(Audited(judge.verifier, audit.verifier), judge.reflector, judge.refiner)

    def settings(self, prompt: str | None = None) -> dict[str, Any]:
        return {"name": self.name, "options": {name: one.settings(prompt) for name, one in self.members.items()}}


def _unused(name: str, taken: dict[str, Judge]) -> str:
    number = 1
    while (said := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return said
