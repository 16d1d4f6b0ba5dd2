"""The prompt taken apart once into questions that a picture answers with yes or no, and each picture asked all.

What failed says what to change, and the questions are the same for every picture, as in EPIC
(2605.11722), DSG and Soft-TIFA.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..text import bounded
from ..types import Check, Picture, UserError, Verdict
from ..vlm.chat import Asker, Chat, Question
from ..vlm.reading import Reading, read
from ..vlm.structured import ask_for_json, object_of
from .match import not_judged

MOST, LONGEST = 12, 200
"""Questions to a prompt, and characters of each."""
NO_ANSWER = "no answer"
ABOUT = ("object", "count", "colour", "position", "action", "text", "style", "other")
COMPILE = ("You turn the description of a picture into questions that somebody who sees the picture can answer with "
           "yes or no. One thing a question; together they cover everything that the description asks for and nothing "
           "that it does not: each object, its number, its colour and other properties, who does what, where things "
           "are in relation to one another, written words, style. 'yes' always means that the picture is right. "
           f"At most {MOST} questions. Answer with a JSON object "
           '{"questions": [{"about": "object", "question": "Is there a cat?"}]}, where "about" is one of '
           f"{', '.join(ABOUT)}.")
SYSTEM = "You answer questions about a picture with one word, yes or no. Look closely; if you are not sure, answer no."
SCHEMA = object_of(questions={"type": "array", "minItems": 1, "items": object_of(
    about={"type": "string", "enum": list(ABOUT)}, question={"type": "string"})})
ENOUGH = object_of(questions={**SCHEMA["properties"]["questions"], "items": object_of(question={"type": "string"})})
"""What a question is about is a word for the eye: one that we do not know is no reason to ask nothing."""


class ChecklistVerifier(Asker):
    """The score is the mean of p(yes) over the questions, or their geometric mean. Accepted: every question has p(yes)
    of `threshold` or more.

    Args:
        checks: (about, question) pairs for a prompt that are known already, such as from a record.
        mean: 'arithmetic', or 'geometric', in which one clear no counts for more (Soft-TIFA).
        own: pairs for any prompt, in place of those that the model makes.
    """

    def __init__(self, chat: Chat, threshold: float = 0.5, mean: str = "arithmetic",
                 checks: Mapping[str, Sequence[tuple[str, str]]] | None = None,
                 own: tuple[tuple[str, str], ...] | None = None) -> None:
        super().__init__(chat)
        self.threshold, self.mean, self.own = threshold, mean, own
        self.checks = {prompt: tuple(map(tuple, known)) for prompt, known in (checks or {}).items()}

    def prepare(self, prompt: str) -> tuple[tuple[str, str], ...]:
        """The (about, question) pairs of a prompt, asked for the first time only. UserError if the model has none."""
        if self.own is not None:
            return self.own
        if prompt not in self.checks:
            question = Question(f"Description: {prompt}", system=COMPILE, max_tokens=1200, schema=SCHEMA)
            told = ask_for_json(self.ask_ahead, [question], ENOUGH)[0]
            # A model that was cut off, or repeats itself, has fewer of its own.
            made = [] if isinstance(told, str) else told["questions"]
            pairs = dict.fromkeys((_about(one.get("about")), bounded(one["question"], LONGEST)) for one in made)
            if not (found := tuple(pair for pair in pairs if pair[1])[:MOST]):
                why = bounded(told, 300) if isinstance(told, str) else "its questions are blank"
                raise UserError(f"the judge could not take the prompt apart into questions ({why}); expected a list of "
                                "them; try option ask=match, or your own with option checks")
            self.checks[prompt] = found
        return self.checks[prompt]

    def judge(self, prompt: str, pictures: Sequence[Picture]) -> list[Verdict]:
        checks = self.prepare(prompt)
        # Picture by picture, so that whoever keeps what it has read reads each picture once.
        answers = self.ask([Question(text, picture, SYSTEM, max_tokens=8, yes_no=True)
                            for picture in pictures for _, text in checks])
        size = len(checks)
        return [self._verdict(checks, [read(answer) for answer in answers[k * size:(k + 1) * size]])
                for k in range(len(pictures))]

    def _verdict(self, checks: Sequence[tuple[str, str]], readings: Sequence[Reading | str]) -> Verdict:
        known = [reading.p for reading in readings if isinstance(reading, Reading)]
        if 2 * len(known) <= len(readings):
            return not_judged(next(reading for reading in readings if isinstance(reading, str)))
        made = tuple(self._check(about, text, reading) for (about, text), reading in zip(checks, readings))
        score = _geometric(known) if self.mean == "geometric" else sum(known) / len(known)
        failed = [check.target for check, reading in zip(made, readings) if not check.passed
                  and isinstance(reading, Reading)]
        unknown = [check.target for check, reading in zip(made, readings) if isinstance(reading, str)]
        details = {"p": [reading.p if isinstance(reading, Reading) else None for reading in readings],
                   "mass": [reading.mass if isinstance(reading, Reading) else None for reading in readings]}
        parts = [f"no to: {'; '.join(failed)}"] if failed else []
        parts += [f"{NO_ANSWER} to: {'; '.join(unknown)}"] if unknown else []
        reason = "; ".join(parts) or f"yes to all {len(made)} questions"
        return Verdict(score, not parts, made, reason, details)

    def _check(self, about: str, text: str, reading: Reading | str) -> Check:
        if isinstance(reading, str):
            return Check(about, text, False, bounded(f"{NO_ANSWER}: {reading}", 200))
        return Check(about, text, reading.p >= self.threshold, f"yes {reading.p:.2f}")


def _about(said: Any) -> str:
    """One of `ABOUT` for what a model says that a question is about."""
    word = said.strip().lower() if isinstance(said, str) else ""
    word = {"color": "colour"}.get(word, word)
    return word if word in ABOUT else "other"


def _geometric(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(value, 1e-6)) for value in values) / len(values))
