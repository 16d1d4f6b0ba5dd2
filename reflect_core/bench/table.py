"""The shapes benchmark as tables in Markdown: aligned for a terminal, ready for a README."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .fixes import OWN, SYNTHETIC
from .shapes import ERRING, EXACT
from .statistics import ALL

SHORT = {"single_object": "single", "two_object": "two", "color_attr": "attribution"}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are as wide as they must be; the first one to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths)))
        return f"| {' | '.join([first, *others])} |"
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def report(summary: dict[str, Any], flip: float) -> str:
    """All tables with a line above each."""
    titles = {EXACT: "Share of prompts solved, with the exact judge",
              ERRING: f"The same with a judge that turns each check over with probability {flip:g}; "
                      "solved is by the exact judge"}
    parts = []
    for judge, results in summary["results"].items():
        parts += [f"{titles[judge]}:", success_table(results), differences(summary["differences"][judge])]
    parts.append("Intervals are 95 %: Wilson's for shares of prompts, added up over the tasks for their mean; Bonett "
                 "and Price's for differences, which are paired by prompt. Unseen pairs have no part in the means. "
                 "Pictures, denoiser evaluations, judge calls and seconds of drawing (in batches) are means for a "
                 "prompt; every policy stops at the first picture that its judge accepts. An evaluation of a "
                 "correction carries the flawed picture too and takes longer than one of a fresh picture: the seconds "
                 "tell.")
    if any(found["by task"] for found in summary["fixes"].values()):
        parts.append("One correction of a flawed picture (fix) beside a fresh picture of the same prompt (fresh). Own "
                     "failures are up to two of the first four pictures of each prompt, synthetic flaws are rendered. "
                     "Drift is the share of objects that no word was said about and that moved more than 3 pixels or "
                     "changed their look. The last row and the lower table are without the unseen pairs:")
    for model, found in summary["fixes"].items():
        if found["by task"]:
            parts += [f"{model}:" if model else "", fix_table(found["by task"], "task"),
                      fix_table(found["by kind"], "first flaw"), fix_differences(found["by task"])]
    if len(summary["code"]) > 1:
        parts.append(f"CAUTION: {len(summary['code'])} states of the code or of its libraries made this, one after the "
                     "other; for numbers to publish start anew, with another --out.")
    return "\n\n".join(part for part in parts if part)


def success_table(results: dict[str, dict[str, Any]]) -> str:
    columns = list(next(iter(results.values()))["success"])
    overall = "mean of tasks" in next(iter(results.values()))
    header = ["policy", *(SHORT.get(c, c) for c in columns), *(["mean of tasks", "of prompts"] if overall else []),
              "pictures", "evals", "judged", "seconds"]
    rows = []
    for name, row in results.items():
        cells = [name, *(f"{row['success'][c]['mean']:.2f}" for c in columns)]
        if overall:
            cells += [_with_interval(row[k]) for k in ("mean of tasks", "mean of prompts")]
        cost = row["cost"]
        rows.append([*cells, f"{cost['pictures']:.1f}", f"{cost['evaluations']:.0f}", f"{cost['judge_calls']:.1f}",
                     f"{cost['seconds']:.2f}"])
    return markdown(header, rows)


def differences(found: Sequence[dict[str, Any]]) -> str:
    if not found:
        return ""
    return "\n".join(f"- {d['on']}: {d['policy']} minus {d['against']} = {_signed(d)}; {d['won']} won and "
                     f"{d['lost']} lost of {d['count']} prompts)" for d in found)


def fix_differences(table: dict[str, dict[str, Any]]) -> str:
    lines = []
    for source, name in ((OWN, "own failures"), (SYNTHETIC, "synthetic flaws")):
        cell = table.get(ALL, {}).get(source, {"count": 0})
        if cell["count"]:
            lines.append(f"- {name}: fix minus fresh = {_signed(cell)}; {cell['count']} flaws of {cell['prompts']} "
                         "prompts)")
    return "\n".join(lines)


def fix_table(table: dict[str, dict[str, Any]], what: str) -> str:
    if not table:
        return ""
    header = [what]
    for source in ("own failures", "synthetic"):
        header += [source, "fix", "fresh", "drift"]
    return markdown(header, [[name, *_fix_cells(cells[OWN]), *_fix_cells(cells[SYNTHETIC])]
                             for name, cells in table.items()])


def _fix_cells(cell: dict[str, Any]) -> list[str]:
    if not cell["count"]:
        return ["0", "", "", ""]
    drift = "" if cell["drift"] is None else f"{cell['drift']:.2f}"
    return [str(cell["count"]), f"{cell['fix_rate']:.2f}", f"{cell['fresh_rate']:.2f}", drift]


def _signed(value: dict[str, Any]) -> str:
    """A difference with its interval, in a bracket that is left open."""
    low, high = value["interval"]
    return f"{value['difference']:+.2f} ({low:+.2f} to {high:+.2f}"


def _with_interval(value: dict[str, Any]) -> str:
    low, high = value["interval"]
    return f"{value['mean']:.3f} ({low:.2f}-{high:.2f})"
