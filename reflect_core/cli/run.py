"""`reflect run` and `reflect resume`: drive the stepper, and say what came out."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path
from typing import Any

from .. import search
from ..search import Stepper
from ..search.registry import OFFICIAL, official_options
from ..search.run import Run
from ..types import UserError
from . import ACCEPTED, INTERRUPTED, NOT_ACCEPTED
from .judges import Judges
from .leave import leave_at_once
from .look import describe
from .output import as_document, as_table, dumps, resume_command, write_report
from .progress import Progress
from .settings import (
    check_folder,
    choose_folder,
    make_budget,
    make_choice,
    make_policy,
    make_request,
    moved_choice,
    named_values,
)


def run(args: argparse.Namespace) -> int:
    """`reflect run PROMPT`."""
    judge = Judges.of(args)
    try:
        judge.check_prompt(args.prompt)
    except UserError as error:
        if not args.prompt.strip() or args.judge != "shapes":
            raise
        # Whoever has pointed --model at FLUX.1-dev wants to hear of these.
        raise UserError(f"{error}; for other pictures there is --judge me, or --judge with the address of a server of "
                        "a language model, with a model that draws them") from error
    budget, settings = make_budget(args), named_values(args.settings, "--set")
    options = named_values(args.options, "--option")
    choice = make_choice(args, options)
    if args.policy == OFFICIAL:
        choice.options = {**official_options(choice.policy, choice.edits), **options}
    policy = make_policy(args.policy or choice.policy, budget.pictures, settings, choice.policy, choice.edits)
    folder = Path(args.out) if args.out is not None else choose_folder(args.prompt)
    check_folder(folder)
    # With the folder's own defaults, so that a wrong size or number of steps is told before loading.
    request = make_request(args, choice.defaults)
    Run(request, args.chunk)
    if args.size is not None or choice.defaults.keys() >= {"width", "height"}:
        judge.check(request)

    judge.suit(choice.policy, choice.scripts)
    with Progress(args.quiet) as progress:
        for line in judge.prepare(args.prompt):
            progress.say(line)
        progress.say(f"loading {choice.name}")
        with leave_at_once():
            generator = choice.load()
        request = make_request(args, generator.defaults)
        judge.check(request)
        actors = judge.actors(folder)
        stepper = search.start(
            request, policy, generator, actors.verifier, actors.reflector, actors.refiner, budget=budget,
            chunk=args.chunk, folder=folder, model=args.model, fingerprint=choice.fingerprint(),
            settings={**judge.settings(request.prompt), "model": choice.settings()}, on_event=progress)
        with closing(judge):
            return _drive(stepper, folder, progress, args.json)


def resume(args: argparse.Namespace) -> int:
    """`reflect resume RUN`."""
    folder = Path(args.run)
    header, run = search.load(folder)
    if run.stopped is not None:
        # It has come to its end: nothing to draw, so no model to wait for.
        return _tell(describe(folder, folder), args.json)
    choice = moved_choice(args, header.settings.get("model"))
    if wrong := choice.base_differs(header.settings.get("model")):
        raise UserError(f"{wrong}; try --option base=MODEL with where it is now, or start a new run")
    judge = Judges.recorded(header.settings, args)
    with Progress(args.quiet) as progress:
        for line in judge.prepare(header.request.prompt):
            progress.say(line)
        actors = judge.actors(folder)
        progress.say(f"loading {choice.name}")
        with leave_at_once():
            generator = choice.load()
        stepper = search.resume(folder, generator, actors.verifier, actors.reflector, actors.refiner,
                                fingerprint=choice.fingerprint(),
                                settings={**judge.settings(header.request.prompt), "model": choice.settings()},
                                on_event=progress)
        with closing(judge):
            return _drive(stepper, folder, progress, args.json)


def _drive(stepper: Stepper, folder: Path, progress: Progress, as_json: bool) -> int:
    """Run to the end, write the tree and print the result."""
    progress.stepper = stepper
    with stepper:
        try:
            run = stepper.run()
        except KeyboardInterrupt:
            progress.say(f"interrupted; nothing is lost, go on with: {resume_command(folder)}", always=True)
            return INTERRUPTED
        except UserError as error:
            raise UserError(f"{error}; what was drawn before is kept: once that is mended, go on with: "
                            f"{resume_command(folder)}") from error
        chosen = stepper.best
    progress.close()
    tree, page = write_report(folder, run, stepper.record.header, chosen)
    return _tell(as_document(folder, run, stepper.record.header, chosen, tree, page), as_json)


def _tell(document: dict[str, Any], as_json: bool) -> int:
    print(dumps(document) if as_json else as_table(document))
    return ACCEPTED if document["accepted"] else NOT_ACCEPTED
