"""`reflect bench shapes`, `reflect bench speed`, `reflect bench memory` and `reflect bench comfyui`."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..judges import find_judge
from ..presets.choice import ModelChoice
from ..presets.load import preset_names
from ..types import UserError
from .leave import leave_at_once
from .output import dumps, replace_file
from .progress import Progress
from .settings import check_writable, make_choice, named_values

if TYPE_CHECKING:
    from ..bench.entrants import Entrant

LABELS = {"FluxPipeline": "FLUX", "SanaPipeline": "SANA"}
"""Of models that are compared without a label of their own. One that corrects nothing is the plain one."""


def shapes(args: argparse.Namespace) -> int:
    """Every policy on the evaluation set, of one model or of several side by side: of a second corrector of a family
    only its corrections, and never an ablation."""
    from ..bench.entrants import choose_entrants
    from ..bench.shapes import Settings, check, choose_prompts, run_benchmark
    from ..bench.statistics import summarise

    columns = choose_prompts(args.limit, args.tasks)
    if not 0 <= args.flip < 1:
        raise UserError(f"--flip is {args.flip:g}; expected a probability from 0 to below 1")
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; expected a whole number from 1 on")
    options = named_values(args.options, "--option")
    if "max_batch" in options:
        raise UserError("--option max_batch says how many pictures are drawn together; in a benchmark --batch does")
    out = Path(args.out)
    check_writable(out / "units.jsonl", "--out")
    if args.json_file is not None:
        check_writable(Path(args.json_file), "--json")
    models = _models(args, options)
    entrants = _entrants(models, args.policies)
    if not any(entrants.values()):
        known = [e.name for choice in models.values() for e in choose_entrants(choice.family)]
        raise UserError(f"{', '.join(map(repr, args.policies))}: no policy of "
                        f"{' or '.join(choice.name for choice in models.values())}; expected some of "
                        f"{', '.join(map(repr, known))}")
    models = {label: choice for label, choice in models.items() if entrants[label]}

    def settings(label: str, defaults: dict[str, Any], fingerprint: str) -> Settings:
        choice = models[label]
        drawing = {**defaults, **{k: v for k in ("steps", "guidance") if (v := getattr(args, k)) is not None}}
        return Settings(choice.name, fingerprint, label, args.seed, args.limit, tuple(columns),
                        {e.name: e.policy.to_json() for e in entrants[label]}, args.flip, batch=args.batch,
                        device=choice.device, dtype=choice.dtype, **drawing)

    # What the folders and the arguments say, before the wait; then with what a model has for defaults of its own.
    early = [settings(label, choice.defaults, "") for label, choice in models.items()]
    for one in early:
        check(one, entrants[one.label])
    beside = _beside(args, [asdict(one) for one in early], list(models))
    units, done = [], []
    with Progress(args.quiet) as progress:
        for number, (label, choice) in enumerate(models.items()):
            progress.say(f"loading {choice.name}")
            with leave_at_once():
                generator = choice.load(**({} if choice.family.startswith("Qwen") else {"max_batch": args.batch}))
            final = settings(label, generator.defaults, choice.fingerprint())
            folder = out / _folder_name(label) if label else out

            def tell(share: float, of: int, text: str, number: int = number) -> None:
                progress.share(number * of + share, len(models) * of, text)

            try:
                units += run_benchmark(final, entrants[label], generator, folder, tell)
            except KeyboardInterrupt:
                progress.say(f"interrupted; what is finished is in {out}, the same command goes on from there",
                             always=True)
                raise
            done.append(asdict(final))
            del generator  # before the next one is loaded
    mine = summarise(units, {label: choice.family for label, choice in models.items()})
    return _tell_shapes(args, mine, beside, done)


def _entrants(models: dict[str, ModelChoice], names: list[str] | None) -> dict[str, tuple[Entrant, ...]]:
    """The rows of each model, of those with these names if any are given."""
    from ..bench.entrants import ONE, choose_entrants

    entrants: dict[str, tuple[Entrant, ...]] = {}
    first: set[tuple[str, str]] = set()
    for label, choice in models.items():
        corrects, kind = choice.policy != "best_of_n", (choice.family, choice.policy)
        found = choose_entrants(choice.family, names, corrects)
        if not corrects and len(models) > 1:  # beside a corrector, whose rows may have been asked for
            found = tuple(e for e in found if not e.policy.max_context)
        if corrects and kind in first:  # what is new of it is how it corrects
            found = tuple(e for e in found if not e.is_ablation and (names or e.name == ONE or e.policy.max_context))
        first.add(kind)
        entrants[label] = found
    return entrants


def _models(args: argparse.Namespace, options: dict[str, Any]) -> dict[str, ModelChoice]:
    """The models by their labels; one alone needs none."""
    if args.model is not None:
        if args.models is not None:
            raise UserError("got --model and --models; expected one of them")
        return {"": make_choice(args, options)}
    if args.lora is not None or args.parts:
        raise UserError(f"{'--part' if args.parts else '--lora'} goes with one model; expected --model too")
    found: dict[str, ModelChoice] = {}
    if options:
        raise UserError("--option is of one model; expected --model too")
    for given in args.models or preset_names():
        label, equals, name = ("", "", given) if Path(given).exists() else given.rpartition("=")
        choice = ModelChoice(name, None, args.device, args.dtype)
        if not equals:
            label = ("plain " if choice.policy == "best_of_n" else "") + LABELS.get(choice.family, choice.family)
        if not label or _folder_name(label) in map(_folder_name, found):
            raise UserError(f"--models: {given} would have the label {label!r} of another one; expected LABEL=FOLDER "
                            "with a label of its own, for example SFT=my-model")
        found[label] = choice
    return found


def _folder_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower() or "model"


def _beside(args: argparse.Namespace, settings: list[dict[str, Any]], labels: list[str]) -> list[dict[str, Any]]:
    """What --beside names, read before the wait."""
    from ..bench.beside import read_beside

    found = []
    for given in args.beside:
        label, _, path = ("", "", given) if Path(given).exists() else given.rpartition("=")
        found.append(read_beside(path, label or Path(path).stem, settings))
        for model in found[-1]["models"]:
            if model in labels:
                raise UserError(f"{given}: two models would have the label {model!r}; expected one of its own for "
                                "each, for example --models NEW=MODEL")
            labels = [*labels, model]
    if found and "" in labels:
        raise UserError("--beside needs a label behind the rows measured now; expected --models LABEL=MODEL in place "
                        "of --model")
    return found


def _tell_shapes(args: argparse.Namespace, mine: dict[str, Any], beside: list[dict[str, Any]],
                 settings: list[dict[str, Any]]) -> int:
    from ..bench.beside import together
    from ..bench.plot import write_plot
    from ..bench.speed import machine
    from ..bench.table import report
    from ..search.header import versions_here

    summary = together(mine, beside) if beside else mine
    text = report(summary, args.flip)
    if beside:
        text += f"\n\nNot measured now: the rows of {', '.join(m for one in beside for m in one['models'])}."
    print(text)
    _write(Path(args.out) / "tables.md", text + "\n", "--out")
    if args.json_file is not None:
        document = {"settings": settings, "machine": machine(), "versions": versions_here(), **mine}
        _write(Path(args.json_file), dumps(document) + "\n", "--json")
    plot: Path | str = "none, for matplotlib is not installed; once it is, the same command draws it"
    if not any(where for policies in summary["curves"].values() for where in policies.values()):
        plot = "none, for the unseen pairs have no part in it"
    elif find_spec("matplotlib") is not None:
        plot = write_plot(summary, Path(args.out) / "shapes.png", args.flip)
    print(f"\n{summary['pictures_drawn']:,} pictures drawn in {summary['seconds']:,.0f} s; plot: {plot}")
    return 0


def speed(args: argparse.Namespace) -> int:
    """Times, memory, step ratios and the split of a search."""
    from ..bench.speed import machine, report, time_run, time_steps

    find_judge("shapes").check_prompt(args.prompt)
    if args.pictures < 1 or args.repeats < 1:
        raise UserError("--pictures and --repeats must be whole numbers from 1 on; got "
                        f"{args.pictures} and {args.repeats}")
    make_choice(args, named_values(args.options, "--option"))  # what is wrong is told before a process is started
    arguments = ["--model", args.model, "--device", args.device, "--dtype", args.dtype]
    arguments += [] if args.lora is None else ["--lora", args.lora]
    arguments += [word for part in args.parts for word in ("--part", part)]
    arguments += [word for root in args.roots or () for word in ("--models", root)]
    arguments += [word for option in args.options for word in ("--option", option)]
    with Progress(args.quiet) as progress:
        run = time_run(args.prompt, args.pictures, arguments, progress.say)
        progress.say("timing a corrector step beside a plain one")
        steps = time_steps(args.repeats)
    where = machine()
    print(dumps({"run": run, "steps": steps, "machine": where}) if args.json else report(run, steps, where))
    return 0


def memory(args: argparse.Namespace) -> int:
    """What FLUX.1-dev and SANA need, by computation."""
    from ..bench.measured import compute_all
    from ..bench.memory import FAMILIES, WAYS, table

    ways = args.weights or WAYS
    if unknown := [way for way in ways if way not in WAYS]:
        raise UserError(f"--weights has {unknown[0]!r}; expected some of {', '.join(WAYS)}")
    if args.size < 256 or args.size % 32 or args.batch < 1:
        raise UserError(f"--size is {args.size} and --batch {args.batch}; expected a multiple of 32 pixels from 256 "
                        "on, and a picture or more")
    with Progress(args.quiet) as progress:
        found = compute_all(tuple(FAMILIES), ways, args.size, args.batch, args.device, progress.say)
    print(dumps(found) if args.json else table(found))
    return 0


def comfyui(args: argparse.Namespace) -> int:
    """What the ComfyUI face costs."""
    from ..bench.comfyui import measure, report

    with Progress(args.quiet) as progress:
        found = measure(progress.say)
    print(dumps(found) if args.json else report(found))
    return 0


def _write(path: Path, text: str, flag: str) -> None:
    """The file is there whole or as it was. UserError if it cannot be written; the work is in the log by then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); what was measured is kept: the same command with another "
                        f"{flag} writes it") from error
