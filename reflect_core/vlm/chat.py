"""Questions to a language model that sees pictures, and its answers: what every judge is made of.

A `Chat` is asked many questions at once, and answers each in its place. So no answer is attached to
another picture; the official code collects them in the order in which they arrive (ReflectionFlow
notes, 7.1), and leaves out those that failed (7.2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..search.pictures import pixel_sha256
from ..types import Cost, Exchange, Picture

ALL_THOUGHT = "it thought until it might not say more, and gave no answer"
_THOUGHTS = re.compile(r"^.*</think(?:ing)?>|^\s*<think(?:ing)?>.*$", re.DOTALL | re.IGNORECASE)
LONGEST_REPLY = 8_000
"""Characters of a reply that are kept on record. No judge is asked for more than a few hundred."""


@dataclass(frozen=True)
class Question:
    """One question, about one picture or none."""

    text: str
    picture: Picture | None = field(default=None, compare=False, repr=False)
    system: str = ""
    """What it is told before. The same for many questions, so that what it costs to read is paid once."""
    before: tuple[tuple[str, str], ...] = ()
    """(question, reply) that went before, about the same picture."""
    max_tokens: int = 256
    yes_no: bool = False
    """The probabilities of 'yes' and 'no' as the first token are wanted, and nothing after it."""
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    """The JSON that the reply should be, for who can be held to one."""

    def told(self) -> str:
        """All of its words, for the record."""
        turns = [text for turn in self.before for text in turn]
        return "\n\n".join(text for text in (self.system, *turns, self.text) if text)


@dataclass(frozen=True)
class Answer:
    """What came back, or, with an `error`, why nothing did."""

    text: str = ""
    yes: float | None = None
    no: float | None = None
    """Probabilities of 'yes' and 'no', all their spellings together, as the first token; None where not asked for or
    where the model's server does not say."""
    cut: bool = False
    """The reply was longer than it might be."""
    tokens_in: int = 0
    tokens_out: int = 0
    attempts: int = 1
    seconds: float = 0.0
    error: str = ""
    model: str = ""
    """Who says that it answered, where a server does."""


class Chat(Protocol):
    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """An answer to each, in order. UserError where no question can be answered (no key, no such model, a server
        that is gone); an answer with an `error` where one could not."""
        ...

    def close(self) -> None: ...


class Asker:
    """Asks for one actor of a run, and keeps what it cost and what was said (see `search.actors.Actors`)."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self.spent = Cost()
        self.asked: list[Exchange] = []
        self._ahead = Cost()

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """As `Chat.ask`. A question counts as one judge call, however often it had to be sent."""
        self.spent, self._ahead = self.spent + self._ahead, Cost()
        try:
            answers, cost = self._ask(questions)
        except BaseException:
            self.spent, self._ahead = self.spent + self._ahead, Cost()  # by the run that asked, and by no other
            raise
        self.spent += cost
        return answers

    def ask_ahead(self, questions: Sequence[Question]) -> list[Answer]:
        """The same before a run calls upon the actor: what it costs is spent with the next question in a run."""
        answers, cost = self._ask(questions)
        self._ahead += cost
        return answers

    def take_over(self, other: Asker) -> None:
        """What another one asked ahead goes with this one's."""
        self._ahead, other._ahead = self._ahead + other._ahead, Cost()
        self.asked += other.asked
        other.asked.clear()

    def _ask(self, questions: Sequence[Question]) -> tuple[list[Answer], Cost]:
        if not questions:
            return [], Cost()
        with ThreadPoolExecutor(1) as beside:  # which takes as long as a server's answer, for large pictures
            pending = beside.submit(_hashes, questions)
            try:
                answers = self.chat.ask(questions)
            except BaseException as error:
                # What was answered before is paid for.
                self._ahead += self._keep(questions, getattr(error, "answers", ()), pending.result())
                raise
        return answers, self._keep(questions, answers, pending.result())

    def _keep(self, questions: Sequence[Question], answers: Sequence[Answer | None], hashes: dict[int, str]) -> Cost:
        """Put the exchanges on the list; what they cost."""
        cost = Cost()
        for question, answer in zip(questions, answers):
            if answer is None:
                continue
            shown = () if question.picture is None else (hashes[id(question.picture)],)
            cost += Cost(judge_calls=1, tokens=answer.tokens_in + answer.tokens_out)
            self.asked.append(Exchange(question.told(), shown, answer.text[:LONGEST_REPLY], answer.yes, answer.no,
                                       answer.tokens_in, answer.tokens_out, answer.attempts,
                                       round(answer.seconds, 3), answer.error))
        return cost


def _hashes(questions: Sequence[Question]) -> dict[int, str]:
    """Of each picture, by its id: many questions may be about one."""
    pictures = {id(question.picture): question.picture for question in questions if question.picture is not None}
    return {key: pixel_sha256(picture.convert("RGB")) for key, picture in pictures.items()}


def without_thoughts(text: str) -> str:
    """A reply without what a model thinks aloud before it."""
    return _THOUGHTS.sub("", text).strip()
