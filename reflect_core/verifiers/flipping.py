"""A judge that errs, for measuring what a search is worth when its judge is not exact.

Each check's outcome is turned over with a given probability. So that the reflector and the reason go
with the verdict, the judge then *believes* a scene in which those outcomes are true, and speaks of
that: an object that it overlooked is not in `details["objects"]`, one that it imagined is. Nothing
in the verdict tells the truth apart; a benchmark judges with the exact verifier beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

from ..shapes.checks import assign, check_objects, reason
from ..shapes.prompt import RELATION_MARGIN, Requirement, parse
from ..shapes.scene import COLOURS, SIZE, Obj
from ..types import Check, Picture, Verdict, Verifier
from .shapes import seen

_NAMES = tuple(COLOURS)
_IMAGINED_RADIUS = 7.0


class FlippingVerifier:
    """Wraps a judge that makes the checks of `check_objects`, and turns each over with `probability`.

    The same picture and prompt always get the same errors: they depend on the seed, the pixels, the
    prompt and the number of the check, not on the order of calls.
    """

    def __init__(self, inner: Verifier, probability: float, seed: int = 0) -> None:
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"got probability {probability!r}; expected a number from 0 to 1")
        self.inner, self.probability, self.seed = inner, probability, seed

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        """As `ShapesVerifier.judge`, with errors. Raises ValueError for an inner judge with other checks."""
        requirement = parse(prompt)
        verdicts = self.inner.judge(prompt, pictures)
        expected = requirement.objects + len(requirement.relations) + 1
        for verdict in verdicts:
            if len(verdict.checks) != expected:
                raise ValueError(f"got a verdict with {len(verdict.checks)} checks from {type(self.inner).__name__}; "
                                 f"expected {expected} for {prompt!r}: wrap ShapesVerifier")
        return [self._flipped(prompt, requirement, picture, verdict)
                for picture, verdict in zip(pictures, verdicts, strict=True)]

    def _flipped(self, prompt: str, requirement: Requirement, picture: Picture, verdict: Verdict) -> Verdict:
        pixels = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()

        def draw(name: str | int) -> float:
            digest = hashlib.sha256(f"{self.seed}|{pixels}|{prompt}|{name}".encode()).digest()
            return int.from_bytes(digest[:8], "big") / 2**64

        flips = [draw(index) < self.probability for index in range(len(verdict.checks))]
        if not any(flips):
            return verdict
        told = [check.passed != flip for check, flip in zip(verdict.checks, flips)]
        objects = believe(requirement, seen(verdict), told, draw)
        checks = _retold(check_objects(requirement, objects).checks, requirement, told)
        score = sum(check.passed for check in checks) / len(checks)
        return Verdict(score, all(told), checks, reason(checks), {"objects": [asdict(obj) for obj in objects]})


def believe(requirement: Requirement, objects: Sequence[Obj], told: Sequence[bool], draw) -> tuple[Obj, ...]:
    """A scene close to `objects` whose checks come out as `told` (in the order of `check_objects`).

    Objects are overlooked or imagined, then moved to where the told relations want them. A relation
    with a side that is believed incomplete fails in it whatever was told. `draw(name)` gives numbers
    in [0, 1) for the place and colour of what is imagined.
    """
    owner = list(assign(requirement, objects))
    believed: list[tuple[int | None, Obj]] = []
    at = 0
    for k, group in enumerate(requirement.groups):
        passed = sum(told[at : at + group.count])
        at += group.count
        mine = [obj for obj, o in zip(objects, owner) if o == k][:passed]
        believed += [(k, obj) for obj in mine]
        believed += [(k, _imagined(group.shape, group.colour, f"{k} {slot}", draw))
                     for slot in range(len(mine), passed)]
        if passed < group.count:
            # A surplus cannot be seen where some are overlooked.
            owner = [-1 if o is None and group.takes(obj) else o for obj, o in zip(objects, owner)]
    nothing_else = told[-1]
    if not nothing_else:
        others = [(None, obj) for obj, o in zip(objects, owner) if o is None]
        believed += others or [(None, _imagined("blob", None, "extra", draw))]
    for index, (i, relation, j) in enumerate(requirement.relations):
        _arrange(believed, requirement, i, relation, j, told[at + index])
    return tuple(obj for _, obj in believed)


def _imagined(shape: str, colour: str | None, name: str, draw) -> Obj:
    colour = colour or _NAMES[int(draw(f"{name} colour") * len(_NAMES))]
    x, y = (round(12 + draw(f"{name} {axis}") * (SIZE - 24), 2) for axis in "xy")
    return Obj(shape, colour, x, y, _IMAGINED_RADIUS)


def _arrange(believed: list[tuple[int | None, Obj]], requirement: Requirement, i: int, relation: str, j: int,
             wanted: bool) -> None:
    """Move the first side's objects, surplus and all, so that the relation holds or does not."""
    number = sum(g.count for g in requirement.groups) + requirement.relations.index((i, relation, j))
    if check_objects(requirement, [obj for _, obj in believed]).checks[number].passed == wanted:
        return
    axis = "x" if relation in ("left of", "right of") else "y"
    first, second = requirement.groups[i], requirement.groups[j]
    edges = [getattr(obj, axis) for _, obj in believed if second.takes(obj)]
    if not edges:
        return
    before = (relation in ("left of", "above")) == wanted
    target = min(edges) - 2 * RELATION_MARGIN if before else max(edges) + 2 * RELATION_MARGIN
    for index, (k, obj) in enumerate(believed):
        if first.takes(obj):
            place = min(getattr(obj, axis), target) if before else max(getattr(obj, axis), target)
            believed[index] = (k, replace(obj, **{axis: place}))


def _retold(checks: tuple[Check, ...], requirement: Requirement, told: Sequence[bool]) -> tuple[Check, ...]:
    """The believed scene's checks, with relations of incomplete sides as they were told."""
    start = sum(group.count for group in requirement.groups)
    out = list(checks)
    for index in range(start, len(checks) - 1):
        if checks[index].passed != told[index]:
            out[index] = replace(checks[index], passed=told[index], note="")
    return tuple(out)
