"""An earlier benchmark's JSON beside this one's rows: a table of models that need not all be run again.

Its numbers are taken as they are. What would make the rows another thing, other prompts or another judge, is an error.
Differences are paired by prompt and were computed then, so that none go across.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..model_files import read_json
from ..types import UserError
from .statistics import named

ALIKE = ("evaluation_set", "tasks", "limit", "flip", "width", "height")
"""Settings that must be the same; models, steps, guidance, seed and policies are a row's own."""
TABLES = ("results", "differences", "curves", "fixes", "families")


def read_beside(path: str | Path, label: str, settings: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document of `bench shapes --json FILE`, `label` behind the rows of a model that has none.

    UserError if it is no such file, or one of another benchmark than `settings`.
    """
    path = Path(path)
    document = read_json(path, "expected what bench shapes --json wrote")
    theirs, models = document.get("settings"), document.get("models")
    if not (isinstance(theirs, list) and theirs and all(isinstance(one, dict) for one in theirs)
            and isinstance(models, list) and all(isinstance(document.get(name), dict) for name in TABLES)):
        raise UserError(f"{path}: is not what bench shapes --json writes; expected such a file of this version")
    for name in ALIKE:
        other = {json.dumps(one.get(name)) for one in (*theirs, *settings)}
        if len(other) > 1:
            raise UserError(f"{path}: was measured with another {name} ({' and '.join(sorted(other))}); expected rows "
                            "that can stand side by side")
    return _labelled(document, label)


def together(mine: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One summary of models that each have a label of their own; the others' rows come first."""
    every = [*others, mine]
    judges = list(mine["results"])
    return {**mine, "models": [model for one in every for model in one["models"]],
            "families": {k: v for one in every for k, v in one["families"].items()},
            **{name: {judge: {k: v for one in every for k, v in one[name].get(judge, {}).items()} for judge in judges}
               for name in ("results", "curves")},
            "differences": {judge: [d for one in every for d in one["differences"].get(judge, [])] for judge in judges},
            "fixes": {k: v for one in every for k, v in one["fixes"].items()}}


def _labelled(document: dict[str, Any], label: str) -> dict[str, Any]:
    """With `label` behind the rows of the model without one, if there is such a model."""
    if "" not in document["models"]:
        return document
    return {**document, "models": [label], "families": {label: document["families"][""]},
            "fixes": {label: document["fixes"][""]},
            **{name: {judge: {named(policy, label): row for policy, row in rows.items()}
                      for judge, rows in document[name].items()} for name in ("results", "curves")},
            "differences": {judge: [{**d, "policy": named(d["policy"], label), "against": named(d["against"], label)}
                                    for d in found] for judge, found in document["differences"].items()}}
