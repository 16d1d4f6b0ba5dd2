"""A run that goes from hand to hand: each hand does one thing and passes a new run on.

For graphs whose nodes draw, judge, reflect and refine by themselves, in whatever order they are wired.
What is handed on is a `RunSoFar` that never changes: an earlier one can be gone on from again, in
another way. Everything is done by the stepper and by the policies that the command line has. Which
policy draws the next round follows from what was said about the last one:

- reflected on: corrections (`ReflectionFlow`), of prompts that were refined, if they were;
- refined only: fresh pictures of the refined prompts (`NoisePromptScaling`);
- neither: fresh pictures (`BestOfN`).

So rounds of corrections come out as those of `ReflectionFlow(pool=n, branches=n)`, to the bit. Once a
picture is accepted, every hand passes the run on as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..types import Cost, Generator, Picture, Refiner, Reflector, Request, UserError, Verifier
from .best_of_n import BestOfN
from .entries import Drew, Plan, Planned, Stopped
from .events import EventCallback
from .noise_prompt import NoisePromptScaling
from .policy import Draw, Judge, Policy, Refine, Reflect
from .reflection_flow import ReflectionFlow
from .run import Candidate, Run
from .stepper import Stepper

MOST_ROUNDS = 64
"""Rounds that the policies here count with; when to stop is the caller's to say."""


@dataclass(frozen=True, repr=False)
class RunSoFar:
    """A run as it is at one moment. Nobody changes `run` once it is in here."""

    run: Run
    candidates: int = 1
    """Pictures a round."""
    model: str = ""
    fingerprint: str = ""
    settings: Any = None
    """These three are for the record's header."""

    def __repr__(self) -> str:
        # ComfyUI prints the inputs of a node that failed.
        return f"<run of {len(self.run.candidates)} candidates in {self.run.rounds} rounds>"

    @property
    def policy(self) -> Policy:
        """Who draws the next round."""
        run, n = self.run, self.candidates
        if not run.candidates or _said(run.reflection, run):
            return ReflectionFlow(n, n, MOST_ROUNDS, refine=_said(run.refinement, run), early_stop=False)
        if _said(run.refinement, run):
            return NoisePromptScaling(n, MOST_ROUNDS, early_stop=False)
        return BestOfN(len(run.candidates) + n, early_stop=False)


def _said(look_up, run: Run) -> bool:
    """Whether something was said, for the next round, about a candidate of the run."""
    return any(look_up(c.id, run.rounds) is not None for c in run.candidates)


def draw(so_far: RunSoFar | None, request: Request, candidates: int, generator: Generator,
         on_event: EventCallback | None = None, **about: Any) -> RunSoFar:
    """The next round: `candidates` pictures from noise, or, after a first round, what the module says.

    `request` is the user's. Its seed, size, steps and guidance hold from here on, also where the run has
    had others; its prompt must be the run's. `about`: `model`, `fingerprint` and `settings`, for records.
    UserError for another prompt, or what cannot be drawn.
    """
    if so_far is None:
        run = Run(request, candidates)
    else:
        if so_far.run.accepted:
            return so_far
        if so_far.run.unjudged:
            raise UserError("the run has pictures that nobody has judged; expected a verdict on each before the next "
                            "round; try to put a judge between two rounds")
        if request.prompt != so_far.run.prompt:
            raise UserError(f"the run is of the prompt {so_far.run.prompt!r}; got {request.prompt!r}; expected one "
                            "prompt for all rounds; try the run's own, or start without a run")
        run = so_far.run.fork()
        run.request, run.chunk = Run(request, candidates).request, candidates
    after = RunSoFar(run, candidates, **about)
    Stepper(run, after.policy, generator, None, on_event=on_event, whole=False).advance(Draw)
    if not run.unjudged:
        raise UserError("only some of the pictures that the next round starts from were reflected on or refined; "
                        "expected all or none; try the same number of candidates in every round")
    return after


def judge(so_far: RunSoFar, verifier: Verifier, on_event: EventCallback | None = None) -> RunSoFar:
    """A verdict on every picture that waits for one."""
    if not so_far.run.unjudged:
        return so_far
    after = replace(so_far, run=so_far.run.fork())
    Stepper(after.run, after.policy, None, verifier, on_event=on_event, whole=False).advance(Judge)
    return after


def reflect(so_far: RunSoFar, reflector: Reflector, on_event: EventCallback | None = None) -> RunSoFar:
    """What should change in each picture that the next round corrects."""
    if so_far.run.accepted:
        return so_far
    _expect_verdicts(so_far, "reflected on")
    after = replace(so_far, run=so_far.run.fork())
    policy = ReflectionFlow(so_far.candidates, so_far.candidates, MOST_ROUNDS, early_stop=False)
    Stepper(after.run, policy, None, None, reflector, on_event=on_event, whole=False).advance(Reflect)
    return after


def refine(so_far: RunSoFar, refiner: Refiner, on_event: EventCallback | None = None) -> RunSoFar:
    """The prompts of the next round in other words: of the pictures that it corrects, if they were
    reflected on, else of all of the last round."""
    if so_far.run.accepted:
        return so_far
    _expect_verdicts(so_far, "refined")
    after, n = replace(so_far, run=so_far.run.fork()), so_far.candidates
    reflected = _said(after.run.reflection, after.run)
    policy = (ReflectionFlow(n, n, MOST_ROUNDS, refine=True, early_stop=False) if reflected else
              NoisePromptScaling(n, MOST_ROUNDS, early_stop=False))
    Stepper(after.run, policy, None, None, refiner=refiner, on_event=on_event, whole=False).advance(Refine)
    return after


def _expect_verdicts(so_far: RunSoFar, what: str) -> None:
    if not so_far.run.candidates or so_far.run.unjudged:
        raise UserError(f"the run has no verdicts to be {what} by; expected every picture judged; try to put a judge "
                        "before")


def from_pictures(prompt: str, pictures: Sequence[Picture]) -> RunSoFar:
    """A run that begins with pictures from outside, all of one size, still to be judged.

    UserError for none, or of several sizes.
    """
    if len({p.size for p in pictures}) != 1:
        raise UserError(f"got pictures of the sizes {sorted({p.size for p in pictures})}; expected one or more, all of "
                        "one size")
    width, height = pictures[0].size
    # Nothing is known of how they came about; a draw that follows brings its own settings.
    request = Request(prompt, 0, width, height, 1, 0.0)
    run = Run(request, len(pictures))
    run.apply(Plan(0, tuple(Planned(run.request, branch) for branch in range(len(pictures))), (len(pictures),)))
    hashes = tuple(run.pictures.put(k, p.convert("RGB")) for k, p in enumerate(pictures))
    run.apply(Drew(0, hashes, (Cost(),) * len(pictures)))
    return RunSoFar(run, len(pictures))


def with_pictures(so_far: RunSoFar, pictures: Sequence[Picture]) -> RunSoFar:
    """The run with other pictures in place of those that wait for a verdict: somebody has worked on them.

    UserError for another number of them.
    """
    run = so_far.run
    waiting = run.unjudged
    if len(pictures) != len(waiting):
        raise UserError(f"got {len(pictures)} pictures for the {len(waiting)} of the run that wait for a verdict; "
                        "expected as many, in the same order")
    twin, put = Run(run.request, run.chunk, run.pictures.fork()), iter(pictures)
    for entry in run.entries:
        if isinstance(entry, Drew) and entry.first >= waiting[0]:
            ids = range(entry.first, entry.first + len(entry.sha256))
            entry = replace(entry, sha256=tuple(twin.pictures.put(id, next(put).convert("RGB")) for id in ids))
        if not isinstance(entry, Stopped):
            twin.apply(entry)
    return replace(so_far, run=twin)


@dataclass(frozen=True)
class Decision:
    """Whether another round is to be drawn, and what the answer is if not."""

    stop: bool
    kind: str
    """'accepted', 'done', 'budget', or 'go on'."""
    reason: str
    chosen: Candidate


KEEP = ("best", "last", "accepted")


def decide(so_far: RunSoFar, threshold: float = 1.0, rounds: int = MOST_ROUNDS, pictures: int | None = None,
           keep: str = "best") -> Decision:
    """Whether the run goes on. UserError for a run without verdicts, or a setting out of range.

    Args:
        threshold: in [0, 1]; a score from which a picture is good enough, whatever the judge says of it. What
            the judge accepts is good in any case.
        rounds: rounds to draw at most; pictures: pictures to draw at most, None for no limit.
        keep: the answer: 'best' of all, 'best' of the 'last' round, or the first that is 'accepted', and the
            best where none is.
    """
    run = so_far.run
    if not 0.0 <= threshold <= 1.0:
        raise UserError(f"the threshold is {threshold!r}; expected a number from 0 to 1")
    if rounds < 1 or (pictures is not None and pictures < 1):
        raise UserError(f"got {rounds} rounds and a budget of {pictures} pictures; expected 1 or more of each")
    if keep not in KEEP:
        raise UserError(f"keep is {keep!r}; expected one of {', '.join(KEEP)}")
    _expect_verdicts(so_far, "decided on")
    best = run.best()
    good = [c for c in run.candidates if c.accepted or c.score >= threshold]
    chosen = {"best": best, "last": run.best(run.in_round(run.rounds - 1)),
              "accepted": good[0] if good else best}[keep]
    if good:
        reason = (f"the judge accepted candidate {best.id}" if best.accepted else
                  f"candidate {best.id} has a score of {best.score:.2f}, the threshold is {threshold:g}")
        return Decision(True, "accepted", reason, chosen)
    if run.rounds >= rounds:
        drawn = "the round is drawn" if rounds == 1 else f"all {rounds} rounds are drawn"
        return Decision(True, "done", drawn, chosen)
    if pictures is not None and len(run.candidates) + so_far.candidates > pictures:
        return Decision(True, "budget", f"what is left of {pictures} pictures is not enough for another round of "
                                        f"{so_far.candidates}", chosen)
    so_good = f"round {run.rounds} of {rounds} is drawn, the best score is {best.score:.2f}"
    return Decision(False, "go on", so_good, chosen)
