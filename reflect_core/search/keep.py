"""A run that was handed around, as a record: written in one go, read back to be gone on with."""

from __future__ import annotations

import os
from typing import Any

from ..types import UserError
from .budget import Budget
from .header import Header
from .record import Record, load
from .relay import RunSoFar
from .run import Candidate


def header_of(so_far: RunSoFar) -> Header:
    """The first line of its record. UserError if the settings hold a secret, when it is written."""
    return Header(so_far.run.request, so_far.policy_drawn().to_json(), Budget(), so_far.run.chunk, so_far.model,
                  so_far.fingerprint, so_far.settings)


def save(so_far: RunSoFar, folder: str | os.PathLike) -> None:
    """Write the run as a record that `reflect show`, `replay` and `resume` read.

    UserError if the folder cannot be written or holds a record already; a run with pictures from outside
    can be shown, but nobody can draw those again.
    """
    with Record.create(folder, header_of(so_far)) as record:
        for candidate in so_far.run.candidates:
            sha256 = record.run.pictures.put(candidate.id, so_far.run.picture(candidate.id))
            if sha256 != candidate.sha256:
                raise UserError(f"the picture of candidate {candidate.id} is not the one that was drawn; try to run "
                                "the graph again")
        record.run.pictures.settle()
        for entry in so_far.run.entries:
            record.append(entry)


def load_run(folder: str | os.PathLike) -> RunSoFar:
    """The run on record in `folder`, to be looked at or gone on with. UserError as `search.load`."""
    header, run = load(folder)
    branches = header.policy.get("branches") or len(run.in_round(run.rounds - 1)) or 1
    return RunSoFar(run, branches, header.model, header.fingerprint, header.settings,
                    context=header.policy.get("context") or 1)


def compact(so_far: RunSoFar) -> dict[str, Any]:
    """The run in short, without pictures: for a picture's metadata and for reports."""
    run, header = so_far.run, header_of(so_far)
    return {"reflect": header.versions["reflect"], "prompt": run.prompt, "seed": run.seed, "model": so_far.model,
            "fingerprint": so_far.fingerprint[:16], "size": [run.request.width, run.request.height],
            "steps": run.request.steps, "guidance": run.request.guidance,
            "candidates": [_in_short(run, c) for c in run.candidates]}


def _in_short(run, candidate: Candidate) -> dict[str, Any]:
    request, verdict = candidate.request, candidate.verdict
    short: dict[str, Any] = {"id": candidate.id, "round": candidate.round, "seed": request.seed}
    if candidate.parent is not None:
        short["parent"] = candidate.parent
    if request.prompt != run.prompt:
        short["prompt"] = request.prompt
    if request.context:
        short["reflection"] = "; ".join(pair.feedback for pair in request.context)
    if verdict is not None:
        short |= {"score": round(verdict.score, 4), "accepted": verdict.accepted, "reason": verdict.reason}
    return short
