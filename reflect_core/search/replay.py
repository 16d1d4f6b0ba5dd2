"""Replay: draw a record's pictures again, in the same chunks, and compare them bit for bit.

Judges, reflectors and refiners are not asked: what they said is on the record, and the requests
with the pictures they refer to are all that a generator needs. A replay that is the same shows
that weights, code and environment still are what made the run; it is also how a change that must
not change pictures is checked. The official runs cannot be replayed: their correctors' noise comes
from whatever state the global generator was left in (spec 4.3).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ImageChops

from ..types import Generator, UserError
from .actors import ActorError
from .header import versions_here
from .pictures import pixel_sha256
from .record import load


@dataclass(frozen=True)
class Difference:
    """A picture that did not come out again."""

    candidate: int
    largest: int
    """Largest difference of a channel of a pixel, 1 to 255."""


@dataclass(frozen=True)
class ReplayReport:
    pictures: int
    """Pictures drawn again and compared."""
    differences: tuple[Difference, ...]
    same_model: bool | None
    """Whether the fingerprint given is the record's; None if none was given."""

    changed_versions: tuple[str, ...] = ()
    """'torch 2.6.0 -> 2.7.1' and so on: what is another version here than on the record."""
    resumed: tuple[str, ...] = ()
    """'from candidate 8 on torch 2.6.0 -> 2.7.1' and so on: what changed when the run was resumed."""

    @property
    def same(self) -> bool:
        """Every picture came out bit for bit, and there was one."""
        return self.pictures > 0 and not self.differences

    def summary(self) -> str:
        """One sentence for people."""
        if not self.pictures:
            return "there is no picture on the record to compare"
        model = " (the weights are not the record's)" if self.same_model is False else ""
        resumed = f"; the run was resumed: {', '.join(self.resumed)}" if self.resumed else ""
        if self.same:
            return f"all {self.pictures} pictures came out the same, bit for bit{model}{resumed}"
        changed = f"; other versions: {', '.join(self.changed_versions)}" if self.changed_versions else ""
        worst = max(self.differences, key=lambda d: d.largest)
        return (f"{len(self.differences)} of {self.pictures} pictures differ{model}: candidates "
                f"{', '.join(str(d.candidate) for d in self.differences)}; the largest difference is "
                f"{worst.largest} of 255, in candidate {worst.candidate}{changed}{resumed}")


def replay(folder: str | os.PathLike, generator: Generator, fingerprint: str | None = None,
           on_picture: Callable[[int, int], None] | None = None) -> ReplayReport:
    """Draw everything on the record in `folder` again. Writes nothing.

    `on_picture` is called with (pictures compared, of how many). UserError if the record or one of
    its pictures is damaged, or the generator cannot take its requests.
    """
    header, run = load(folder)
    differences: list[Difference] = []
    done = 0
    for chunk in run.chunks:
        most = max(len(c.request.context) for c in chunk)
        if most > generator.max_context:
            raise UserError(f"the record has requests with {most} context pair(s), the generator takes "
                            f"{generator.max_context}; try the model {header.model!r} that drew them")
        requests = [run.with_pictures(c.request) for c in chunk]
        drawings = generator.draw(requests)
        if len(drawings) != len(chunk):
            raise ActorError(f"the generator returned {len(drawings)} pictures for {len(chunk)} requests")
        for candidate, drawn in zip(chunk, drawings):
            # Read first: a damaged picture of the record is an error, not a difference.
            recorded = run.picture(candidate.id)
            if pixel_sha256(drawn.picture) != candidate.sha256:
                differences.append(Difference(candidate.id, _largest(recorded, drawn.picture)))
            done += 1
            if on_picture:
                on_picture(done, len(run.candidates))
    same_model = None if fingerprint is None else fingerprint == header.fingerprint
    resumed, before = [], header
    for first, entry in run.resumed:
        resumed += [f"from candidate {first} on {change}" for name in ("versions", "settings")
                    for change in _changes(getattr(before, name), getattr(entry, name))]
        before = entry
    return ReplayReport(done, tuple(differences), same_model, tuple(_changes(header.versions, versions_here())),
                        tuple(resumed))


def _changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """'torch 2.6.0 -> 2.7.1', 'model.device cpu -> cuda': what differs, also inside of what is in there."""
    for name in {**before, **after}:
        was, now = before.get(name), after.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{prefix}{name}.")
        elif was != now:
            yield f"{prefix}{name} {'none' if was is None else was} -> {'none' if now is None else now}"


def _largest(a, b) -> int:
    if a.size != b.size or a.mode != b.mode:
        return 255
    extrema = ImageChops.difference(a, b).getextrema()
    return max(high for _, high in (extrema if isinstance(extrema[0], tuple) else (extrema,)))
