"""What is said above a tree, in the picture and on the page alike."""

from __future__ import annotations

from ..search.header import Header
from ..search.run import Candidate, Run
from ..text import readable
from ..types import Verdict
from .audit import audit_of, audit_words


def role(run: Run, chosen: Candidate) -> str:
    """'best', or 'chosen' where a policy or a user preferred another one to the best."""
    best = run.best()
    return "best" if best is None or best.id == chosen.id else "chosen"


def outcome(run: Run, chosen: Candidate | None) -> str:
    """How the run ended, or that it has not yet, in a sentence."""
    if chosen is None:
        return "nothing is judged yet"
    if not chosen.judged:
        return f"no picture could be judged; candidate {chosen.id} is the first ({chosen.verdict.reason})"
    said = f"candidate {chosen.id} with a score of {chosen.score:.2f}"
    if chosen.accepted:
        return f"accepted: {said}"
    who = {"best": "the best", "chosen": "the chosen one"}[role(run, chosen)]
    if run.stopped is None:
        return f"not finished; {who} so far is {said}"
    return f"not accepted; {who} is {said} ({run.stopped.reason})"


def verdict_lines(verdict: Verdict) -> str:
    """A verdict in lines: the outcome, the reason, then each check."""
    outcome = f"score {verdict.score:.2f}, {'accepted' if verdict.accepted else 'not accepted'}"
    lines = [outcome if verdict.judged else "not judged"]
    lines += [verdict.reason] if verdict.reason else []
    lines += [f"[{'x' if check.passed else ' '}] {check.kind} {check.target}{': ' + check.note if check.note else ''}"
              for check in verdict.checks]
    if audit := audit_of(verdict):
        lines.append(f"{audit_words(verdict)}{': ' + audit.reason if audit.reason else ''}")
    return "\n".join(readable(line) for line in lines)


def spent(run: Run) -> str:
    """What the run cost, in a line."""
    total = run.ledger.total
    parts = [counted(total.pictures, "picture"), counted(total.denoiser_evaluations, "denoiser evaluation"),
             counted(total.judge_calls, "judge call"),
             *([counted(total.tokens, "judge's token")] if total.tokens else []), f"{run.ledger.seconds:.1f} s"]
    return ", ".join(parts)


def setting(run: Run, header: Header | None) -> str:
    """Model, policy, seed, steps and guidance, in a line."""
    parts = []
    if header is not None:
        parts += [header.model, str(header.policy.get("name", "")).replace("_", " ")]
    request = run.request
    parts += [f"seed {request.seed}", f"{request.steps} steps", f"guidance {request.guidance:g}"]
    return ", ".join(part for part in parts if part)


def counted(number: int, noun: str) -> str:
    """'1 picture', '2,000 pictures'."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
