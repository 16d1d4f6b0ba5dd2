"""The words of the project as data: request, verdict, cost, and the protocols of the four actors.

Pictures are 8-bit RGB `PIL.Image.Image` everywhere outside a model: that is what a record keeps
(PNG, lossless), so what a corrector or judge sees is the same before and after a resume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Protocol, Sequence

from PIL import Image

Picture = Image.Image


class UserError(ValueError):
    """Something from outside is wrong (a prompt, a file, a setting).

    The message says what was wrong, what was expected and what to try. The command line prints
    it alone, without a traceback, and exits with code 2.
    """


@dataclass(frozen=True)
class Pair:
    """One (picture, feedback) pair of context: a flawed picture and what to change in it."""

    feedback: str
    candidate: int | None = None
    """Id of the candidate in the run, or None for a picture from outside."""
    picture: Picture | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Request:
    """What to draw. An empty context is plain text-to-image."""

    prompt: str
    seed: int
    width: int = 64
    height: int = 64
    steps: int = 28
    guidance: float = 3.5
    context: tuple[Pair, ...] = ()
    original_prompt: str | None = None
    """The user's prompt when `prompt` was rewritten by a refiner; None when it was not."""


@dataclass(frozen=True)
class Cost:
    """What something cost. Costs add up field by field."""

    pictures: int = 0
    denoiser_evaluations: int = 0
    """Rows through the denoiser: one picture, one step, one guidance branch is one."""
    text_encoder_calls: int = 0
    """Texts encoded anew; a text found in the cache costs nothing."""
    judge_calls: int = 0
    tokens: int = 0
    """Tokens of language-model judges, in and out; 0 for exact ones."""
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple())))

    def as_tuple(self) -> tuple:
        return (self.pictures, self.denoiser_evaluations, self.text_encoder_calls,
                self.judge_calls, self.tokens, self.seconds)


@dataclass(frozen=True)
class Check:
    """One thing the judge looked at, e.g. ('object', 'red circle', False, 'found 1 of 2')."""

    kind: str
    target: str
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one picture: score in [0, 1], accepted or not, checks, reason in words."""

    score: float
    accepted: bool
    checks: tuple[Check, ...] = ()
    reason: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    """What the judge saw, JSON-serialisable, for reflectors that share its eyes."""
    judged: bool = True
    """False: nobody could say, such as a server that gave no answer. `reason` says why; score 0, not accepted."""


@dataclass(frozen=True)
class Exchange:
    """A question to a language model and what came back, for the run's record."""

    question: str
    """What it was told and asked, without the pictures."""
    pictures: tuple[str, ...] = ()
    """SHA-256 of the pixels of each picture that was shown."""
    reply: str = ""
    yes: float | None = None
    """Probability of 'yes' as the first token, where that was asked for and the model says it; `no` likewise."""
    no: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0
    attempts: int = 1
    """Requests that were sent until it was answered, or given up."""
    seconds: float = 0.0
    error: str = ""
    """Why there is no reply."""


@dataclass(frozen=True)
class Drawn:
    """One picture that a generator made, with its own share of the cost."""

    picture: Picture
    cost: Cost
    notes: tuple[str, ...] = ()
    """What was done otherwise than asked, such as a text that was cut; kept on the run's record."""


@dataclass(frozen=True)
class Step:
    """A denoising step of a batch is done."""

    step: int
    """1 to `steps`."""
    steps: int
    preview: Callable[[], list[Picture]] | None = field(default=None, compare=False, repr=False)
    """What is being drawn, made when called, cheaply and so only roughly: small pictures of the batch or of its
    first ones. None where the generator has none. Good until the callback returns."""


StepCallback = Callable[[Step], None]
"""Called after each denoising step of a batch; may raise to cancel."""


class Generator(Protocol):
    max_context: int
    """Context pairs that one request may carry: 0 plain, 1 ReflectionFlow, 3 Reflect-DiT."""

    def evaluations(self, request: Request) -> int:
        """Denoiser evaluations that drawing `request` will cost, exactly: what a budget of them is kept by."""
        ...

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]: ...


class Verifier(Protocol):
    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]: ...


class Reflector(Protocol):
    def reflect(self, prompt: str, pictures: Sequence[Picture], verdicts: Sequence[Verdict]) -> list[str]: ...


class Refiner(Protocol):
    def refine(self, prompt: str, currents: Sequence[str], pictures: Sequence[Picture],
               verdicts: Sequence[Verdict], reflections: Sequence[str]) -> list[str]:
        """`prompt` is the user's, `currents` each branch's present one; returns the next ones."""
        ...
