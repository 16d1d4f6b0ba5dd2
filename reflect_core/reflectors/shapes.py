"""The reflector of the shapes world: what the judge saw, against what was asked, as instructions."""

from __future__ import annotations

from collections.abc import Sequence

from ..shapes.prompt import parse
from ..shapes.repair import plan, words
from ..types import Picture, Verdict
from ..verifiers.shapes import seen


class ShapesReflector:
    """Says what few changes would make each picture right, the worst flaw first (see `repair.py`).

    It looks at the objects in the verdict, not at the picture: it shares the judge's eyes, and errs
    where they do. `limit` is the most changes told at once. A picture that shows what was asked gets
    an empty reflection.
    """

    def __init__(self, limit: int = 3) -> None:
        if limit < 1:
            raise ValueError(f"got limit {limit!r}; expected at least 1 change in a reflection")
        self.limit = limit

    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]:
        """A reflection for each verdict, e.g. 'change the blue circle to red, add a star'.

        Raises `UserError` for a prompt that is not of the grammar, ValueError for foreign verdicts or another
        number of them than of pictures.
        """
        if len(pictures) != len(verdicts):
            raise ValueError(f"got {len(verdicts)} verdicts on {len(pictures)} pictures; expected one for each")
        requirement = parse(prompt)
        return [words(plan(seen(verdict), requirement), requirement, self.limit) for verdict in verdicts]
