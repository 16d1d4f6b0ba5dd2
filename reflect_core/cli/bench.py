"""`reflect bench shapes` and `reflect bench speed`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..types import UserError
from .models import ModelChoice
from .output import dumps
from .progress import Progress
from .settings import named_values


def shapes(args: argparse.Namespace) -> int:
    """Every policy on the evaluation set."""
    from ..bench.entrants import choose_entrants
    from ..bench.shapes import Settings, choose_prompts, run_benchmark

    entrants = choose_entrants(args.policies)
    columns = choose_prompts(args.limit, args.tasks)
    if not 0 <= args.flip < 1:
        raise UserError(f"--flip is {args.flip:g}; expected a probability from 0 to below 1")
    if args.batch < 1:
        raise UserError(f"--batch is {args.batch}; expected a whole number from 1 on")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; expected a whole number from 0 on")
    target = None if args.json_file is None else _writable(Path(args.json_file))
    choice = ModelChoice(args.model, args.lora, args.device, args.dtype, named_values(args.options, "--option"))
    with Progress(args.quiet) as progress:
        progress.say(f"loading {choice.name}")
        generator = choice.load(max_batch=args.batch)
        drawing = {**generator.defaults, **{k: v for k in ("steps", "guidance") if (v := getattr(args, k)) is not None}}
        settings = Settings(
            args.model, choice.fingerprint(), args.seed, args.limit, tuple(columns),
            tuple(e.name for e in entrants), args.flip, drawing["width"], drawing["height"], drawing["steps"],
            drawing["guidance"], args.batch, choice.device, choice.dtype)
        try:
            units = run_benchmark(settings, entrants, generator, Path(args.out), progress.share)
        except KeyboardInterrupt:
            progress.say(f"interrupted; what is finished is in {args.out}, the same command goes on from there")
            raise
    return _tell_shapes(args, units, asdict(settings), target)


def _tell_shapes(args: argparse.Namespace, units: list, settings: dict, target: Path | None) -> int:
    from ..bench.plot import write_plot
    from ..bench.statistics import summarise
    from ..bench.table import report

    summary = summarise(units)
    plot = write_plot(summary, Path(args.out) / "shapes.png", args.flip)
    text = report(summary, args.flip)
    (Path(args.out) / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"\n{summary['pictures_drawn']:,} pictures drawn in {summary['seconds']:,.0f} s; plot: {plot}")
    if target is not None:
        target.write_text(dumps({"settings": settings, **summary}) + "\n", encoding="utf-8")
    return 0


def speed(args: argparse.Namespace) -> int:
    """Times, memory, step ratios and the split of a search."""
    from ..bench.speed import machine, report, time_run, time_steps
    from .judges import find_judge

    find_judge("shapes").check_prompt(args.prompt)
    if args.pictures < 1 or args.repeats < 1:
        raise UserError("--pictures and --repeats must be whole numbers from 1 on; got "
                        f"{args.pictures} and {args.repeats}")
    choice = ModelChoice(args.model, args.lora, args.device, args.dtype, named_values(args.options, "--option"))
    arguments = ["--model", args.model, "--device", args.device, "--dtype", args.dtype]
    arguments += [] if choice.lora is None else ["--lora", args.lora]
    arguments += [word for option in args.options for word in ("--option", option)]
    with Progress(args.quiet) as progress:
        run = time_run(args.prompt, args.pictures, arguments, progress.say)
        progress.say("timing a corrector step beside a plain one")
        steps = time_steps(args.repeats)
    where = machine()
    print(dumps({"run": run, "steps": steps, "machine": where}) if args.json else report(run, steps, where))
    return 0


def _writable(path: Path) -> Path:
    """Before hours of work: UserError if the file cannot be written in the end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise UserError(f"the file {path} cannot be written ({error}); try another --json") from error
    return path
