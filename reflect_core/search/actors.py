"""The four actors as the stepper calls them: counted, timed, and their answers made fit for a record.

Answers are matched to candidates by position and counted; an actor that returns too few or too many
is an error. The official code drops failed answers silently and goes on with shorter lists in
completion order (spec 7, items 1 and 2).

What a call that failed had spent is not lost: it is owed, and goes on record with the next call of
the same actor that comes to an end. Only a kill in between forgets it; nobody else's run has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from ..types import Cost, Drawn, Exchange, Generator, Refiner, Reflector, Request, Verdict, Verifier
from . import codec
from .ledger import ACTORS


class ActorError(RuntimeError):
    """A generator, verifier, reflector, refiner or policy broke its contract (a bug in it, not in the run)."""


class Actors:
    """Generator and verifier, and a reflector and a refiner or None.

    Where an actor has `spent`, a `Cost` that grows with each call, that is what its calls cost;
    otherwise a verifier counts one judge call for each picture, the others none. Where it has `asked`, a list
    of `Exchange` that grows with each question to a language model, those go on record and out of the list. Where a
    reflector or refiner has `notes`, texts on each candidate of its last call, those do, too.
    """

    def __init__(self, generator: Generator, verifier: Verifier, reflector: Reflector | None = None,
                 refiner: Refiner | None = None) -> None:
        self.generator = generator
        self._by_name = dict(zip(ACTORS, (generator, verifier, reflector, refiner)))
        self._owed = dict.fromkeys(ACTORS, Cost())
        self._asked: dict[str, list[Exchange]] = {name: [] for name in ACTORS}
        """By calls that failed."""

    def has(self, name: str) -> bool:
        return self._by_name[name] is not None

    def counts_calls(self, name: str) -> bool:
        """Whether calls of this actor are judge calls."""
        return name == "verifier" or hasattr(self._by_name[name], "spent")

    @property
    def owed(self) -> Cost:
        """Spent by calls that are not on record (yet)."""
        return reduce(Cost.__add__, self._owed.values())

    def settle(self, name: str) -> None:
        """What this actor's last call returned as cost is on record now."""
        self._owed[name] = Cost()

    def asked(self, name: str) -> tuple[Exchange, ...]:
        """What this actor asked a language model since this was called last."""
        self._take_asked(name)
        asked, self._asked[name] = self._asked[name], []
        return tuple(codec.exchange_from_json(codec.plain(codec.exchange_to_json(one))) for one in asked)

    def _take_asked(self, name: str) -> None:
        """The actor may be another run's afterwards."""
        asked = getattr(self._by_name[name], "asked", [])
        self._asked[name] += asked
        asked.clear()

    def notes(self, name: str, count: int) -> tuple[tuple[str, ...], ...]:
        """What this actor noted on each of the `count` candidates of its last call; () for nothing."""
        noted = getattr(self._by_name[name], "notes", None)
        if not noted:
            return ()
        texts = tuple(tuple(codec.plain(list(one))) for one in noted)
        noted.clear()
        if len(texts) != count:
            raise ActorError(f"the {name} made notes on {len(texts)} of {count} candidates; expected as many, in order")
        return texts if any(texts) else ()

    def call(self, name: str, count: int, ask: Callable[[Any], Any]) -> tuple[list, Cost]:
        """`ask(actor)`'s answers, `count` of them, and what they cost, with what is owed from before.

        Its errors come through. ActorError for more or fewer answers.
        """
        actor = self._by_name[name]
        getattr(actor, "notes", []).clear()  # of a call outside of this run
        before, started = getattr(actor, "spent", Cost()), time.perf_counter()
        try:
            answers = list(ask(actor))
        except BaseException:
            self._take_asked(name)
            raise
        finally:
            pairs = zip(getattr(actor, "spent", Cost()).as_tuple(), before.as_tuple())
            spent = Cost(*(now - then for now, then in pairs))
            self._owed[name] += replace(spent, seconds=time.perf_counter() - started)
        if len(answers) != count:
            raise ActorError(f"the {name} returned {len(answers)} answers for {count} candidates; expected "
                             "as many, in order")
        cost = self._owed[name]
        if name == "verifier" and not hasattr(actor, "spent"):
            cost = replace(cost, judge_calls=count)
        return answers, cost


def expect_pictures(requests: Sequence[Request], drawn: Sequence[Drawn]) -> None:
    """ActorError unless each picture is RGB and of its request's size."""
    for request, one in zip(requests, drawn):
        if one.picture.mode != "RGB" or one.picture.size != (request.width, request.height):
            raise ActorError(f"the generator drew {one.picture.mode} {one.picture.size}; expected RGB "
                             f"{(request.width, request.height)}")


def as_recorded(verdict: Verdict) -> Verdict:
    """The verdict as it will read back from a record. ActorError if it cannot be kept or ranked."""
    try:
        verdict = codec.verdict_from_json(codec.plain(codec.verdict_to_json(verdict)))
    except (TypeError, ValueError, AttributeError) as error:
        raise ActorError(f"the verifier returned a verdict that JSON cannot hold: {error}; got {verdict!r}"
                         ) from error
    if not 0.0 <= verdict.score <= 1.0:
        raise ActorError(f"the verifier returned a score of {verdict.score}; expected one in [0, 1]")
    if not verdict.judged and (verdict.accepted or verdict.score):
        raise ActorError(f"the verifier did not judge, and gave a score of {verdict.score}; expected 0, not accepted")
    return verdict


def as_texts(actor: str, texts: Sequence[Any]) -> tuple[str, ...]:
    """The reflections or prompts as they will read back from a record. ActorError if one is no text."""
    for text in texts:
        if not isinstance(text, str):
            raise ActorError(f"the {actor} returned {text!r}; expected text")
    return tuple(codec.plain(texts))
