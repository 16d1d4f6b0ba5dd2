"""What a command prints in the end: a short table for people, or one JSON document."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..report import html_page, tree_picture
from ..report.audit import audit_of, compare, comparison_words
from ..report.words import counted
from ..search import Candidate, Header, Run
from ..search.record import PICTURES
from ..text import readable
from ..types import UserError

TREE, PAGE = "tree.png", "index.html"


def write_report(folder: Path, run: Run, header: Header, chosen: Candidate | None) -> tuple[Path, Path]:
    """Write the tree's picture and page into `folder`. UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tree, page = folder / TREE, folder / PAGE
        about = {"header": header, "chosen": chosen}
        for path, write in ((tree, lambda p: tree_picture(run, **about).save(p, "PNG")),
                            (page, lambda p: p.write_text(html_page(run, **about), encoding="utf-8"))):
            replace_file(path, write)
    except OSError as error:
        raise UserError(f"the tree cannot be written to {folder} ({error}); the record is whole; try 'reflect show' "
                        "with another --out") from error
    return tree, page


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Whoever looks at the file while it is written again sees the old one or the new one."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        write(scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def as_document(folder: Path, run: Run, header: Header, chosen: Candidate | None, tree: Path,
                page: Path) -> dict[str, Any]:
    """A run as JSON: the answer, how it stopped, what it cost by actor, and every candidate in short."""
    ledger, audited = run.ledger, compare(run, chosen)
    return {
        "run": str(folder),
        "prompt": run.prompt,
        "seed": run.seed,
        "accepted": chosen is not None and chosen.accepted,
        "best": None if chosen is None else _candidate(folder, chosen),
        "stopped": None if run.stopped is None else {"kind": run.stopped.kind, "reason": run.stopped.reason},
        "pictures": ledger.total.pictures,
        "denoiser_evaluations": ledger.total.denoiser_evaluations,
        "judge_calls": ledger.total.judge_calls,
        "tokens": ledger.total.tokens,
        "not_judged": [c.id for c in run.not_judged],
        "audit": None if audited is None else {"words": comparison_words(audited), **audited.as_json()},
        "seconds": round(ledger.seconds, 3),
        "seconds_by_actor": {name: round(cost.seconds, 3) for name, cost in ledger.by_actor.items()},
        "overhead_seconds": round(ledger.overhead_seconds, 4),
        "overhead_share": round(ledger.overhead_share, 5),
        "model": header.model,
        "policy": header.policy,
        "tree": str(tree),
        "page": str(page),
        "candidates": [_candidate(folder, c) for c in run.candidates],
    }


def _candidate(folder: Path, candidate: Candidate) -> dict[str, Any]:
    verdict, audit = candidate.verdict, audit_of(candidate.verdict)
    return {
        "id": candidate.id, "round": candidate.round, "branch": candidate.branch, "parent": candidate.parent,
        "picture": str(picture_path(folder, candidate)), "seed": candidate.request.seed,
        "prompt": candidate.request.prompt,
        "reflection": "; ".join(p.feedback for p in candidate.request.context) or None,
        "score": None if verdict is None else verdict.score, "accepted": candidate.accepted,
        "judged": candidate.judged,
        "reason": None if verdict is None else verdict.reason,
        "audit": audit.score if audit is not None and audit.judged else None,
    }


def picture_path(folder: Path, candidate: Candidate) -> Path:
    return folder / PICTURES / f"{candidate.id:05d}.png"


def as_table(document: dict[str, Any]) -> str:
    """The document's main points, a line each."""
    best = document["best"]
    rows = []
    if best is not None:
        outcome = f"{best['score']:.2f}, {'accepted' if best['accepted'] else 'not accepted'}"
        rows += [("picture", best["picture"]), ("score", outcome if best["judged"] else "not judged"),
                 ("reason", best["reason"])]
    if document["audit"] is not None:
        rows.append(("audit", document["audit"]["words"]))
    stopped = document["stopped"]
    rows.append(("stopped", stopped["reason"] if stopped else "not yet; "
                 f"go on with: {resume_command(document['run'])}"))
    spent = (counted(document[name], noun) for name, noun in (
        ("pictures", "picture"), ("denoiser_evaluations", "denoiser evaluation"), ("judge_calls", "judge call"),
        *([("tokens", "judge's token")] if document["tokens"] else [])))
    rows.append(("drawn", ", ".join(spent)))
    if missed := document["not_judged"]:
        some = ", ".join(map(str, missed[:8])) + (", ..." if len(missed) > 8 else "")
        rows.append(("missed", f"{counted(len(missed), 'picture')} could not be judged: candidate {some}"))
    rows += [("seconds", f"{document['seconds']:.1f}, of which the search itself {document['overhead_share']:.1%}"),
             ("record", document["run"]), ("tree", document["tree"]), ("page", document["page"])]
    return "\n".join(f"{name:8} {readable(value)}" for name, value in rows)


def resume_command(folder: str | Path) -> str:
    """What to type to go on with a run."""
    return f"reflect resume {shlex.quote(str(folder))}"


def dumps(document: Any) -> str:
    # NaN is no JSON: other readers than Python's would refuse the whole document.
    return json.dumps(document, indent=1, allow_nan=False)
