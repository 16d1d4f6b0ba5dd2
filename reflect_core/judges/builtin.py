"""Judges that need no model: the exact one of the shapes world, a person, and nobody."""

from __future__ import annotations

from pathlib import Path

from ..types import Request, UserError
from .judge import Actors, Judge


class ShapesJudge(Judge):
    """The exact judge of the shapes world."""

    name = "shapes"

    def check_prompt(self, prompt: str) -> None:
        from ..shapes.prompt import parse

        parse(prompt)

    def check(self, request: Request) -> None:
        from ..shapes.scene import SIZE

        self.check_prompt(request.prompt)
        if (request.width, request.height) != (SIZE, SIZE):
            raise UserError(f"the size is {request.width}x{request.height}; the judge 'shapes' reads pictures of "
                            f"{SIZE}x{SIZE} only; try {SIZE} x {SIZE}, or a model that draws the shapes world")

    def actors(self, folder: Path | None = None) -> Actors:
        from ..refiners import ShapesRefiner
        from ..reflectors import ShapesReflector
        from ..verifiers import ShapesVerifier

        return Actors(ShapesVerifier(), ShapesReflector(), ShapesRefiner())


class NoJudge(Judge):
    """Nobody: nothing is accepted, nothing is said. For those who speak for themselves."""

    name = "none"

    def actors(self, folder: Path | None = None) -> Actors:
        from ..reflectors import SilentReflector
        from ..verifiers import NoVerifier

        return Actors(NoVerifier(), SilentReflector())


class PersonJudge(Judge):
    """The person at the terminal: any prompt, any size."""

    name = "me"

    def actors(self, folder: Path | None = None) -> Actors:
        from ..cli.person import Person

        if folder is None:
            raise UserError("the judge 'me' asks at a terminal, and shows its pictures in a run's folder; expected one")

        person = Person(folder)
        return Actors(person, person)
