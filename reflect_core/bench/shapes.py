"""The shapes benchmark: every policy on the fixed evaluation prompts, with an exact judge and one that errs.

Work goes in units of a few dozen prompts of one task. A unit runs all policies under both judges in
lock-step (`lockstep.py`), measures fix rates (`fixes.py`) and is then one line of the log (`log.py`); an
interruption costs the unit in progress. Success is always by the exact detector, whoever judged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..refiners import ShapesRefiner
from ..reflectors import ShapesReflector
from ..search import Run, Stepper, derive_seed, start
from ..shapes.evaluation import DATA, EvaluationPrompt, evaluation_prompts
from ..shapes.sample import TASKS
from ..shapes.scene import SIZE
from ..types import Generator, Request, UserError, Verifier
from ..verifiers import FlippingVerifier, ShapesVerifier
from .entrants import ONE, Entrant
from .fixes import ShuffledReflector, measure_fixes
from .lockstep import SharedGenerator, SharedVerifier, drive
from .log import UnitLog, code_state

EXACT, ERRING = "exact", "erring"
UNSEEN = "unseen"
"""The column of prompts that name a colour and shape which training never shows together."""
MOST_STEPS = 1000
UNIT = 30
"""Prompts that are worked on together."""
CHUNK = 1
"""Every run draws one picture at a time, so that none pays for pictures beyond its first accepted one;
the batches are made across runs."""


@dataclass(frozen=True)
class Settings:
    """All that a result depends on, but the code: the first line of the log."""

    model: str
    fingerprint: str
    label: str = ""
    """Behind the names of its rows, where several models are compared."""
    seed: int = 0
    limit: int | None = None
    tasks: tuple[str, ...] = (*TASKS, UNSEEN)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By the names of the table's rows, each with all its settings."""
    flip: float = 0.1
    width: int = 64
    height: int = 64
    steps: int = 28
    guidance: float = 3.5
    batch: int = 32
    device: str = "cpu"
    dtype: str = "float32"
    evaluation_set: str = field(default_factory=lambda: hashlib.sha256(DATA.read_text("utf-8").encode()).hexdigest())


Progress = Callable[[float, int, str], None]
"""Called with (units done, of how many, what is being done)."""


def choose_prompts(limit: int | None = None, tasks: Sequence[str] | None = None) -> dict[str, list[EvaluationPrompt]]:
    """The prompts by column: the tasks, then the unseen pairs. UserError for a task that there is not."""
    columns = (*TASKS, UNSEEN)
    if limit is not None and limit < 1:
        raise UserError(f"the limit is {limit}; expected 1 prompt of each task or more")
    for task in tasks or ():
        if task not in columns:
            raise UserError(f"there is no task {task!r}; expected some of {', '.join(columns)}")
    chosen = {}
    for column in columns:
        if tasks is None or column in tasks:
            found = evaluation_prompts(None, True) if column == UNSEEN else evaluation_prompts(column, False)
            chosen[column] = list(_spread(found, limit))
    return chosen


def _spread(prompts: Sequence[EvaluationPrompt], limit: int | None) -> Sequence[EvaluationPrompt]:
    """`limit` prompts from all over the list: the unseen pairs lie there task by task."""
    if limit is None or limit >= len(prompts):
        return prompts
    return [prompts[i * len(prompts) // limit] for i in range(limit)]


def run_benchmark(settings: Settings, entrants: Sequence[Entrant], generator: Generator, folder: Path,
                  on_progress: Progress | None = None) -> list[dict[str, Any]]:
    """Do what is not done yet, and return all units. UserError if `folder` holds another benchmark's work."""
    check(settings, entrants, generator)
    units, code = _units(settings), code_state()
    tell = on_progress or (lambda done, total, text: None)
    with UnitLog(folder, asdict(settings)) as log:
        done = {unit["unit"]: unit for unit in log.units}
        for number, (column, prompts) in enumerate(units):
            if number not in done:
                begun = len(done)
                done[number] = {"unit": number, "model": settings.label, "column": column, "code": code, **_work(
                    settings, entrants, prompts, generator,
                    lambda share, text: tell(begun + share, len(units), text), column)}  # noqa: B023
                log.append(done[number])
            tell(len(done), len(units), column)
    return [done[number] for number in sorted(done)]


def check(settings: Settings, entrants: Sequence[Entrant], generator: Generator | None = None) -> None:
    """UserError for what would only be found in the middle of the work, or after the log was begun."""
    if (settings.width, settings.height) != (SIZE, SIZE):
        raise UserError(f"the model draws {settings.width}x{settings.height}; the benchmark's judge reads pictures of "
                        f"{SIZE}x{SIZE} only; try a model that draws the shapes world")
    Run(replace(_request(settings, "a circle"), seed=settings.seed))
    if settings.steps > MOST_STEPS:
        raise UserError(f"steps is {settings.steps}; expected {MOST_STEPS:,} at most")
    for entrant in entrants:
        if generator is not None and entrant.policy.max_context > generator.max_context:
            raise UserError(f"the policy {entrant.name!r} corrects pictures, and the model has no corrector; try "
                            f"--lora, or only policies that draw anew: --policies '{ONE}' 'best of 20'")


def _request(settings: Settings, prompt: str) -> Request:
    return Request(prompt, derive_seed(settings.seed, f"bench {prompt}"), settings.width, settings.height,
                   settings.steps, settings.guidance)


def _units(settings: Settings) -> list[tuple[str, list[EvaluationPrompt]]]:
    chosen = choose_prompts(settings.limit, settings.tasks)
    return [(column, prompts[i:i + UNIT]) for column, prompts in chosen.items() for i in range(0, len(prompts), UNIT)]


def _work(settings: Settings, entrants: Sequence[Entrant], prompts: Sequence[EvaluationPrompt],
          generator: Generator, tell: Callable[[float, str], None], column: str) -> dict[str, Any]:
    """One unit: `runs`, a row for each prompt, policy and judge, and `fixes`."""
    begun = time.perf_counter()
    shared, exact = SharedGenerator(generator), SharedVerifier(ShapesVerifier())
    judges: dict[str, Verifier] = {EXACT: exact}
    if settings.flip > 0:
        judges[ERRING] = SharedVerifier(FlippingVerifier(exact, settings.flip, settings.seed))
    requests = [_request(settings, p.prompt) for p in prompts]
    reflector, refiner = ShapesReflector(), ShapesRefiner(settings.seed)
    others = None
    if any(entrant.shuffled for entrant in entrants):
        # Of all the column's prompts, so that there are others where few are worked on.
        others = ShuffledReflector(choose_prompts(UNIT, [column])[column], settings.seed, exact)
    views = {"both": shared}
    for entrant in entrants:
        if entrant.see not in views:
            views[entrant.see] = SharedGenerator(generator.with_options(see=entrant.see), shared)
    keys, steppers = [], []
    for judge, verifier in judges.items():
        for entrant in entrants:
            if entrant.is_ablation and judge != EXACT:
                continue
            for prompt, request in zip(prompts, requests):
                keys.append((judge, entrant, prompt))
                steppers.append(start(request, entrant.policy, views[entrant.see], verifier,
                                      others if entrant.shuffled else reflector, refiner, chunk=CHUNK))
    ended = 0
    for see, view in views.items():
        mine = [stepper for (_, entrant, _), stepper in zip(keys, steppers) if entrant.see == see]
        drive(mine, view, lambda now, _: tell(0.95 * (ended + now) / len(steppers),  # noqa: B023
                                              f"{column}: {ended + now} of {len(steppers)} runs"))  # noqa: B023
        ended += len(mine)
    rows = [{"prompt": prompt.prompt, "judge": judge, "policy": entrant.name, **_outcome(stepper, exact)}
            for (judge, entrant, prompt), stepper in zip(keys, steppers)]
    fixes = []
    if generator.max_context:
        tell(0.95, f"{column}: fix rate")
        fixes = measure_fixes(prompts, requests, shared, exact)
    return {"prompts": [asdict(p) for p in prompts], "runs": rows, "fixes": fixes,
            "pictures_drawn": sum(view.pictures_drawn for view in views.values()),
            "seconds": round(time.perf_counter() - begun, 2)}


def _outcome(stepper: Stepper, exact: SharedVerifier) -> dict[str, Any]:
    """Whether the answer is right, and what the run cost.

    `curve` has a digit for each picture: whether the best of the pictures so far, by the run's own
    judge, is right by the exact one.
    """
    run = stepper.so_far
    right = [v.accepted for v in exact.judge(run.prompt, [run.picture(c.id) for c in run.candidates])]
    curve = "".join(str(int(right[run.best(run.candidates[:k + 1]).id])) for k in range(len(right)))
    total = run.ledger.total
    return {"right": right[stepper.best.id], "pictures": total.pictures, "evaluations": total.denoiser_evaluations,
            "judge_calls": total.judge_calls,
            "seconds": round(sum(c.cost.seconds for c in run.candidates), 4), "curve": curve}
