"""From rows to numbers: success with intervals (`intervals.py`), costs, paired differences, fix rates.

The unseen pairs have a column, and a row among the fix rates, but no part in any number over all tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..shapes.repair import KINDS
from ..shapes.sample import TASKS
from .entrants import MOST, REFLECT_DIT, REFLECTION
from .fixes import OWN, SYNTHETIC
from .intervals import mean_of_differences, mean_of_shares, wilson
from .shapes import UNSEEN

ALL = "all"
COSTS = ("pictures", "evaluations", "judge_calls", "seconds")


def summarise(units: Sequence[dict[str, Any]], families: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Everything that the report says, as JSON: by judge and policy, the claims, and the fix rates.

    `families` of the models by their labels: models of one family are compared with each other. Without it each is one
    of its own.
    """
    rows = [{**row, "column": unit["column"], "policy": named(row["policy"], unit["model"])}
            for unit in units for row in unit["runs"]]
    models = list(dict.fromkeys(unit["model"] for unit in units))
    families = {model: (families or {}).get(model, model) for model in models}
    judges = list(dict.fromkeys(row["judge"] for row in rows))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    of = {(judge, policy): found for judge in judges for policy in policies
          if (found := [r for r in rows if r["judge"] == judge and r["policy"] == policy])}
    return {
        "prompts": {c: len({r["prompt"] for r in rows if r["column"] == c}) for c in columns_of(rows)},
        "models": models,
        "families": families,
        "results": {judge: {policy: _row(of[judge, policy]) for policy in policies if (judge, policy) in of}
                    for judge in judges},
        "differences": {judge: _differences([r for r in rows if r["judge"] == judge], families) for judge in judges},
        "curves": {judge: {policy: _curves(of[judge, policy]) for policy in policies if (judge, policy) in of}
                   for judge in judges},
        "fixes": {model: _fixes([f for unit in units if unit["model"] == model for f in unit["fixes"]])
                  for model in models},
        "code": list(dict.fromkeys(unit["code"] for unit in units)),
        "pictures_drawn": sum(unit["pictures_drawn"] for unit in units),
        "seconds": round(sum(unit["seconds"] for unit in units), 1),
    }


def named(policy: str, model: str) -> str:
    """A row's name: the policy's and, where there are several, the model's."""
    return f"{policy} ({model})" if model else policy


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    there = {row["column"] for row in rows}
    return [column for column in (*TASKS, UNSEEN) if column in there]


def _row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One policy under one judge."""
    by_column = {c: [float(r["right"]) for r in rows if r["column"] == c] for c in columns_of(rows)}
    tasks = [values for column, values in by_column.items() if column != UNSEEN]
    counted = [r for r in rows if r["column"] != UNSEEN] or rows
    every = [value for values in tasks for value in values]
    row: dict[str, Any] = {"success": {c: _share(values) for c, values in by_column.items()}}
    if tasks:
        row["mean of tasks"] = {"mean": float(np.mean([np.mean(v) for v in tasks])), "interval": mean_of_shares(tasks)}
        row["mean of prompts"] = _share(every)
    row["cost"] = {cost: float(np.mean([r[cost] for r in counted])) for cost in COSTS}
    return row


def _share(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "interval": wilson(int(sum(values)), len(values)), "count": len(values)}


BEST_OF_N = "best of "
COMPARED = (f"{REFLECTION} {MOST}", f"{REFLECT_DIT} {MOST}")
AGAINST = (f"best of {MOST}", "best of 64", f"noise + prompt {MOST}", f"{REFLECT_DIT} {MOST}, shuffled words")


def _differences(rows: Sequence[dict[str, Any]], families: Mapping[str, str]) -> list[dict[str, Any]]:
    """Paired differences on the same prompts: on compose, and over all tasks."""
    right = {(r["policy"], r["column"], r["prompt"]): float(r["right"]) for r in rows}
    found = []
    policies = list(dict.fromkeys(r["policy"] for r in rows))
    for ours in (p for p in policies if _plain(p) in COMPARED):
        for theirs in (p for p in policies if _compared(ours, p, families)):
            pairs = {(c, p): right[ours, c, p] - right[theirs, c, p] for o, c, p in right
                     if o == ours and c != UNSEEN and (theirs, c, p) in right}
            for where in ("compose", "overall"):
                groups = [[d for (c, _), d in pairs.items() if c == column] for column in TASKS
                          if where in ("overall", column)]
                groups = [group for group in groups if group]
                if groups:
                    every = [d for group in groups for d in group]
                    found.append({"policy": ours, "against": theirs, "on": where,
                                  "difference": float(np.mean([np.mean(g) for g in groups])),
                                  "interval": mean_of_differences([[(d,) for d in group] for group in groups]),
                                  "won": sum(d > 0 for d in every), "lost": sum(d < 0 for d in every),
                                  "count": len(every)})
    return found


def _compared(ours: str, theirs: str, families: Mapping[str, str]) -> bool:
    """Against others of the same model, and of another one of its family, which may be the same but for its training,
    against best of n and the very same policy; that once for each two models."""
    mine, other = _model(ours), _model(theirs)
    if mine == other:
        return _plain(theirs) in AGAINST
    if families[mine] != families[other]:
        return False
    if _plain(theirs) == _plain(ours):
        return list(families).index(mine) < list(families).index(other)
    return _plain(theirs) in AGAINST and theirs.startswith(BEST_OF_N)


def _plain(policy: str) -> str:
    return policy.partition(" (")[0]


def _model(policy: str) -> str:
    return policy.partition(" (")[2].removesuffix(")")


def _curves(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Success after k pictures at most, and the evaluations spent by then: overall and on compose."""
    curves = {}
    for where in ("overall", "compose"):
        columns = [c for c in columns_of(rows) if c != UNSEEN and where in ("overall", c)]
        groups = [[r for r in rows if r["column"] == column] for column in columns]
        if groups:
            most = max(len(r["curve"]) for group in groups for r in group)
            curves[where] = {
                "success": [_mean_of_means(groups, lambda r, k=k: int(r["curve"][min(k, len(r["curve"]) - 1)]))
                            for k in range(most)],
                "evaluations": [_mean_of_means(groups, lambda r, k=k: r["evaluations"] * min(k + 1, r["pictures"])
                                               / r["pictures"]) for k in range(most)],
            }
    return curves


def _mean_of_means(groups: Sequence[Sequence[dict]], value: Callable[[dict], float]) -> float:
    return float(np.mean([np.mean([value(row) for row in group]) for group in groups]))


def _fixes(fixes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    of_tasks = [fix for fix in fixes if not fix["unseen"]]
    return {
        "by task": _fix_table({**{task: [f for f in of_tasks if f["task"] == task] for task in TASKS},
                               UNSEEN: [f for f in fixes if f["unseen"]], ALL: of_tasks}),
        "by kind": _fix_table({**{kind: [f for f in of_tasks if f["kind"] == kind] for kind in KINDS},
                               ALL: of_tasks}),
    }


def _fix_table(rows: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Fix rates by the name of a row; without rows of which there is nothing to say."""
    table = {name: {source: _fix_cell([f for f in mine if f["source"] == source]) for source in (OWN, SYNTHETIC)}
             for name, mine in rows.items()}
    return {name: cells for name, cells in table.items() if any(cell["count"] for cell in cells.values())}


def _fix_cell(fixes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    count, untouched = len(fixes), sum(f["untouched"] for f in fixes)
    if not count:
        return {"count": 0}
    # Two flawed pictures of one prompt have that prompt's difficulty in common.
    clusters: dict[str, list[int]] = {}
    for f in fixes:
        clusters.setdefault(f["prompt"], []).append(f["fixed"] - f["fresh"])
    fixed, fresh = sum(f["fixed"] for f in fixes), sum(f["fresh"] for f in fixes)
    return {
        "count": count, "prompts": len(clusters), "fix_rate": fixed / count, "fresh_rate": fresh / count,
        "difference": (fixed - fresh) / count, "interval": mean_of_differences([clusters.values()]),
        "better": sum(f["after"] > f["before"] for f in fixes) / count,
        "worse": sum(f["after"] < f["before"] for f in fixes) / count,
        "untouched": untouched, "drift": 1 - sum(f["kept"] for f in fixes) / untouched if untouched else None,
    }
