"""What a judge is: who judges, reflects and rewrites prompts, and what they can be asked about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import Refiner, Reflector, Request, UserError, Verifier


@dataclass(frozen=True)
class Actors:
    verifier: Verifier
    reflector: Reflector
    refiner: Refiner | None = None


class Judge:
    """One that judges any prompt and picture. To be derived from."""

    name = ""

    def check_prompt(self, prompt: str) -> None:
        """UserError if it cannot judge pictures of this prompt. Cheap: called before a model is loaded."""
        expect_words(prompt)

    def check(self, request: Request) -> None:
        """UserError if it cannot judge pictures of this request. As cheap."""
        self.check_prompt(request.prompt)

    def suit(self, policy: str, scripts: str | None = None) -> None:
        """Speak as the model of that policy's paper learned it, in `scripts` that it reads ('latin' or 'any'), where
        nobody has said how."""

    def connect(self, judges: bool = True) -> list[str]:
        """Load it, or call on its server, and look whether it works; once. Returns what the user should know of it, a
        line each. UserError if it cannot work. `judges`: False for one that only reflects or rewrites prompts."""
        return []

    def prepare(self, prompt: str) -> list[str]:
        """The same, with whatever has to be asked once for a prompt."""
        return self.connect()

    def actors(self, folder: Path | None = None) -> Actors:
        """Those of a run whose record lies in `folder`, or that has none. Every judge has its own."""
        raise NotImplementedError

    def settings(self, prompt: str | None = None) -> Any:
        """What the record of a run of that prompt must know to have the same judge again: no secret, and nothing of
        other prompts."""
        return self.name

    def wait_with(self, on_wait: Callable[[], Any] | None) -> None:
        """Call this every now and then while an answer is waited for; it may raise to cancel."""

    def close(self) -> None:
        """Let go of connections, and of what is kept for later questions."""


def expect_words(prompt: str) -> None:
    if not prompt.strip():
        raise UserError("the prompt is empty; expected words that say what to draw")
