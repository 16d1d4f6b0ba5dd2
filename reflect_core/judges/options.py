"""What a language model is asked as a judge, a reflector and a refiner, whoever it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..generators.checking import is_number, is_whole, one_of
from ..types import UserError
from ..verifiers.rubric import TAGS

ASK = ("checks", "match", "rubric", "released")
REFLECT = ("edits", "sentence", "tuned", "released", "none")
MEANS = ("arithmetic", "geometric")
SCRIPTS = ("latin", "any")


@dataclass(frozen=True)
class AskOptions:
    """UserError for a value that makes no sense."""

    ask: str = "checks"
    """How it judges. 'checks': the prompt is taken apart once into yes-or-no questions, and each picture is asked all.
    'match': one question. 'rubric': marks out of ten. 'released': as Reflect-DiT's released judge."""
    threshold: float | None = None
    """From what on a picture is accepted; None: 0.5 for 'checks' (each of them) and 'match', 0.9 for 'rubric'."""
    checks: tuple[str, ...] | None = None
    """Your own questions for 'checks', in place of those that the model makes."""
    mean: str = "arithmetic"
    """Of the checks: 'arithmetic' or 'geometric'."""
    tag: str = "general"
    """For 'rubric': one of GenEval's six, or 'general'."""
    wording: str | None = None
    """For 'released': the question, with {prompt} in it."""
    guard: bool = True
    """For 'released': never an empty feedback where the reply has words; False: the official rule."""
    reflect: str = "edits"
    """How it says what is wrong. 'edits': a few edits on a line, for ReflectionFlow and editing models. 'sentence': one
    sentence, for Reflect-DiT. 'tuned': as ReflectionFlow's Reflection-Generator. 'released': what the released judge
    said. 'none': not at all."""
    edits: int = 3
    """For 'edits': how many at most."""
    reflect_wording: str = "{prompt}"
    """For 'tuned': the question, with {prompt} in it."""
    scripts: str | None = None
    """What the generator reads, 'latin' or 'any': a reflection in another script is not handed on, and that is noted
    on its picture. None: as the model is known to read, and 'any' for 'sentence', which is Reflect-DiT's."""
    refine: bool = True
    """It rewrites prompts, where the policy wants that."""

    def __post_init__(self) -> None:
        one_of("ask", self.ask, ASK)
        one_of("reflect", self.reflect, REFLECT)
        one_of("mean", self.mean, MEANS)
        if self.scripts is not None:
            one_of("scripts", self.scripts, SCRIPTS)
        one_of("tag", self.tag, TAGS)
        if self.threshold is not None and (not is_number(self.threshold) or not 0 <= self.threshold <= 1):
            raise UserError(f"option threshold is {self.threshold!r}; expected a number from 0 to 1")
        if self.checks is not None:
            object.__setattr__(self, "checks", _questions(self.checks))
        if not is_whole(self.edits) or not 1 <= self.edits <= 10:
            raise UserError(f"option edits is {self.edits!r}; expected a whole number from 1 to 10")
        for name in ("guard", "refine"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"option {name} is {getattr(self, name)!r}; expected true or false")
        for name in ("wording", "reflect_wording"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or "{prompt}" not in text):
                raise UserError(f"option {name} is {text!r}; expected a text with {{prompt}} in it")
        if self.reflect == "released" and self.ask != "released":
            raise UserError(f"option reflect is 'released' and ask {self.ask!r}; expected both, since that reflection "
                            "is part of that judge's reply; try reflect=sentence")


def _questions(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value or \
            not all(isinstance(one, str) and one.strip() for one in value):
        raise UserError(f"option checks is {value!r}; expected a list of questions that 'yes' is the right answer to, "
                        "such as [\"Is there a cat?\"]")
    return tuple(one.strip() for one in value)
