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

    def actors(self, folder: Path | None = None) -> Actors:
        """Those of a run whose record lies in `folder`, or that has none."""
        ...


class ShapesJudge:
    """The exact judge of the shapes world."""

    def check_prompt(self, prompt: str) -> None:
        from .shapes.prompt import parse

        parse(prompt)

    def check(self, request: Request) -> None:
        from .shapes.scene import SIZE

        self.check_prompt(request.prompt)
        if (request.width, request.height) != (SIZE, SIZE):
            raise UserError(f"the size is {request.width}x{request.height}; the judge 'shapes' reads pictures of "
                            f"{SIZE}x{SIZE} only; try {SIZE} x {SIZE}, or a model that draws the shapes world")

    def actors(self, folder: Path | None = None) -> Actors:
        from .refiners import ShapesRefiner
        from .reflectors import ShapesReflector
        from .verifiers import ShapesVerifier

        return Actors(ShapesVerifier(), ShapesReflector(), ShapesRefiner())


class NoJudge:
    """Nobody: nothing is accepted, nothing is said. For those who speak for themselves."""

    def check_prompt(self, prompt: str) -> None:
        _expect_words(prompt)

    def check(self, request: Request) -> None:
        _expect_words(request.prompt)

    def actors(self, folder: Path | None = None) -> Actors:
        from .reflectors import SilentReflector
        from .verifiers import NoVerifier

        return Actors(NoVerifier(), SilentReflector())


class PersonJudge:
    """The person at the terminal: any prompt, any size."""

    def check_prompt(self, prompt: str) -> None:
        _expect_words(prompt)

    def check(self, request: Request) -> None:
        _expect_words(request.prompt)

    def actors(self, folder: Path | None = None) -> Actors:
        from .cli.person import Person

        if folder is None:
            raise UserError("the judge 'me' asks at a terminal, and shows its pictures in a run's folder; expected one")

        person = Person(folder)
        return Actors(person, person)


JUDGES: dict[str, type[Judge]] = {"shapes": ShapesJudge, "me": PersonJudge, "none": NoJudge}


def find_judge(name: str) -> Judge:
    """UserError for a name that there is not."""
    if name not in list(JUDGES):  # A list: a damaged record may name anything, also what has no hash.
        raise UserError(f"there is no judge {name!r}; expected one of {', '.join(JUDGES)}")
    return JUDGES[name]()


def _expect_words(prompt: str) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; expected words that say what to draw")
