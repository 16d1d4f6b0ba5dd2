"""A run that goes from hand to hand: each hand does one thing and passes a new run on.

For graphs whose nodes draw, judge, reflect and refine by themselves, in whatever order they are wired.
What is handed on is a `RunSoFar` that never changes: an earlier one can be gone on from again, in
another way. Everything is done by the stepper and by the policies that the command line has. Which
policy draws the next round follows from what was said about the last one:

- reflected on: corrections (`ReflectionFlow`), of prompts that were refined, if they were; or, for a model that is
  shown several pairs, the next picture with those in view (`ReflectDiTSearch`);
- refined only: fresh pictures of the refined prompts (`NoisePromptScaling`);
- neither: fresh pictures (`BestOfN`).

So rounds of corrections come out as those of `ReflectionFlow(pool=n, branches=n)`, to the bit. Once a
picture is accepted, every hand passes the run on as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..types import Cost, Generator, Picture, Refiner, Reflector, Request, UserError, Verifier
from . import codec
from .best_of_n import BestOfN
from .entries import Drew, Entry, Plan, Planned, Resumed
from .events import EventCallback
from .header import refuse_secrets, versions_here
from .noise_prompt import NoisePromptScaling
from .policy import Draw, Judge, Policy, Refine, Reflect
from .reflect_dit import ReflectDiTSearch
from .reflection_flow import EDITING, ReflectionFlow
from .run import Run
from .stepper import Stepper


@dataclass(frozen=True, repr=False)
class RunSoFar:
    """A run as it is at one moment. Nobody changes `run` once it is in here."""

    run: Run
    candidates: int = 1
    """Branches: pictures of a round after the first."""
    model: str = ""
    fingerprint: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """These three are for the record's header."""
    policy: Policy | None = None
    """The policy of a run that was searched in one piece; None where each round had its own."""
    chosen: int | None = None
    """The answer's candidate, once somebody has decided."""
    context: int = 1
    """Pairs that the model is shown at most. With more than one, and one candidate a round, corrections are
    Reflect-DiT's."""
    edits: bool = False
    """The model is an editor, the depth of whose pictures is bounded."""

    def __repr__(self) -> str:
        # ComfyUI prints the inputs of a node that failed.
        return f"<run of {len(self.run.candidates)} candidates in {self.run.rounds} rounds>"

    @property
    def in_context(self) -> bool:
        return self.context > 1 and self.candidates == 1

    @property
    def max_depth(self) -> int | None:
        return EDITING["max_depth"] if self.edits else None

    def policy_drawn(self) -> Policy:
        """The policy that comes nearest to how the run was drawn, at its end: for the record's header."""
        run, n, rounds = self.run, self.candidates, max(self.run.rounds - 1, 1)
        if self.policy is not None:
            return self.policy
        if self.in_context and any(c.request.context for c in run.candidates):
            return ReflectDiTSearch(rounds + 1, self.context)
        if any(c.request.context for c in run.candidates):
            refined = any(c.request.original_prompt is not None for c in run.candidates)
            return ReflectionFlow(max(len(run.in_round(0)), 1), n, rounds, refine=refined, max_depth=self.max_depth)
        if any(c.request.original_prompt is not None for c in run.candidates):
            return NoisePromptScaling(n, rounds + 1)
        return BestOfN(max(len(run.candidates), 1))


def next_policy(so_far: RunSoFar) -> Policy:
    """Who draws the next round."""
    run, n = so_far.run, so_far.candidates
    if _said(run.reflection, run):
        return _corrections(so_far, refine=_said(run.refinement, run))
    if _said(run.refinement, run):
        return _rewritten(so_far)
    return BestOfN(len(run.candidates) + n, early_stop=False)


# One round more than there is: when to stop is the caller's to say.


def _corrections(so_far: RunSoFar, refine: bool = False) -> Policy:
    n = so_far.candidates
    if so_far.in_context and not refine:
        return ReflectDiTSearch(so_far.run.rounds + 1, so_far.context, early_stop=False)
    return ReflectionFlow(n, n, so_far.run.rounds + 1, refine=refine, early_stop=False, max_depth=so_far.max_depth)


def _rewritten(so_far: RunSoFar) -> NoisePromptScaling:
    return NoisePromptScaling(so_far.candidates, so_far.run.rounds + 1, early_stop=False)


def _said(look_up, run: Run) -> bool:
    """Whether something was said, for the next round, about a candidate of the run."""
    return any(look_up(c.id, run.rounds) is not None for c in run.candidates)


def draw(so_far: RunSoFar | None, request: Request, candidates: int, generator: Generator,
         on_event: EventCallback | None = None, first: int | None = None, model: str = "", fingerprint: str = "",
         settings: dict[str, Any] | None = None) -> RunSoFar:
    """The next round: `candidates` pictures, in the way that the module says.

    `request` is the user's. Its seed, size, steps and guidance hold from here on, also where the run has
    had others; its prompt must be the run's. `first`: pictures of the first round, None for as many as
    in the others; the best `candidates` of them are gone on with. The rest is for records. UserError for
    another prompt, or what cannot be drawn.
    """
    settings = settings or {}
    if so_far is None:
        run = Run(request, first or candidates)
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
        if so_far.fingerprint:
            _note_changes(so_far, run, {**so_far.settings, **settings})
            model, fingerprint, settings = so_far.model, so_far.fingerprint, so_far.settings
        else:
            settings = {**so_far.settings, **settings}
    known = so_far is not None and so_far.fingerprint
    context = so_far.context if known else generator.max_context
    edits = so_far.edits if known else getattr(generator, "edits", False)
    after = RunSoFar(run, candidates, model, fingerprint, settings, context=max(context, 1), edits=edits)
    policy = BestOfN(run.chunk, early_stop=False) if so_far is None else next_policy(after)
    Stepper(run, policy, generator, None, on_event=on_event, whole=False).advance(Draw)
    if not run.unjudged:
        raise UserError(f"{so_far.candidates} pictures were reflected on or refined for the next round, which is to "
                        f"have {candidates} candidates; try candidates {so_far.candidates}")
    return after


def _note_changes(so_far: RunSoFar, run: Run, settings: dict[str, Any]) -> None:
    """Another model, or the same otherwise: the header keeps what drew first, the change has a line of its own."""
    before = run.resumed[-1][1].settings if run.resumed else so_far.settings
    settings = codec.plain(settings)
    if settings.get("model") != codec.plain(before).get("model"):
        refuse_secrets(settings)
        run.apply(Resumed(versions_here(), settings))


def judge(so_far: RunSoFar, verifier: Verifier, on_event: EventCallback | None = None) -> RunSoFar:
    """A verdict on every picture that waits for one. UserError for a run without pictures."""
    if not so_far.run.candidates:
        raise UserError("the run has no pictures to judge; expected one or more; try to put a sampler before")
    if not so_far.run.unjudged:
        return so_far
    after = replace(so_far, run=so_far.run.fork())
    Stepper(after.run, next_policy(after), None, verifier, on_event=on_event, whole=False).advance(Judge)
    return after


def reflect(so_far: RunSoFar, reflector: Reflector, on_event: EventCallback | None = None) -> RunSoFar:
    """What should change in each picture that the next round corrects."""
    if so_far.run.accepted:
        return so_far
    expect_verdicts(so_far, "reflected on")
    if _said(so_far.run.refinement, so_far.run):
        raise UserError("the prompts of the next round were refined before it was said what is wrong with the pictures"
                        "; expected the other order; try the Reflector first, then the Prompt Refiner")
    after = replace(so_far, run=so_far.run.fork())
    Stepper(after.run, _corrections(after), None, None, reflector, on_event=on_event, whole=False).advance(Reflect)
    return after


def refine(so_far: RunSoFar, refiner: Refiner, on_event: EventCallback | None = None) -> RunSoFar:
    """The prompts of the next round in other words: of the pictures that it corrects, if they were
    reflected on, else of all of the last round."""
    if so_far.run.accepted:
        return so_far
    expect_verdicts(so_far, "refined")
    after = replace(so_far, run=so_far.run.fork())
    reflected = _said(after.run.reflection, after.run)
    if reflected and after.in_context:
        raise UserError("a model that is shown several pictures draws the user's own prompt; expected no refined one "
                        "after a reflection; try to leave the Prompt Refiner out, or several candidates a round")
    policy = _corrections(after, refine=True) if reflected else _rewritten(after)
    Stepper(after.run, policy, None, None, refiner=refiner, on_event=on_event, whole=False).advance(Refine)
    return after


def expect_run(so_far: RunSoFar | None) -> None:
    """UserError for no run at all: what a loop's start hands on before anything is drawn."""
    if so_far is None:
        raise UserError("there is no run yet; expected one with pictures; try to put Reflect-Sample and a Verifier "
                        "before")


def expect_verdicts(so_far: RunSoFar, what: str) -> None:
    """UserError unless every picture of the run is judged, and there is one."""
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

    UserError for another number of them. A run that was accepted, and drew nothing, is passed on.
    """
    run = so_far.run
    if run.accepted:
        return so_far
    waiting = run.unjudged
    if len(pictures) != len(waiting):
        raise UserError(f"got {len(pictures)} pictures for the {len(waiting)} of the run that wait for a verdict; "
                        "expected as many, in the same order")
    held, put = run.pictures.fork(), iter(pictures)

    def swapped(entry: Entry) -> Entry:
        if not isinstance(entry, Drew) or entry.first < waiting[0]:
            return entry
        ids = range(entry.first, entry.first + len(entry.sha256))
        return replace(entry, sha256=tuple(held.put(id, next(put).convert("RGB")) for id in ids))

    return replace(so_far, run=run.fork([swapped(entry) for entry in run.entries], held))
