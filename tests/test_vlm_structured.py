"""JSON out of a language model's words: found, checked, and looked for in no time."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.vlm.structured import misfit, object_of, parse

SCHEMA = object_of(name={"type": "string"}, number={"type": "integer", "minimum": 0, "maximum": 3})


@pytest.mark.parametrize("text, found", [
    ('{"name": "a", "number": 1}', {"name": "a", "number": 1}),
    ('Sure! {"a": 1} {"name": "a", "number": 2} and more', {"name": "a", "number": 2}),
    ('{{{ {"name": "}", "number": 3}', {"name": "}", "number": 3}),
    ('```json\n{"name": "a", "number": 0, "more": 1}\n```', {"name": "a", "number": 0, "more": 1}),
    ('{"name": "a", "number": 4}', "number is 4; expected 0 to 3"),
    ('{"name": "a", "number": true}', "number is true; expected integer"),
    ('{"name": "a"}', "it lacks 'number'"),
    ('{"name": "a", "number": 1', "it has no JSON object"),
    ("[]", "it has no JSON object"),
    ("{" * 5000, "it has no JSON object"),
])
def test_json_is_found_and_checked(text, found):
    assert parse(text, SCHEMA) == found


@pytest.mark.parametrize("text", ['{"questions":[' * 10_000, '{"a":' * 20_000, "{" * 140_000,
                                  '{"name": ["' + "x" * 140_000 + '"], "number": 1}'])
def test_a_reply_is_looked_through_in_no_time(text):
    began = time.process_time()
    assert isinstance(why := parse(text, SCHEMA), str) and len(why) < 200
    assert time.process_time() - began < 1


def test_a_strange_value_is_shown_short():
    deep = json.loads("[" * 900 + "]" * 900)
    for value in ("x" * 10_000, deep, {"a": deep}):
        assert len(misfit({"type": "string", "enum": ["a"]}, value)) < 120
        assert len(misfit({"type": "integer"}, value)) < 120
    assert len(misfit({"type": "integer", "minimum": 0, "maximum": 10}, 10**4000)) < 120


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_only_what_fits_is_taken(value):
    fits = isinstance(value, dict) and isinstance(value.get("name"), str) and type(value.get("number")) is int \
        and 0 <= value["number"] <= 3
    assert (misfit(SCHEMA, value) is None) == fits
