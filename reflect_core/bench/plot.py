"""Success against pictures and against denoiser evaluations, overall and on compose, under both judges.

Models of one family share their panels, so that a tuned one is seen beside what it was tuned from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ..types import UserError
from .entrants import BEST_OF, ENTRANTS, NOISE_PROMPT, ONE, REFLECT_DIT, REFLECTION, Entrant
from .shapes import ERRING, EXACT
from .statistics import named

COLOURS = {BEST_OF: "#8a8f98", NOISE_PROMPT: "#c98a1b", REFLECTION: "#168846", REFLECT_DIT: "#2b62c9"}
OTHERS = ("#b0413e", "#7a4fb5", "#2a9d9d", "#6b4f2a")
"""Of models beside the first one of a family, with the exact judge only."""
STYLES = {EXACT: "-", ERRING: (0, (3, 2))}
COSTS = ("pictures", "evaluations")


class Line(NamedTuple):
    """A model's policies of one kind, shortest first, as far as they took part."""

    kind: str
    model: str
    entrants: list[Entrant]
    colour: str
    first: bool = True
    """Of the first model of its family: under both judges, with all its dots."""


def write_plot(summary: dict[str, Any], path: Path, flip: float) -> Path:
    """Write the plot as a PNG. UserError if that cannot be done.

    A dot is a policy by itself. The line of best-of-n, of noise + prompt and of Reflect-DiT is the longest one, cut
    after each number of pictures; ReflectionFlow's line joins its dots, and the thin one is the course of its longest.
    Of the models beside a family's first one a line tells: that of the corrector, or best of n without one.
    """
    # Here, not above: nothing but this needs it, and it is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    where = [w for w in ("overall", "compose") if any(w in c for p in summary["curves"].values() for c in p.values())]
    families = lines_by_family(summary)
    panels = [(place, cost) for place in where for cost in COSTS]
    alone = len(families) == 1
    figure = Figure(figsize=(10.5, (3.6 * len(where) if alone else 3.3 * len(panels)) + 0.6), dpi=130,
                    layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(where) if alone else len(panels), 2 if alone else len(families), squeeze=False)
    for number, lines in enumerate(families.values()):
        for axis, (place, cost) in zip(axes.flat if alone else axes[:, number], panels):
            for line in lines:
                _draw(axis, summary, line, place, cost)
            _dress(axis, place, cost)
        if lines and lines[0].model:
            axes[0, number].set_title(lines[0].model, loc="left", fontweight="bold")
    handles = _legend([line for lines in families.values() for line in lines], list(summary["curves"]), flip)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"the plot {path} cannot be written ({error}); try another --out") from error
    return path


def lines_by_family(summary: dict[str, Any]) -> dict[str, list[Line]]:
    """The lines of each family's panels. The first model of a family is the first one that corrects anything."""
    families: dict[str, list[str]] = {}
    for model in summary["models"]:
        families.setdefault(summary["families"][model], []).append(model)
    found = {}
    for family, models in families.items():
        kinds = {model: _kinds(summary, model) for model in models}
        ordered = sorted(models, key=lambda model: not kinds[model].keys() & {REFLECTION, REFLECT_DIT})
        lines = [Line(kind, ordered[0], entrants, COLOURS[kind]) for kind, entrants in kinds[ordered[0]].items()]
        for number, model in enumerate(ordered[1:]):
            kind = next((k for k in (REFLECT_DIT, REFLECTION, BEST_OF) if k in kinds[model]), None)
            if kind is not None:
                lines.append(Line(kind, model, kinds[model][kind], OTHERS[number % len(OTHERS)], False))
        found[family] = lines
    return found


def _kinds(summary: dict[str, Any], model: str) -> dict[str, list[Entrant]]:
    policies = set().union(*summary["curves"].values())
    every = {e.name: e for entrants in ENTRANTS.values() for e in entrants if named(e.name, model) in policies}
    kinds = {kind: [e for e in every.values() if e.family == kind] for kind in COLOURS}
    return {kind: entrants for kind, entrants in kinds.items() if entrants}


def _draw(axis, summary: dict[str, Any], line: Line, place: str, cost: str) -> None:
    for judge, policies in summary["curves"].items():
        if judge != EXACT and not line.first:
            continue
        curves = {e.name: policies[name][place] for e in line.entrants
                  if place in policies.get(name := named(e.name, line.model), {})}
        mine = [e for e in line.entrants if e.name in curves]
        if not mine:
            continue
        longest = max(mine, key=lambda e: e.policy.most_pictures)
        dots = [_end(e, curves[e.name], cost) for e in (mine if line.first else [longest])]
        style = {"color": line.colour, "linestyle": STYLES[judge], "clip_on": False}
        wide = 1.8 if line.first else 1.3
        if line.kind == REFLECTION:
            # Each budget splits its pictures in its own way, so the short ones are no beginnings of
            # the long one; with a single picture all policies are the same.
            one = policies.get(named(ONE, line.model), {}).get(place)
            first = [] if one is None else [(1 if cost == "pictures" else one["evaluations"][-1], one["success"][-1])]
            axis.plot(*zip(*first, *dots), linewidth=wide, **style)
            axis.plot(*_course(longest, curves[longest.name], cost), linewidth=0.9, alpha=0.45, **style)
        else:
            axis.plot(*_course(longest, curves[longest.name], cost), linewidth=wide, **style)
        axis.plot(*zip(*dots), "o", color=line.colour, markerfacecolor=line.colour if judge == EXACT else "white",
                  markersize=5, clip_on=False)


def _dress(axis, place: str, cost: str) -> None:
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.set_ylim(0, 1.02)
    axis.grid(color="#e3e5e8", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel("pictures, at most" if cost == "pictures" else "denoiser evaluations, mean of what was spent")
    axis.set_ylabel(f"solved, {'mean of tasks' if place == 'overall' else place}")


def _end(entrant: Entrant, curve: dict[str, list[float]], cost: str) -> tuple[float, float]:
    """A policy as a dot: its budget of pictures, or what it spent, and its success."""
    x = entrant.policy.most_pictures if cost == "pictures" else curve["evaluations"][-1]
    return x, curve["success"][-1]


def _course(entrant: Entrant, curve: dict[str, list[float]], cost: str) -> tuple[list[float], list[float]]:
    """A policy as a line: its success cut after each number of pictures."""
    end = _end(entrant, curve, cost)
    xs = list(range(1, len(curve["success"]) + 1)) if cost == "pictures" else curve["evaluations"]
    return [*xs, end[0]], [*curve["success"], end[1]]


def _legend(lines: list[Line], judges: list[str], flip: float) -> list:
    from matplotlib.lines import Line2D

    shown = {line.kind: Line2D([], [], color=line.colour, linewidth=1.8, marker="o", markersize=5, label=line.kind)
             for line in lines if line.first}
    handles = list(shown.values())
    handles += [Line2D([], [], color=line.colour, linewidth=1.3, marker="o", markersize=5,
                       label=f"{line.kind} ({line.model})") for line in lines if not line.first]
    for line in lines:
        if line.kind == REFLECTION and line.first:
            longest = max(line.entrants, key=lambda e: e.policy.most_pictures)
            handles.append(Line2D([], [], color=line.colour, linewidth=0.9, alpha=0.45,
                                  label=f"course of {longest.name}"))
    names = {EXACT: "exact judge", ERRING: f"judge errs ({flip:g})"}
    return handles + [Line2D([], [], color="#444", linestyle=STYLES[judge], label=names[judge]) for judge in judges]
