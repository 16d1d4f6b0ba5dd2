"""What can happen in a run, one dataclass for each kind of line in a record.

A run is the fold of these entries (`run.py`), a record is their JSON, one a line (`record.py`), and
the stepper makes them (all but `Resumed`). There is no other state: that is why a run that was
killed resumes from its lines alone.

`overhead` is wall time in seconds since the entry before, outside all actors: the search itself.
`asked` is what a language model was asked and answered, in order, also by calls that failed before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

from ..types import Cost, Exchange, Request, UserError, Verdict
from . import codec


@dataclass(frozen=True)
class Planned:
    """A candidate to be: its request, the branch it belongs to and the candidate it comes from."""

    request: Request
    branch: int = 0
    parent: int | None = None


@dataclass(frozen=True)
class Plan:
    """A draw was decided: what, and in which chunks. Written before anything is drawn, so that a
    resumed run splits the rest into the same batches as an uninterrupted one (a batch's
    composition can change the last bits of its pictures)."""

    round: int
    planned: tuple[Planned, ...]
    chunks: tuple[int, ...]
    until_accepted: bool = False
    """Leave the chunks after the first one with an accepted candidate undrawn."""
    overhead: float = 0.0


@dataclass(frozen=True)
class Drew:
    """The next chunk of the plan was drawn and its pictures are safe. All of a chunk or nothing."""

    first: int
    """Id of the chunk's first candidate; the others follow."""
    sha256: tuple[str, ...]
    """Of each picture's pixels, see `pictures.pixel_sha256`."""
    costs: tuple[Cost, ...]
    seconds: float = 0.0
    """Wall time of the generator's call, measured outside it."""
    notes: tuple[tuple[str, ...], ...] = ()
    """Of each picture, see `types.Drawn`; empty where there are none of any."""
    overhead: float = 0.0


@dataclass(frozen=True)
class Judged:
    candidates: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    cost: Cost = Cost()
    overhead: float = 0.0
    asked: tuple[Exchange, ...] = ()


@dataclass(frozen=True)
class Reflected:
    round: int
    """The round that these reflections are for (not the one their candidates were drawn in)."""
    candidates: tuple[int, ...]
    reflections: tuple[str, ...]
    cost: Cost = Cost()
    overhead: float = 0.0
    asked: tuple[Exchange, ...] = ()
    notes: tuple[tuple[str, ...], ...] = ()
    """Of each candidate, such as what was said and is not among the reflections; empty where there are none of any."""


@dataclass(frozen=True)
class Refined:
    round: int
    """The round that these prompts are for."""
    candidates: tuple[int, ...]
    prompts: tuple[str, ...]
    cost: Cost = Cost()
    overhead: float = 0.0
    asked: tuple[Exchange, ...] = ()
    notes: tuple[tuple[str, ...], ...] = ()
    """As of `Reflected`."""


@dataclass(frozen=True)
class Stopped:
    kind: str
    """'accepted', 'done' or 'budget'."""
    reason: str
    overhead: float = 0.0


@dataclass(frozen=True)
class Resumed:
    """The run goes on with other libraries or settings than before, which may change the bits of its
    pictures from here on. A resume under which nothing changed leaves no line."""

    versions: dict[str, str]
    """As in the header, now."""
    settings: dict[str, Any]
    overhead: float = 0.0


Entry = Union[Plan, Drew, Judged, Reflected, Refined, Stopped, Resumed]

KINDS: dict[str, type] = {"plan": Plan, "drawn": Drew, "judged": Judged, "reflected": Reflected,
                          "refined": Refined, "stopped": Stopped, "resumed": Resumed}
_NAMES = {cls: name for name, cls in KINDS.items()}


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """The entry as the JSON object of its line; `line` says which kind."""
    data = codec.flat_to_json(entry)
    if "cost" in data:
        data["cost"] = codec.cost_to_json(data["cost"])
    for name in ("notes", "asked"):
        if not data.get(name, True):
            del data[name]
    if "asked" in data:
        data["asked"] = [codec.exchange_to_json(e) for e in data["asked"]]
    if "costs" in data:
        data["costs"] = [codec.cost_to_json(c) for c in data["costs"]]
    if "verdicts" in data:
        data["verdicts"] = [codec.verdict_to_json(v) for v in data["verdicts"]]
    if "planned" in data:
        data["planned"] = [{**codec.flat_to_json(p), "request": codec.request_to_json(p.request)}
                           for p in data["planned"]]
    return {"line": _NAMES[type(entry)], **data}


def entry_from_json(data: Any) -> Entry:
    """UserError for a line of unknown kind or with fields that do not fit."""
    data = dict(codec.mapping(data, "a line"))
    name = data.pop("line", None)
    if name not in KINDS:
        raise UserError(f"unknown kind of line {name!r}; expected one of {', '.join(KINDS)}")
    given: dict[str, Any] = {}
    decoders = {"costs": codec.cost_from_json, "verdicts": codec.verdict_from_json,
                "planned": _planned_from_json, "chunks": _as(int), "candidates": _as(int),
                "sha256": _as(str), "reflections": _as(str), "prompts": _as(str), "notes": _texts,
                "asked": codec.exchange_from_json}
    for field in decoders.keys() & data.keys():
        if not isinstance(data[field], list):
            raise UserError(f"{field} of a {name} line must be a list; got {data[field]!r}")
        given[field] = tuple(decoders[field](item) for item in data[field])
    if "cost" in data:
        given["cost"] = codec.cost_from_json(data["cost"])
    return codec.flat_from_json(KINDS[name], data, **given)


def _planned_from_json(data: Any) -> Planned:
    request = codec.request_from_json(codec.mapping(data, "Planned").get("request"))
    return codec.flat_from_json(Planned, data, request=request)


def _texts(item: Any) -> tuple[str, ...]:
    if not isinstance(item, (list, tuple)):
        raise UserError(f"expected a list of texts; got {item!r}")
    return tuple(_as(str)(text) for text in item)


def _as(kind: type):
    def check(item: Any) -> Any:
        if not isinstance(item, kind) or isinstance(item, bool):
            raise UserError(f"expected {kind.__name__}; got {item!r}")
        return item
    return check
