"""Start a run or resume one, in a line each: what the command line, the bench and the nodes call."""

from __future__ import annotations

import os
from typing import Any

from ..types import Generator, Refiner, Reflector, Request, UserError, Verifier
from . import codec
from .budget import Budget
from .entries import Resumed
from .events import EventCallback
from .header import Header, refuse_secrets, versions_here
from .policy import Policy
from .record import Record
from .registry import policy_from_json
from .run import Run
from .stepper import Stepper


def start(request: Request, policy: Policy, generator: Generator, verifier: Verifier,
          reflector: Reflector | None = None, refiner: Refiner | None = None, *,
          budget: Budget | None = None, chunk: int = 4, folder: str | os.PathLike | None = None,
          model: str = "", fingerprint: str = "", settings: dict[str, Any] | None = None,
          on_event: EventCallback | None = None) -> Stepper:
    """A stepper on a new run, in memory or, with a `folder`, on record there.

    The arguments after `chunk` go into the record's header, see `record.Header`. Close the stepper
    when done (or use it in a `with`). UserError if something does not fit, before anything is
    drawn or written.
    """
    budget = budget or Budget()
    run = Run(request, chunk)
    actors = (generator, verifier, reflector, refiner)
    stepper = Stepper(run, policy, *actors, budget=budget, on_event=on_event)
    if folder is None:
        return stepper
    record = Record.create(folder, Header(run.request, policy.to_json(), budget, chunk, model, fingerprint,
                                          settings or {}))
    return Stepper(record.run, policy, *actors, budget=budget, record=record, on_event=on_event)


def resume(folder: str | os.PathLike, generator: Generator, verifier: Verifier,
           reflector: Reflector | None = None, refiner: Refiner | None = None, *,
           fingerprint: str | None = None, policy: Policy | None = None, settings: dict[str, Any] | None = None,
           on_event: EventCallback | None = None) -> Stepper:
    """A stepper that goes on with the record in `folder`: policy, budget and chunk are its header's.

    `policy` is only for one that is not in `registry.POLICIES`; `settings` are for those that are not the
    record's any more (another device, say; None: as before). They, and the versions of the libraries,
    go on record where they changed. UserError as in `Record.resume`, or if that policy is not the
    record's. To look at the header first (which model?), use `load`.
    """
    record = Record.resume(folder, fingerprint)
    try:
        header = record.header
        if policy is None:
            policy = policy_from_json(header.policy)
        elif codec.plain(policy.to_json()) != header.policy:
            raise UserError(f"the record in {folder} was made by the policy {header.policy}; got "
                            f"{policy.to_json()}; try to leave the policy out")
        stepper = Stepper(record.run, policy, generator, verifier, reflector, refiner, budget=header.budget,
                          record=record, on_event=on_event)
        _note_changes(record, settings)
        return stepper
    except BaseException:
        record.close()
        raise


def _note_changes(record: Record, settings: dict[str, Any] | None) -> None:
    """Put versions and settings on record if they are not what the last sitting had."""
    run = record.run
    before = run.resumed[-1][1] if run.resumed else record.header
    now = Resumed(versions_here(), before.settings if settings is None else codec.plain(settings))
    if run.stopped is None and (now.versions, now.settings) != (before.versions, before.settings):
        refuse_secrets(now.settings)
        record.append(now)
        run.apply(now)
