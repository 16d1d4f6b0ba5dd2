"""Noise and prompt scaling: chains of fresh pictures, each from the prompt rewritten after the last.

ReflectionFlow's step A' (spec 4.2). Each branch is a chain of its own: draw from fresh noise, judge,
have the refiner rewrite the branch's prompt with the picture and the verdict in view, draw again.
No picture is handed on. The official script also computes the top k of each round and never uses
it; there is no selection between branches, there or here. What differs: its scores and rewritten
prompts come back in completion order and may change branches (spec 7, item 1), which is not kept;
and we can stop at the first accepted picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .entries import Planned
from .policy import (
    Action,
    Draw,
    Policy,
    Refine,
    Stop,
    accepted_stop,
    check_choice,
    check_count,
    noise_request,
)
from .run import Run


@dataclass(frozen=True)
class NoisePromptScaling(Policy):
    """`branches` pictures a round for `rounds` rounds. UserError if a setting is out of range."""

    name: ClassVar[str] = "noise_prompt"

    branches: int = 2
    rounds: int = 8
    early_stop: bool = True
    """Stop after the chunk that holds the first accepted picture."""

    def __post_init__(self) -> None:
        check_count(self.name, "branches", self.branches, 1)
        check_count(self.name, "rounds", self.rounds, 1)
        check_choice(self.name, "early_stop", self.early_stop, (True, False))

    @classmethod
    def official(cls) -> NoisePromptScaling:
        """The published settings: 2 branches, 16 rounds, all of them run."""
        return cls(branches=2, rounds=16, early_stop=False)

    @classmethod
    def for_budget(cls, n: int, early_stop: bool = True) -> NoisePromptScaling:
        """Exactly `n` pictures at most: two branches as published, one where n is odd."""
        check_count(cls.name, "n", n, 1)
        branches = 2 if n % 2 == 0 else 1
        return cls(branches, n // branches, early_stop)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"refiner"}) if self.rounds > 1 else frozenset()

    @property
    def most_pictures(self) -> int:
        return self.branches * self.rounds

    def next(self, run: Run) -> Action:
        if self.early_stop and (stop := accepted_stop(run)):
            return stop
        round = run.rounds
        if round >= self.rounds:
            return Stop("done", "the round is drawn" if self.rounds == 1 else f"all {self.rounds} rounds are drawn")
        last = run.in_round(round - 1)
        waiting = tuple(c.id for c in last if run.refinement(c.id, round) is None)
        if waiting:
            return Refine(round, waiting)
        parents = last or [None] * self.branches
        planned = []
        for branch, parent in enumerate(parents):
            prompt = run.next_prompt(parent.id, round) if parent else run.prompt
            request = noise_request(run, round * self.branches + branch, prompt=prompt,
                                    original_prompt=run.prompt if prompt != run.prompt else None)
            planned.append(Planned(request, branch, parent.id if parent else None))
        return Draw(round, tuple(planned), until_accepted=self.early_stop)
