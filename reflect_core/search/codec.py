"""The words of `types.py` as plain JSON and back, exactly.

Everything a judge or generator hands over goes through here once, also when nothing is written to
disk: a tuple in a verdict's details is a list before a resume as it is after one, so that a
resumed run cannot differ from an uninterrupted one. Fields come from the dataclasses themselves;
a field that is added to `types.py` is in the record without a change here.

The official code writes labelled lines that are no JSON and cannot be read back (spec 4.7).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ..types import Check, Cost, Exchange, Pair, Request, UserError, Verdict

T = TypeVar("T")

_KINDS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
"""JSON types by the annotation of a field; anything else is taken as it is."""


def dumps(value: Any) -> str:
    """One line of JSON, in ASCII. No NaN: it would not be JSON."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def plain(value: Any) -> Any:
    """`value` as it reads after a round trip through JSON, every text in it proper Unicode.

    A language model that ran into its token limit can hand over half of a surrogate pair. No text
    encoder takes it, so it would stop its run for good; it becomes a replacement mark. TypeError or
    ValueError for what JSON cannot hold.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def flat_to_json(thing: Any) -> dict[str, Any]:
    """A dataclass whose fields are JSON values already."""
    return {f.name: getattr(thing, f.name) for f in fields(thing)}


def flat_from_json(cls: type[T], data: Any, **given: Any) -> T:
    """The dataclass `cls` from a JSON object; `given` are fields that the caller decoded itself.

    UserError for a missing or unknown field or a value of the wrong kind.
    """
    data = mapping(data, cls.__name__)
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    strangers = sorted(set(data) - set(known))
    if strangers:
        raise UserError(f"{cls.__name__} has no field {strangers[0]!r}; expected some of {', '.join(known)}")
    values = dict(given)
    for name, spec in known.items():
        if name in values:
            continue
        if name in data:
            values[name] = _checked(f"{cls.__name__}.{name}", data[name], str(spec.type))
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise UserError(f"{cls.__name__} lacks the field {name!r}; got {sorted(data)}")
    return cls(**values)


def mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{what} must be a JSON object; got {type(data).__name__}")
    return data


def _checked(where: str, value: Any, annotation: str) -> Any:
    kind, _, rest = annotation.partition(" | ")
    if value is None and rest == "None":
        return None
    allowed = _KINDS.get(kind)
    if allowed is None:
        return value
    # bool is an int in Python, but `true` pictures is a mistake.
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool"):
        raise UserError(f"{where} must be {annotation}; got {value!r}")
    return float(value) if kind == "float" else value


def pair_to_json(pair: Pair) -> dict[str, Any]:
    if pair.candidate is None and pair.picture is not None:
        raise UserError("a record cannot hold a context picture from outside; expected the id of a "
                        "candidate; try to make the picture a candidate of the run")
    return {"feedback": pair.feedback, "candidate": pair.candidate}


def request_to_json(request: Request) -> dict[str, Any]:
    """Context pictures are named by their candidate's id, never copied."""
    return {**flat_to_json(request), "context": [pair_to_json(p) for p in request.context]}


def request_from_json(data: Any) -> Request:
    context = mapping(data, "Request").get("context", [])
    if not isinstance(context, list):
        raise UserError(f"Request.context must be a list; got {context!r}")
    return flat_from_json(Request, data, context=tuple(flat_from_json(Pair, p) for p in context))


def cost_to_json(cost: Cost) -> dict[str, Any]:
    """Without the zeros: most costs have one or two fields."""
    return {k: v for k, v in flat_to_json(cost).items() if v}


def cost_from_json(data: Any) -> Cost:
    return flat_from_json(Cost, data)


def verdict_to_json(verdict: Verdict) -> dict[str, Any]:
    unjudged = {} if verdict.judged else {"judged": False}
    return {
        "score": float(verdict.score),
        "accepted": bool(verdict.accepted),
        "checks": [{**flat_to_json(c), "passed": bool(c.passed)} for c in verdict.checks],
        "reason": verdict.reason,
        "details": plain(verdict.details),
        **unjudged,
    }


def exchange_to_json(exchange: Exchange) -> dict[str, Any]:
    """Without what is not said: most have few of the fields."""
    return {k: v for k, v in flat_to_json(exchange).items() if v or k == "question"}


def exchange_from_json(data: Any) -> Exchange:
    pictures = mapping(data, "Exchange").get("pictures", [])
    if not isinstance(pictures, (list, tuple)) or not all(isinstance(name, str) for name in pictures):
        raise UserError(f"Exchange.pictures must be a list of texts; got {pictures!r}")
    return flat_from_json(Exchange, data, pictures=tuple(pictures))


def verdict_from_json(data: Any) -> Verdict:
    checks = mapping(data, "Verdict").get("checks", [])
    if not isinstance(checks, list):
        raise UserError(f"Verdict.checks must be a list; got {checks!r}")
    return flat_from_json(Verdict, data, checks=tuple(flat_from_json(Check, c) for c in checks))
