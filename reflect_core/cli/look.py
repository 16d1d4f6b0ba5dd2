"""`reflect show` and `reflect replay`: what a record holds, and whether it comes out again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .. import search
from ..search import POLICIES, policy_from_json
from . import ACCEPTED, NOT_ACCEPTED
from .leave import leave_at_once
from .output import as_document, as_table, dumps, write_report
from .progress import Progress
from .settings import moved_choice


def show(args: argparse.Namespace) -> int:
    """`reflect show RUN`: write the tree as a picture and a page. Needs no model."""
    folder = Path(args.run)
    document = describe(folder, folder if args.out is None else Path(args.out))
    print(dumps(document) if args.json else as_table(document))
    return 0


def describe(folder: Path, out: Path) -> dict[str, Any]:
    """The record in `folder` as a document, its tree written to `out`."""
    header, run = search.load(folder)
    # A policy of somebody else's is not known here; the best picture of all then is the answer.
    known = header.policy.get("name") in list(POLICIES)
    chosen = policy_from_json(header.policy).choose(run) if known else run.best()
    tree, page = write_report(out, run, header, chosen)
    return as_document(folder, run, header, chosen, tree, page)


def replay(args: argparse.Namespace) -> int:
    """`reflect replay RUN`: draw everything again and compare."""
    folder = Path(args.run)
    header, run = search.load(folder)
    choice = moved_choice(args, header.settings.get("model"))
    with Progress(args.quiet) as progress:
        if wrong := choice.base_differs(header.settings.get("model")):
            progress.say(wrong)
        progress.say(f"loading {choice.name}")
        with leave_at_once():
            generator = choice.load()
        progress.say(f"drawing {len(run.candidates)} pictures again")
        report = search.replay(folder, generator, choice.fingerprint(),
                               on_picture=lambda done, total: progress.count(done, total, "compared"))
    if args.json:
        print(dumps({"run": str(folder), "same": report.same, "pictures": report.pictures,
                     "differences": [{"candidate": d.candidate, "largest": d.largest} for d in report.differences],
                     "same_model": report.same_model, "changed_versions": list(report.changed_versions),
                     "resumed": list(report.resumed)}))
    else:
        print(report.summary())
    return ACCEPTED if report.same else NOT_ACCEPTED
