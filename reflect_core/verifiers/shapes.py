"""The exact judge of the shapes world: read the prompt, read the picture, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from ..shapes.checks import check_objects, reason
from ..shapes.detector import detect
from ..shapes.prompt import parse
from ..shapes.scene import Obj
from ..types import Picture, Verdict


class ShapesVerifier:
    """Judges 64 x 64 pictures against prompts of the shapes grammar.

    `score` is the share of checks that passed, and a picture is accepted when all did.
    `details["objects"]` lists what was seen: shape, colour, and x, y, r in pixels (`seen` reads it).
    """

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        """A verdict for each picture.

        Raises `UserError` for a prompt that is not of the grammar, ValueError for another size of picture.
        """
        requirement = parse(prompt)
        verdicts = []
        for picture in pictures:
            objects = detect(picture)
            findings = check_objects(requirement, objects)
            verdicts.append(Verdict(findings.score, findings.accepted, findings.checks, reason(findings.checks),
                                    {"objects": [asdict(obj) for obj in objects]}))
        return verdicts


def seen(verdict: Verdict) -> tuple[Obj, ...]:
    """The objects that the judge saw. Raises ValueError for a verdict of another kind of judge."""
    objects = verdict.details.get("objects")
    if objects is None:
        raise ValueError(f"got a verdict with the details {sorted(verdict.details)}; expected 'objects': "
                         "use a verifier of the shapes world")
    return tuple(Obj(**obj) for obj in objects)
