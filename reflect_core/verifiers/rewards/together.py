"""Several verifiers that are asked as one: their costs, their questions and their parts are the sum of theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

from ...types import Cost, Picture, UserError, Verdict, Verifier


class Together:
    """To be derived from. `members` by name; a member may be several itself.

    `spent` adds up what the members spent: their own account where they keep one, else one judge call for a picture.
    `asked` takes over what members asked language models, see `search.actors`.
    """

    def __init__(self, members: Mapping[str, Verifier]) -> None:
        if not members:
            raise UserError("got no judges; expected one or more")
        self.members = dict(members)
        self.places = SharedPlaces(self.members)
        self.asked: list[Any] = []
        self._calls = Cost()

    @property
    def parts(self) -> dict[str, Any]:
        """What a memory manager moves: `<member>.<part>`, each module once."""
        return self.places.parts

    @property
    def spent(self) -> Cost:
        own = [member.spent for member in self.members.values() if hasattr(member, "spent")]
        return reduce(Cost.__add__, own, self._calls)

    def ask(self, name: str, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        """A member's verdicts. UserError if it gives another number of them than there are pictures."""
        member = self.members[name]
        try:
            verdicts = list(member.judge(prompt, pictures))
        finally:
            if asked := getattr(member, "asked", None):
                self.asked.extend(asked)
                asked.clear()
        if not hasattr(member, "spent"):
            self._calls += Cost(judge_calls=len(pictures))
        if len(verdicts) != len(pictures):
            raise UserError(f"the judge {name!r} gave {len(verdicts)} verdicts on {len(pictures)} pictures; expected "
                            "as many; this is a mistake in that judge")
        return verdicts


class SharedPlaces:
    """Where the parts of several members compute, see `generators.places`: a manager that is set here is theirs, and
    gets their parts by the names that they have here."""

    def __init__(self, members: Mapping[str, Any]) -> None:
        self.parts: dict[str, Any] = {}
        self._manager = None
        self._of: list[tuple[Any, dict[str, str]]] = []
        names: dict[int, str] = {}
        for member, verifier in members.items():
            if getattr(verifier, "places", None) is None:
                continue
            own = {part: names.setdefault(id(module), f"{member}.{part}") for part, module in verifier.parts.items()}
            self.parts |= {name: verifier.parts[part] for part, name in own.items()}
            self._of.append((verifier.places, own))

    @property
    def manager(self):
        return self._manager

    @manager.setter
    def manager(self, manager) -> None:
        self._manager = manager
        for places, names in self._of:
            places.manager = None if manager is None else _by(manager, names)


def _by(manager, names: Mapping[str, str]):
    return lambda part, pixels=0: manager(names[part], pixels)


def brief(verdict: Verdict) -> dict[str, Any]:
    """A verdict as it is kept in another one's details."""
    return {"score": verdict.score, "accepted": verdict.accepted, "judged": verdict.judged,
            "reason": verdict.reason, "details": verdict.details,
            "checks": [{"kind": check.kind, "target": check.target, "passed": check.passed, "note": check.note}
                       for check in verdict.checks]}
