"""Whether a run that is handed around goes on, and what its answer is if not."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..types import UserError
from .entries import Stopped
from .relay import RunSoFar, expect_verdicts
from .run import Candidate


@dataclass(frozen=True)
class Decision:
    """Whether another round is to be drawn, and what the answer is if not."""

    stop: bool
    kind: str
    """'accepted', 'done', 'budget', or 'go on'."""
    reason: str
    chosen: Candidate


KEEP = ("best", "last", "accepted")


def decide(so_far: RunSoFar, threshold: float = 1.0, rounds: int | None = None, pictures: int | None = None,
           keep: str = "best") -> Decision:
    """Whether the run goes on. UserError for a run without verdicts, or a setting out of range.

    Args:
        threshold: in [0, 1]; a score from which a picture is good enough, whatever the judge says of it. What
            the judge accepts is good in any case.
        rounds, pictures: how many to draw at most; None for no limit.
        keep: the answer: 'best' of all, 'best' of the 'last' round, or the first that is 'accepted', and the
            best where none is.
    """
    run = so_far.run
    if not 0.0 <= threshold <= 1.0:
        raise UserError(f"the threshold is {threshold!r}; expected a number from 0 to 1")
    if (rounds is not None and rounds < 1) or (pictures is not None and pictures < 1):
        raise UserError(f"got {rounds} rounds and a budget of {pictures} pictures; expected 1 or more of each")
    if keep not in KEEP:
        raise UserError(f"keep is {keep!r}; expected one of {', '.join(KEEP)}")
    expect_verdicts(so_far, "decided on")
    best = run.best()
    good = [c for c in run.candidates if c.accepted or c.score >= threshold]
    chosen = {"best": best, "last": run.best(run.in_round(run.rounds - 1)),
              "accepted": good[0] if good else best}[keep]
    if good:
        reason = (f"the judge accepted candidate {best.id}" if best.accepted else
                  f"candidate {best.id} has a score of {best.score:.2f}, the threshold is {threshold:g}")
        return Decision(True, "accepted", reason, chosen)
    if rounds is not None and run.rounds >= rounds:
        drawn = "the round is drawn" if rounds == 1 else f"all {rounds} rounds are drawn"
        return Decision(True, "done", drawn, chosen)
    if pictures is not None and len(run.candidates) + so_far.candidates > pictures:
        return Decision(True, "budget", f"what is left of {pictures} pictures is not enough for another round of "
                                        f"{so_far.candidates}", chosen)
    so_good = f"{run.rounds} of {rounds or 'any number of'} rounds are drawn, the best score is {best.score:.2f}"
    return Decision(False, "go on", so_good, chosen)


def finish(so_far: RunSoFar, decision: Decision) -> RunSoFar:
    """The run with its end and its answer on record. It can still be gone on from."""
    run = so_far.run.fork()
    run.apply(Stopped(decision.kind, decision.reason))
    return replace(so_far, run=run, chosen=decision.chosen.id)
