"""How a judge and its audit went together over a run, so that over-optimising the judge is seen.

The audit is a second judge's word on the same picture, which decided nothing (`verifiers/rewards/audited.py`); it lies
in a verdict's details. A search finds what its judge likes. If the audit of what it chose is below what it was earlier
in the run, or below the audit's own best, the search found mistakes of its judge and not better pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..generators.checking import is_number
from ..ranks import rank_correlation
from ..search.run import Candidate, Run, rank
from ..types import Check, Verdict
from ..verifiers.rewards.audited import KEY


@dataclass(frozen=True)
class Audit:
    """What the second judge said of a picture."""

    score: float
    accepted: bool
    judged: bool
    """False: it could not say."""
    reason: str
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Both:
    """One picture with both scores."""

    candidate: int
    judge: float
    audit: float


@dataclass(frozen=True)
class Course:
    """After so many pictures with both scores: the judge's best of them, and the highest audit of them."""

    pictures: int
    best: Both
    most: float


@dataclass(frozen=True)
class Comparison:
    """Judge and audit over the pictures that both could judge, by the first verdicts, which decide the answer."""

    both: tuple[Both, ...]
    chosen: Both | None
    """The run's answer; None where one of the two could not judge it."""
    best: Both
    """The audit's best; of equal ones the judge's better."""
    correlation: float | None
    """Spearman's; None where one of the two gave all the same score."""
    course: tuple[Course, ...]
    """Whenever the judge's best changed."""

    @property
    def pictures(self) -> int:
        return len(self.both)

    def as_json(self) -> dict[str, Any]:
        """Without both scores of every picture."""
        kept = {name: value for name, value in asdict(self).items() if name != "both"}
        return {"pictures": self.pictures, **kept, "course": [asdict(at) for at in self.course]}


def audit_of(verdict: Verdict | None) -> Audit | None:
    """The audit in a verdict, if there is one that makes sense: a record may hold anything there."""
    found = verdict.details.get(KEY) if verdict is not None else None
    if not isinstance(found, Mapping) or not is_number(found.get("score")):
        return None
    checks = found.get("checks")
    return Audit(float(found["score"]), found.get("accepted") is True, found.get("judged") is not False,
                 str(found.get("reason") or ""), tuple(
                     Check(str(check.get("kind", "")), str(check.get("target", "")), check.get("passed") is True,
                           str(check.get("note", "")))
                     for check in (checks if isinstance(checks, list) else []) if isinstance(check, Mapping)))


def audit_words(verdict: Verdict | None) -> str:
    """'audit 0.62', or '' where there is none."""
    audit = audit_of(verdict)
    if audit is None:
        return ""
    return f"audit {audit.score:.2f}" if audit.judged else "audit: not judged"


def compare(run: Run, chosen: Candidate | None) -> Comparison | None:
    """None for a run whose pictures were not judged twice. `chosen` is the run's answer."""
    both: list[Both] = []
    course: list[Course] = []
    best: Candidate | None = None
    for candidate in run.candidates:
        audit = audit_of(candidate.verdict)
        if audit is None or not audit.judged or not candidate.judged:
            continue
        both.append(Both(candidate.id, candidate.score, audit.score))
        if best is None or rank(candidate.verdict) > rank(best.verdict):
            best = candidate
            course.append(Course(len(both), both[-1], max(one.audit for one in both)))
    if not both:
        return None
    answer = next((one for one in both if chosen is not None and one.candidate == chosen.id), None)
    return Comparison(tuple(both), answer, max(both, key=lambda one: (one.audit, one.judge)),
                      rank_correlation([one.judge for one in both], [one.audit for one in both]), tuple(course))


def comparison_words(comparison: Comparison) -> str:
    """How the two went together, in a sentence or two."""
    chosen, best = comparison.chosen, comparison.best
    parts = ["the answer could not be audited" if chosen is None else
             f"judge {chosen.judge:.2f}, audit {chosen.audit:.2f}"]
    if chosen is not None and best.audit <= chosen.audit:
        parts.append("no picture has a better audit")
    else:
        parts.append(f"the audit's own best is candidate {best.candidate}: judge {best.judge:.2f}, "
                     f"audit {best.audit:.2f}")
    if comparison.correlation is None:
        parts.append(f"no rank correlation over {comparison.pictures} pictures, one of the two gave equal scores")
    else:
        parts.append(f"rank correlation {comparison.correlation:.2f} over {comparison.pictures} pictures")
    return "; ".join([*parts, *_fall(comparison)])


def _fall(comparison: Comparison) -> list[str]:
    """That the audit of the judge's best fell while the judge's score of it rose, where it did."""
    last, peak = comparison.course[-1], max(comparison.course, key=lambda at: at.best.audit)
    if peak.best.audit <= last.best.audit or peak.best.judge >= last.best.judge:
        return []
    return [f"since picture {peak.pictures} the judge's best rose from {peak.best.judge:.2f} to {last.best.judge:.2f} "
            f"while its audit fell from {peak.best.audit:.2f} to {last.best.audit:.2f}, a sign of over-optimising"]
