"""The stepper: asks the policy, lets the actors do it, appends what came out. The only loop.

The command line, the tests and the ComfyUI loop all drive this class. One `step()` is one action of
the policy. Whatever an actor returns is appended (and, with a record, on disk) before the next
actor is called, so an error, Ctrl-C or a kill costs at most the call that was in flight:

    plan  ->  [ draw a chunk -> pictures safe -> one line -> judge it -> one line ] ...

The actors are called through `actors.py`, which counts what they answer and what they spend.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from ..types import Cost, Generator, Picture, Refiner, Reflector, Request, UserError, Verdict, Verifier
from .actors import ActorError, Actors, as_recorded, as_texts, expect_pictures
from .budget import Budget
from .entries import Drew, Entry, Judged, Plan, Planned, Refined, Reflected, Stopped
from .events import Event, EventCallback
from .policy import Action, Draw, Judge, Policy, Refine, Reflect, Stop
from .record import TornRecord
from .run import Candidate, Run


class Recorder(Protocol):
    def append(self, entry: Entry) -> None:
        """Return when the entry would survive a kill."""
        ...

    def close(self) -> None: ...


class Stepper:
    """Drives one run. UserError at once if the actors cannot do what policy and budget want.

    `whole` off is for `advance` alone: some of the actors may be missing, whose part somebody else does.
    An actor that reports what it spends, such as a language model, has an attribute for it, see `Actors`.
    """

    def __init__(self, run: Run, policy: Policy, generator: Generator | None, verifier: Verifier | None,
                 reflector: Reflector | None = None, refiner: Refiner | None = None,
                 budget: Budget | None = None, record: Recorder | None = None,
                 on_event: EventCallback | None = None, whole: bool = True) -> None:
        self.so_far = run
        self.policy = policy
        self.budget = budget or Budget()
        self.record = record
        self.on_event = on_event
        self._actors = Actors(generator, verifier, reflector, refiner)
        self._appending = False
        # The clock of the overhead: since `_mark`, of which `_outside` in actors; `_left_over` is what
        # a step spent after its last entry. Time between two steps is the caller's.
        self._mark = time.perf_counter()
        self._outside = self._left_over = 0.0
        for name in sorted(policy.needs | {"generator", "verifier"}):
            if whole and not self._actors.has(name):
                raise UserError(f"the policy {policy.name!r} needs a {name}; got none; try to give one or to "
                                "switch that off in the policy")
        if generator is None:
            return
        if policy.max_context > generator.max_context:
            other = "a smaller 'context' of the policy, or 'reflection_flow', which hands on one pair" \
                if generator.max_context else "a corrector, or the policy 'best_of_n'"
            raise UserError(f"the policy {policy.name!r} hands the generator {policy.max_context} (picture, "
                            f"feedback) pair(s); it takes {generator.max_context}; try {other}")
        if self.budget.denoiser_evaluations is not None and not hasattr(generator, "evaluations"):
            raise UserError("the budget limits denoiser evaluations, but the generator cannot say what a picture "
                            "will take; expected it to have evaluations(request); try to limit pictures")

    @property
    def best(self) -> Candidate | None:
        """The policy's answer so far; None while nothing is judged."""
        return self.policy.choose(self.so_far)

    def close(self) -> None:
        """Close the record, if there is one. The run stays readable."""
        if self.record is not None:
            self.record.close()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> Run:
        """Step until the policy or the budget stops. Returns the run, with `run.stopped` set."""
        while not isinstance(self.step(), Stop):
            pass
        return self.so_far

    def step(self) -> Action:
        """Do one action, or finish the draw that was interrupted, and return it.

        Errors of actors come through; what was appended before them stays, and the next `step()`,
        here or after a resume, tries again what failed.
        """
        self._mark = time.perf_counter() - self._left_over
        try:
            return self._step()
        finally:
            self._left_over = time.perf_counter() - self._mark - self._outside
            self._outside = 0.0

    def advance(self, *kinds: type[Action]) -> Action:
        """Do what comes next as long as it is of these kinds, and return the next action, which is of none.

        For a caller that has only some of the actors, such as a graph whose nodes do one thing each:
        `Draw`, `Judge`, `Reflect` and `Refine` by themselves. A draw judges nothing here, a round is drawn
        whole, and a `Stop` is returned but not put on record. Errors as in `step`.
        """
        self._mark = time.perf_counter() - self._left_over
        try:
            self._check_whole()
            while isinstance(action := self._upcoming(), kinds):
                self._do(action)
            return action
        finally:
            self._left_over = time.perf_counter() - self._mark - self._outside
            self._outside = 0.0

    def _upcoming(self) -> Action:
        """What is to be done now, one thing at a time, without doing it."""
        run = self.so_far
        if run.stopped:
            return Stop(run.stopped.kind, run.stopped.reason)
        if run.unjudged and (run.plan.until_accepted or not run.next_chunk):
            return Judge(run.unjudged)
        if run.next_chunk:
            return Draw(run.plan.round, run.next_chunk, run.plan.until_accepted)
        action = _work(self.policy, self.policy.next(run))
        return action if isinstance(action, Stop) else self._within_budget(action)

    def _do(self, action: Action) -> None:
        if isinstance(action, Draw):
            if not self.so_far.next_chunk:
                self._plan(action)
            self._draw(self.so_far.next_chunk)
        elif isinstance(action, Judge):
            self._judge(action.candidates)
        elif isinstance(action, Reflect):
            self._reflect(action)
        elif isinstance(action, Refine):
            self._refine(action)
        else:
            self._stop(action)

    def _check_whole(self) -> None:
        """UserError if run and record have come apart."""
        if self._appending:
            what_now = ("was interrupted between two steps; it has no record, so it must be started anew"
                        if self.record is None else
                        "was interrupted while it wrote its record; try to resume it from its folder")
            raise UserError(f"this run {what_now}")

    def _step(self) -> Action:
        self._check_whole()
        run = self.so_far
        if run.stopped:
            return Stop(run.stopped.kind, run.stopped.reason)
        if run.unjudged or run.next_chunk:
            action: Action = Draw(run.plan.round, run.plan.planned, run.plan.until_accepted)
            return self._draw_chunks() or action
        action = _work(self.policy, self.policy.next(run))
        if not isinstance(action, Stop):
            action = self._within_budget(action)
        if isinstance(action, Draw):
            self._plan(action)
            return self._draw_chunks() or action
        self._do(action)
        return action

    # The things it can do.

    def _plan(self, action: Draw) -> None:
        self._append(Plan(action.round, action.planned, chunk_sizes(action.requests, self.so_far.chunk),
                          action.until_accepted))
        self._emit("planned", action.round)

    def _draw_chunks(self) -> Stop | None:
        """Draw and judge what the plan has left, chunk by chunk."""
        run = self.so_far
        while run.unjudged or run.next_chunk:
            if not run.unjudged:
                # The plan was trimmed to the budget, but time runs, and a judge may be dearer than it was.
                count, reason = self._room([p.request for p in run.next_chunk])
                if count < len(run.next_chunk):
                    return self._stop(Stop("budget", reason))
                self._draw(run.next_chunk)
            self._judge(run.unjudged)
        return None

    def _draw(self, chunk: Sequence[Planned]) -> None:
        run, round = self.so_far, self.so_far.plan.round
        requests = [run.with_pictures(p.request) for p in chunk]
        drawn, cost = self._call("generator", len(requests), lambda actor: actor.draw(
            requests, lambda at: self._emit("step", round, step=at.step, steps=at.steps, preview=at.preview)))
        expect_pictures(requests, drawn)
        first = len(run.candidates)
        hashes = tuple(run.pictures.put(first + i, one.picture) for i, one in enumerate(drawn))
        run.pictures.settle()
        # A generator that leaves `pictures` at 0 has still drawn one.
        costs = tuple(replace(one.cost, pictures=1) for one in drawn)
        notes = tuple(tuple(map(str, one.notes)) for one in drawn)
        self._append(Drew(first, hashes, costs, cost.seconds, notes if any(notes) else ()), "generator")
        for id in run.unjudged:
            self._emit("drawn", round, candidate=id)

    def _judge(self, ids: tuple[int, ...]) -> None:
        run = self.so_far
        pictures = [run.picture(id) for id in ids]
        verdicts, cost = self._call("verifier", len(ids), lambda actor: actor.judge(run.prompt, pictures))
        verdicts = tuple(as_recorded(v) for v in verdicts)
        self._append(Judged(ids, verdicts, cost, asked=self._actors.asked("verifier")), "verifier")
        for id, verdict in zip(ids, verdicts):
            self._emit("judged", run.candidate(id).round, candidate=id, score=verdict.score,
                       accepted=verdict.accepted, text=verdict.reason)

    def _reflect(self, action: Reflect) -> None:
        run, ids = self.so_far, action.candidates
        pictures, verdicts = self._seen(ids)
        texts, cost = self._call("reflector", len(ids),
                                 lambda actor: actor.reflect(run.prompt, pictures, verdicts))
        texts = as_texts("reflector", texts)
        notes = self._actors.notes("reflector", len(ids))
        self._append(Reflected(action.round, ids, texts, cost, asked=self._actors.asked("reflector"), notes=notes),
                     "reflector")
        for id, text, noted in zip(ids, texts, notes or ((),) * len(ids)):
            self._emit("reflected", action.round, candidate=id, text=text or "; ".join(noted))

    def _refine(self, action: Refine) -> None:
        run, ids = self.so_far, action.candidates
        pictures, verdicts = self._seen(ids)
        # A branch's present prompt is the one its candidate was drawn from: it cannot get out of step.
        currents = [run.candidate(id).request.prompt for id in ids]
        reflections = [run.reflection(id) or "" for id in ids]
        texts, cost = self._call("refiner", len(ids), lambda actor: actor.refine(
            run.prompt, currents, pictures, verdicts, reflections))
        texts = as_texts("refiner", texts)
        notes = self._actors.notes("refiner", len(ids))
        self._append(Refined(action.round, ids, texts, cost, asked=self._actors.asked("refiner"), notes=notes),
                     "refiner")
        for id, text in zip(ids, texts):
            self._emit("refined", action.round, candidate=id, text=text)

    def _stop(self, action: Stop) -> Stop:
        self._append(Stopped(action.kind, action.reason))
        self._emit("stopped", max(self.so_far.rounds - 1, 0), text=action.reason)
        return action

    # What they share.

    def _within_budget(self, action: Action) -> Action:
        """The action, trimmed to what is left, or the stop that takes its place."""
        if isinstance(action, Draw):
            count, reason = self._room(action.requests)
            return replace(action, planned=action.planned[:count]) if count else Stop("budget", reason)
        spent, actor = self._spent(), {Judge: "verifier", Reflect: "reflector", Refine: "refiner"}[type(action)]
        # Also before reflecting: a reflection that nothing can be drawn with is wasted.
        reason = self.budget.exhausted(spent) or self.budget.forbids_calls(
            spent, self._calls(actor) * len(action.candidates), actor)
        return Stop("budget", reason) if reason else action

    def _room(self, requests: Sequence[Request]) -> tuple[int, str]:
        """How many of the requests, from the first on, the budget lets draw and judge, and why not one more."""
        spent, limited = self._spent(), self.budget.denoiser_evaluations is not None
        if reason := self.budget.exhausted(spent):
            return 0, reason
        evaluations = [self._actors.generator.evaluations(r) if limited else 0 for r in requests]
        return self.budget.fits(spent, evaluations, self._calls("verifier"))

    def _spent(self) -> Cost:
        """All that was spent, also by calls that failed; its seconds are the run's wall time."""
        ledger = self.so_far.ledger
        total = ledger.total + self._actors.owed
        return replace(total, seconds=total.seconds + ledger.overhead_seconds + time.perf_counter() - self._mark)

    def _calls(self, actor: str) -> float:
        """Judge calls to reckon with for one item: one, or the most that the actor has taken so far."""
        return max(1.0, self.so_far.ledger.dearest[actor]) if self._actors.counts_calls(actor) else 0.0

    def _seen(self, ids: Sequence[int]) -> tuple[list[Picture], list[Verdict]]:
        return [self.so_far.picture(id) for id in ids], [self.so_far.latest_verdict(id) for id in ids]

    def _call(self, name: str, count: int, ask: Callable[[Any], Any]) -> tuple[list, Cost]:
        """As `Actors.call`; its time is no overhead."""
        started = time.perf_counter()
        try:
            return self._actors.call(name, count, ask)
        finally:
            self._outside += time.perf_counter() - started

    def _append(self, entry: Entry, actor: str | None = None) -> None:
        """Put the entry on record and into the run. `actor`: whose cost it carries."""
        now = time.perf_counter()
        entry = replace(entry, overhead=max(now - self._mark - self._outside, 0.0))
        self._mark, self._outside = now, 0.0
        # An interrupt in between would leave the record one entry ahead of the run.
        self._appending = True
        try:
            if self.record is not None:
                self.record.append(entry)
        except Exception as error:
            # A failed write took back what it had written; run and record still agree. Unless it could not.
            self._appending = isinstance(error, TornRecord)
            raise
        self.so_far.apply(entry)
        if actor is not None:
            self._actors.settle(actor)
        self._appending = False

    def _emit(self, kind: str, round: int, **details: Any) -> None:
        if self.on_event is None:
            return
        most = self.policy.most_pictures
        if self.budget.pictures is not None:
            most = min(most, self.budget.pictures)
        self.on_event(Event(kind, round, pictures=len(self.so_far.candidates), most_pictures=most, **details))


def _work(policy: Policy, action: Any) -> Action:
    """The action. ActorError if it is none or asks for nothing: a run would never come to an end."""
    asked = action.planned if isinstance(action, Draw) else getattr(action, "candidates", None)
    if not asked and not isinstance(action, Stop):
        raise ActorError(f"the policy {policy.name!r} returned {action!r}; expected something to draw, judge, "
                         "reflect on or refine, or a Stop")
    return action


def chunk_sizes(requests: Sequence[Request], chunk: int) -> tuple[int, ...]:
    """How many requests each call gets: up to `chunk` neighbours that differ in nothing that a batch
    must share (size, steps, guidance, number of context pairs)."""
    sizes: list[int] = []
    last = None
    for r in requests:
        shape = (r.width, r.height, r.steps, r.guidance, len(r.context))
        if shape == last and sizes[-1] < chunk:
            sizes[-1] += 1
        else:
            sizes.append(1)
        last = shape
    return tuple(sizes)
