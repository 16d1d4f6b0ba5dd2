"""JSON from a language model: asked for by a schema, checked in any case, asked for once more, or given up.

Many servers take a schema and ignore it, so nothing is believed before it is checked. What is checked
is the part of JSON Schema that our own schemas use. Members that a schema does not name may be anything, and
are nobody's to keep.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .chat import Answer, Question

KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
# NaN and Infinity are no JSON; a record cannot hold them.
_DECODER = json.JSONDecoder(parse_constant=lambda name: None)
TRIES = 100
"""Braces of a reply that are tried as the beginning of an object and begin none. Each costs as much as the reply is
long."""


def ask_for_json(ask: Callable[[Sequence[Question]], list[Answer]],
                 questions: Sequence[Question], least: Mapping[str, Any] | None = None) -> list[dict[str, Any] | str]:
    """For each question (with a schema) the object that was answered, or why there is none, in words.

    `ask`: `Asker.ask`, or the like. `least`: a schema that is enough, where the questions' own asks for more than must
    be.
    """
    answers = ask(questions)
    results = [answer.error or parse(answer.text, least or question.schema)
               for question, answer in zip(questions, answers)]
    wrong = [k for k, (result, answer) in enumerate(zip(results, answers))
             if isinstance(result, str) and not answer.error]
    again = [replace(questions[k], before=(*questions[k].before, (questions[k].text, answers[k].text[:2000])),
                     text=f"That was not as it should be: {results[k]}. Answer with the JSON object alone, as told "
                     "before.") for k in wrong]
    for k, question, answer in zip(wrong, again, ask(again)):
        result = answer.error or parse(answer.text, least or question.schema)
        results[k] = result if isinstance(result, dict) else f"no JSON as asked for, twice: {result}"
    return results


def parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any] | str:
    """The first object in a text that fits the schema, or, in words, why there is none."""
    why = "it has no JSON object"
    at, left = text.find("{"), TRIES
    while at >= 0 and left:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at, left = text.find("{", at + 1), left - 1
            continue
        wrong = misfit(schema, value)
        if wrong is None:
            return value
        why, at = wrong, text.find("{", end)
    return why


def misfit(schema: Mapping[str, Any], value: Any, name: str = "it") -> str | None:
    """What of `value` is not as the schema says, in words; None if all is."""
    kind = schema.get("type")
    if not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{name} is {_shown(value)}; expected {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{name} is {_shown(value)}; expected one of {', '.join(map(str, schema['enum']))}"
    if kind in ("integer", "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{name} is {_shown(value)}; expected {schema.get('minimum')} to {schema.get('maximum')}"
    if kind == "array":
        if len(value) < schema.get("minItems", 0):
            return f"{name} has {len(value)} items; expected {schema['minItems']} or more"
        return next((wrong for k, item in enumerate(value) if (wrong := misfit(schema["items"], item, f"{name}[{k}]"))),
                    None)
    if kind == "object":
        for key, inner in schema.get("properties", {}).items():
            if key not in value:
                if key in schema.get("required", ()):
                    return f"{name} lacks {key!r}"
            elif wrong := misfit(inner, value[key], key if name == "it" else f"{name}.{key}"):
                return wrong
    return None


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):  # of any size and depth
        return "an object" if isinstance(value, dict) else "an array"
    return json.dumps(value[:60] if isinstance(value, str) else value)[:60]


def object_of(**properties: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with exactly these members, in this order: strict, as OpenAI wants it."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
