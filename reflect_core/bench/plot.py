"""Success against pictures and against denoiser evaluations, overall and on compose, under both judges.

Two columns of panels for each model that is compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..types import UserError
from .entrants import BEST_OF, ENTRANTS, NOISE_PROMPT, ONE, REFLECT_DIT, REFLECTION, Entrant
from .shapes import ERRING, EXACT
from .statistics import named

COLOURS = {BEST_OF: "#8a8f98", NOISE_PROMPT: "#c98a1b", REFLECTION: "#168846", REFLECT_DIT: "#2b62c9"}
STYLES = {EXACT: "-", ERRING: (0, (3, 2))}
COSTS = ("pictures", "evaluations")


def write_plot(summary: dict[str, Any], path: Path, flip: float) -> Path:
    """Write the plot as a PNG. UserError if that cannot be done.

    A dot is a policy by itself. The line of best-of-n, of noise + prompt and of Reflect-DiT is the longest one, cut
    after each number of pictures; ReflectionFlow's line joins its dots, and the thin one is the course of its longest.
    """
    # Here, not above: nothing but this needs it, and it is slow to import.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    where = [w for w in ("overall", "compose") if any(w in c for p in summary["curves"].values() for c in p.values())]
    models = summary["models"]
    figure = Figure(figsize=(10.5 if len(models) == 1 else 4.4 * 2 * len(models), 7.6), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(where), 2 * len(models), squeeze=False)
    for row, place in zip(axes, where):
        for column, axis in enumerate(row):
            _panel(axis, summary, models[column // 2], place, COSTS[column % 2])
            if axis in axes[0] and column % 2 == 0 and models[column // 2]:
                axis.set_title(models[column // 2], loc="left", fontweight="bold")
    handles = _legend(summary, flip)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"the plot {path} cannot be written ({error}); try another --out") from error
    return path


def _there(policies: dict[str, Any], model: str, family: str) -> list[Entrant]:
    """The entrants of a line, as far as they took part."""
    found = {e.name: e for entrants in ENTRANTS.values() for e in entrants
             if e.family == family and named(e.name, model) in policies}
    return list(found.values())


def _panel(axis, summary: dict[str, Any], model: str, place: str, cost: str) -> None:
    for judge, policies in summary["curves"].items():
        for family, colour in COLOURS.items():
            mine = [e for e in _there(policies, model, family) if place in policies[named(e.name, model)]]
            if not mine:
                continue
            curves = {e.name: policies[named(e.name, model)][place] for e in mine}
            longest = max(mine, key=lambda e: e.policy.most_pictures)
            dots = [_end(e, curves[e.name], cost) for e in mine]
            style = {"color": colour, "linestyle": STYLES[judge], "clip_on": False}
            if family == REFLECTION:
                # Each budget splits its pictures in its own way, so the short ones are no beginnings of
                # the long one; with a single picture all policies are the same.
                first = [_end(e, policies[named(ONE, model)][place], cost)
                         for e in _there(policies, model, BEST_OF) if e.name == ONE]
                axis.plot(*zip(*first, *dots), linewidth=1.8, **style)
                axis.plot(*_course(longest, curves[longest.name], cost), linewidth=0.9, alpha=0.45, **style)
            else:
                axis.plot(*_course(longest, curves[longest.name], cost), linewidth=1.8, **style)
            axis.plot(*zip(*dots), "o", color=colour, markerfacecolor=colour if judge == EXACT else "white",
                      markersize=5, clip_on=False)
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


def _legend(summary: dict[str, Any], flip: float) -> list:
    from matplotlib.lines import Line2D

    there = {family: [e for policies in summary["curves"].values() for model in summary["models"]
                      for e in _there(policies, model, family)] for family in COLOURS}
    handles = [Line2D([], [], color=colour, linewidth=1.8, marker="o", markersize=5, label=family)
               for family, colour in COLOURS.items() if there[family]]
    names = {EXACT: "exact judge", ERRING: f"judge errs ({flip:g})"}
    if there[REFLECTION]:
        longest = max(there[REFLECTION], key=lambda e: e.policy.most_pictures)
        handles.append(Line2D([], [], color=COLOURS[REFLECTION], linewidth=0.9, alpha=0.45,
                              label=f"course of {longest.name}"))
    return handles + [Line2D([], [], color="#444", linestyle=STYLES[judge], label=names[judge])
                      for judge in summary["curves"]]
