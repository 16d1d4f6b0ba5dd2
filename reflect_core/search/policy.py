"""What a policy is: a function from a run to the next action, and the settings it goes by.

`policy.next(run)` may look at nothing but its own settings and the run. It keeps no notes between
two calls and draws no random numbers, so a killed run resumes from its record alone, and the
policy of a resumed run decides what the policy of an uninterrupted one would have decided.

Seeds. The noise of every picture comes from `derive_seed(run seed, label, numbers...)`:
`("noise", i)` for the i-th picture drawn from noise and `("correction", round, branch)` for a
correction. The first label is shared by all policies: at the same run seed, best-of-n and the
pool of ReflectionFlow see the same noise, which makes comparisons between them paired. The
official search re-seeds the global generators and takes the next seeds from them, and its
correctors run on whatever state is left (spec 4.3); none of that is kept.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Union

from ..types import Request, UserError
from .entries import Planned
from .run import Candidate, Run


@dataclass(frozen=True)
class Draw:
    """Draw these and judge them. The stepper trims them to the budget, from the end."""

    round: int
    planned: tuple[Planned, ...]
    until_accepted: bool = False
    """Stop between two chunks as soon as a candidate is accepted."""

    @property
    def requests(self) -> tuple[Request, ...]:
        return tuple(p.request for p in self.planned)


@dataclass(frozen=True)
class Judge:
    """Judge these once more (only official behaviour asks for it: a draw is judged by itself)."""

    candidates: tuple[int, ...]


@dataclass(frozen=True)
class Reflect:
    """Say what is wrong with these, for the sake of `round`."""

    round: int
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class Refine:
    """Rewrite the prompts of these, for the sake of `round`."""

    round: int
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class Stop:
    kind: str
    """'accepted': a candidate is good; 'done': the policy has drawn all it wants; 'budget'."""
    reason: str


Action = Union[Draw, Judge, Reflect, Refine, Stop]

SEED_BITS = 32
"""Fits every generator's seed (numpy's too) and a JavaScript number."""


def derive_seed(seed: int, label: str, *numbers: int) -> int:
    """The first 32 bits, big-endian, of the SHA-256 of `seed/label/number/...` in ASCII.

    A function for good: records are replayed by it. Two of 64 seeds collide once in two million runs.
    """
    text = "/".join([str(seed), label, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[: SEED_BITS // 8], "big")


class Policy(ABC):
    """Base of the policies: frozen dataclasses whose fields are JSON values."""

    name: ClassVar[str]
    """By which records and the command line call it."""

    @property
    def max_context(self) -> int:
        """Context pairs that its requests carry at most."""
        return 0

    @property
    def needs(self) -> frozenset[str]:
        """Actors besides generator and verifier: some of 'reflector', 'refiner'."""
        return frozenset()

    @property
    @abstractmethod
    def most_pictures(self) -> int:
        """Pictures that it draws at most when neither acceptance nor a budget stops it."""

    @abstractmethod
    def next(self, run: Run) -> Action:
        """What to do now. Pure: the same run gives the same action."""

    def choose(self, run: Run) -> Candidate | None:
        """The answer: the best candidate of all, None while nothing is judged."""
        return run.best()

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in fields(self)}}  # type: ignore


def accepted_stop(run: Run) -> Stop | None:
    """The stop of a policy that ends at the first accepted candidate."""
    if run.accepted is None:
        return None
    return Stop("accepted", f"the judge accepted candidate {run.best().id}")


def noise_request(run: Run, index: int, **changes: Any) -> Request:
    """A plain request with the noise of the index-th picture of the run."""
    return replace(run.request, seed=derive_seed(run.seed, "noise", index), **changes)


def check_count(policy: str, name: str, value: Any, least: int, none: bool = False) -> None:
    """UserError unless `value` is a whole number from `least` on (or None where that is allowed)."""
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} of {policy} must be a whole number from {least} on; got {value!r}")


def check_number(policy: str, name: str, value: Any) -> None:
    """UserError unless `value` is a finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError(f"{name} of {policy} must be a number from 0 on; got {value!r}")


def check_choice(policy: str, name: str, value: Any, choices: tuple) -> None:
    if not any(value is c or (isinstance(c, str) and value == c) for c in choices):
        raise UserError(f"{name} of {policy} must be one of {', '.join(map(repr, choices))}; got {value!r}")
