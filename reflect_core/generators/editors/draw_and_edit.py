"""Two models as one generator: one draws the first pictures, the other edits them.

An editor was tuned for edits, and a model of the same size that was not may draw better first pictures; RAISE
(2603.00483) has FLUX.1-dev for these and FLUX.1 Kontext for the edits. One request's size, steps and guidance hold for
both, by default the drawing model's; a policy may have its own for corrections (`corrector_steps`,
`corrector_guidance`). The two share no weights, also where they have equal ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...presets.choice import BASE, ModelChoice
from ...types import Drawn, Generator, Request, StepCallback, UserError
from ..requests import check_request


class DrawAndEdit:
    """Requests without context go to the drawer, those with one to the editor. See `Generator`."""

    def __init__(self, drawer: Generator, editor: Generator) -> None:
        """UserError if `editor` edits nothing."""
        if not editor.max_context:
            raise UserError("the second model corrects nothing; expected an editor, or a model with a corrector")
        self.drawer, self.editor = drawer, editor
        self.max_context = editor.max_context
        self.edits = getattr(editor, "edits", False)
        self.defaults = {**editor.defaults, **drawer.defaults}
        self.places = _BothPlaces(drawer.places, editor.places)

    @staticmethod
    def load_drawer(base: ModelChoice, dtype: torch.dtype, device: str | torch.device,
                    encoder_device: str | torch.device | None, quantise: str = "none",
                    pack_on: str | torch.device | None = None) -> Generator:
        """The drawing model, in an editor's dtype, place and bits; a file of GGUF is packed as it is. UserError, that
        says that it is about the base."""
        base.device, base.dtype = str(device), str(dtype).removeprefix("torch.")
        extra: dict[str, Any] = {} if encoder_device is None else {"encoder_device": encoder_device}
        if quantise != "none" and base.folder.suffix.lower() != ".gguf":
            extra |= {"quantise": quantise, "pack_on": pack_on}
        try:
            return base.load(**extra)
        except UserError as error:
            raise UserError(f"the base, {base.name}: {error}".replace("--part ", f"--part {BASE}")) from error

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        return {**self.editor.parts, **{BASE + name: part for name, part in self.drawer.parts.items()}}

    @property
    def companions(self) -> dict[str, list[torch.nn.Module]]:
        return {**self.editor.companions, **{BASE + name: held for name, held in self.drawer.companions.items()}}

    def evaluations(self, request: Request) -> int:
        return (self.editor if request.context else self.drawer).evaluations(request)

    def with_options(self, **changes: Any) -> DrawAndEdit:
        """The same two with other options of the editor."""
        return DrawAndEdit(self.drawer, self.editor.with_options(**changes))

    def draw(self, requests: Sequence[Request], callback: StepCallback | None = None) -> list[Drawn]:
        """First what is drawn, then what is edited; the results are in the order of the requests.

        UserError before the first of them for one of a size that either model cannot draw: what is drawn is edited.
        """
        for request in requests:
            check_request(request, math.lcm(self.drawer.patch, self.editor.patch), self.max_context,
                          self.defaults["guidance"])
        drawn: list = [None] * len(requests)
        for model, context in ((self.drawer, False), (self.editor, True)):
            rows = [row for row, request in enumerate(requests) if bool(request.context) is context]
            if rows:
                for row, one in zip(rows, model.draw([requests[row] for row in rows], callback)):
                    drawn[row] = one
        return drawn


class _BothPlaces:
    """One memory manager for both, to whom the drawing model's parts have names of their own."""

    def __init__(self, drawer: Any, editor: Any) -> None:
        self.drawer, self.editor = drawer, editor

    @property
    def manager(self) -> Callable | None:
        return self.editor.manager

    @manager.setter
    def manager(self, manager: Callable | None) -> None:
        self.editor.manager = manager
        self.drawer.manager = None if manager is None else lambda name, pixels: manager(BASE + name, pixels)

    @property
    def rest(self) -> Callable:
        return self.editor.rest

    @rest.setter
    def rest(self, rest: Callable) -> None:
        self.editor.rest = self.drawer.rest = rest

    @property
    def arrive(self) -> Callable | None:
        return self.editor.arrive

    @arrive.setter
    def arrive(self, arrive: Callable | None) -> None:
        self.editor.arrive = self.drawer.arrive = arrive
