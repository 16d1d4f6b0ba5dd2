"""What a set of objects does and does not fulfil of a requirement: the facts behind every verdict.

After GenEval (spec/geneval.md, 2.1): every object is asked for by itself, counts are exact, and a
relation holds between all objects of both sides. Different from GenEval: the centres alone decide a
relation, anything that is not asked for fails a check of its own, and the share of checks that
passed is kept beside the yes or no.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Check
from .prompt import NUMBERS, Group, Requirement, article, holds
from .scene import Obj


@dataclass(frozen=True)
class Findings:
    """The checks, and which group each object serves (None: nothing asks for it)."""

    checks: tuple[Check, ...]
    owner: tuple[int | None, ...]

    @property
    def score(self) -> float:
        """Share of the checks that passed."""
        return sum(check.passed for check in self.checks) / len(self.checks)

    @property
    def accepted(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)


def check_objects(requirement: Requirement, objects: Sequence[Obj]) -> Findings:
    """One check for each object that is asked for, one for each relation, one for nothing else.

    A relation fails when either side is not complete. Blobs count as something else.
    """
    owner = assign(requirement, objects)
    checks = []
    members: list[list[Obj]] = []
    for k, group in enumerate(requirement.groups):
        mine = [obj for obj, o in zip(objects, owner) if o == k]
        members.append(mine)
        note = f"found {len(mine)} of {group.count}"
        checks += [Check("object", group.singular, slot < len(mine), note) for slot in range(group.count)]
    for i, relation, j in requirement.relations:
        left, right = requirement.groups[i], requirement.groups[j]
        complete = len(members[i]) == left.count and len(members[j]) == right.count
        passed = complete and all(holds(relation, a, b) for a in members[i] for b in members[j])
        note = "" if passed else _not_so(left, relation, right) if complete else "not all of them are there"
        checks.append(Check("relation", f"{left.singular} {relation} {right.singular}", passed, note))
    extra = [obj for obj, o in zip(objects, owner) if o is None]
    checks.append(Check("extra", "nothing else", not extra, f"also {listing(extra)}" if extra else ""))
    return Findings(tuple(checks), owner)


def assign(requirement: Requirement, objects: Sequence[Obj]) -> tuple[int | None, ...]:
    """Give objects to groups so that the most checks pass.

    In sentences of the grammar no object suits two groups and no group stands in two relations, so
    only surplus leaves a choice; there the outermost objects are the best ones, since a relation asks
    that all of one side lie before all of the other.
    """
    owner: list[int | None] = [None] * len(objects)
    for k, group in enumerate(requirement.groups):
        free = [a for a, obj in enumerate(objects) if owner[a] is None and group.takes(obj)]
        for i, relation, j in requirement.relations:
            if k in (i, j):
                # From the outside inward: the first group of 'left of' and 'above' wants small coordinates.
                sign = 1 if (k == i) == (relation in ("left of", "above")) else -1
                free.sort(key=lambda a: sign * _along(relation, objects[a]))
                break
        for a in free[: group.count]:
            owner[a] = k
    return tuple(owner)


def _along(relation: str, obj: Obj) -> float:
    return obj.x if relation in ("left of", "right of") else obj.y


def _not_so(left: Group, relation: str, right: Group) -> str:
    if left.count == right.count == 1:
        return f"the {left.singular} is not {relation} the {right.singular}"
    return f"not every {left.singular} is {relation} every {right.singular}"


def listing(objects: Sequence[Obj]) -> str:
    """Objects in words, e.g. 'a red circle and two green blobs'."""
    parts = []
    for words, count in Counter(obj.words for obj in objects).items():
        number = article(words) if count == 1 else NUMBERS[count] if count < len(NUMBERS) else str(count)
        parts.append(f"{number} {words}{'s' if count > 1 else ''}")
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def reason(checks: Sequence[Check]) -> str:
    """The checks in words, e.g. 'missing a red circle (found 1 of 2); also a green blob'."""
    failed = [check for check in checks if not check.passed]
    if not failed:
        return f"all {len(checks)} checks passed"
    said = []
    for check in failed:
        if check.kind == "object":
            text = f"missing {article(check.target)} {check.target} ({check.note})"
        elif check.kind == "relation":
            text = f"{check.target} fails: {check.note}"
        else:
            text = check.note
        if text not in said:
            said.append(text)
    return "; ".join(said)
