"""Judges by name: who judges, reflects and rewrites prompts, and what they can be asked about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .types import Refiner, Reflector, Request, UserError, Verifier


@dataclass(frozen=True)
class Actors:
    verifier: Verifier
    reflector: Reflector
    refiner: Refiner | None = None


class Judge(Protocol):
    def check_prompt(self, prompt: str) -> None:
        """UserError if it cannot judge pictures of this prompt."""
        ...

    def check(self, request: Request) -> None:
        """UserError if it cannot judge pictures of this request. Cheap: called before a model is loaded."""
        ...

    def actors(self, folder: Path) -> Actors:
        """Those of a run whose record lies in `folder`."""
        ...


class ShapesJudge:
    """The exact judge of the shapes world."""

    def check_prompt(self, prompt: str) -> None:
        from .shapes.prompt import parse

        try:
            parse(prompt)
        except UserError as error:
            if not prompt.strip():
                raise
            # Whoever has pointed --model at FLUX.1-dev wants to hear of this one.
            raise UserError(f"{error}; for other pictures there is --judge me, with a model that draws them") from error

    def check(self, request: Request) -> None:
        from .shapes.scene import SIZE

        self.check_prompt(request.prompt)
        if (request.width, request.height) != (SIZE, SIZE):
            raise UserError(f"the size is {request.width}x{request.height}; the judge 'shapes' reads pictures of "
                            f"{SIZE}x{SIZE} only; try --size {SIZE}, or a model that draws the shapes world")

    def actors(self, folder: Path) -> Actors:
        from .refiners import ShapesRefiner
        from .reflectors import ShapesReflector
        from .verifiers import ShapesVerifier

        return Actors(ShapesVerifier(), ShapesReflector(), ShapesRefiner())


class PersonJudge:
    """The person at the terminal: any prompt, any size."""

    def check_prompt(self, prompt: str) -> None:
        if not prompt.strip():
            raise UserError("the prompt is empty; expected words that say what to draw")

    def check(self, request: Request) -> None:
        self.check_prompt(request.prompt)

    def actors(self, folder: Path) -> Actors:
        from .cli.person import Person

        person = Person(folder)
        return Actors(person, person)


JUDGES: dict[str, type[Judge]] = {"shapes": ShapesJudge, "me": PersonJudge}


def find_judge(name: str) -> Judge:
    """UserError for a name that there is not."""
    if name not in list(JUDGES):  # A list: a damaged record may name anything, also what has no hash.
        raise UserError(f"there is no judge {name!r}; expected one of {', '.join(JUDGES)}")
    return JUDGES[name]()
