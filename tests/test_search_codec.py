"""The JSON round trip of everything in a record, as a rule over generated values."""

import json

import pytest
from fakes import SIZE
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.search import (
    POLICIES,
    BestOfN,
    Budget,
    Header,
    NoisePromptScaling,
    ReflectionFlow,
    codec,
    policy_from_json,
)
from reflect_core.search.entries import (
    Drew,
    Judged,
    Plan,
    Planned,
    Refined,
    Reflected,
    Resumed,
    Stopped,
    entry_from_json,
    entry_to_json,
)
from reflect_core.search.header import header_from_json, header_to_json
from reflect_core.types import Check, Cost, Pair, Request, UserError, Verdict

# Half a surrogate pair is no text, but a language model cut off at its token limit can return one.
texts = st.text(max_size=20) | st.just("half of a pair \ud83d") | st.just("line\u2028break\nand\r\x00")
counts = st.integers(0, 2**63)
seconds = st.floats(0, 1e9)
finite = st.floats(allow_nan=False, allow_infinity=False)
proper = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | proper,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(proper, inner, max_size=3), max_leaves=6)
pairs = st.builds(Pair, feedback=texts, candidate=st.none() | st.integers(0, 99))
requests = st.builds(Request, prompt=texts, seed=counts, width=st.integers(SIZE, 4096),
                     height=st.integers(1, 4096), steps=st.integers(1, 100), guidance=st.floats(0, 30),
                     context=st.lists(pairs, max_size=3).map(tuple), original_prompt=st.none() | texts)
costs = st.builds(Cost, counts, counts, counts, counts, counts, seconds)
checks = st.builds(Check, texts, texts, st.booleans(), texts)
verdicts = st.builds(Verdict, st.floats(0, 1), st.booleans(), st.lists(checks, max_size=3).map(tuple), texts,
                     st.dictionaries(proper, values, max_size=3))


def tuples(strategy):
    return st.lists(strategy, min_size=1, max_size=3).map(tuple)


ids = tuples(st.integers(0, 99))
planned = st.builds(Planned, requests, st.integers(0, 9), st.none() | st.integers(0, 99))
entries = st.one_of(
    st.builds(Plan, st.integers(0, 9), tuples(planned), ids, st.booleans(), seconds),
    st.builds(Drew, st.integers(0, 9), tuples(texts), tuples(costs), seconds, tuples(tuples(texts)), seconds),
    st.builds(Judged, ids, tuples(verdicts), costs, seconds),
    st.builds(Reflected, st.integers(0, 9), ids, tuples(texts), costs, seconds),
    st.builds(Refined, st.integers(0, 9), ids, tuples(texts), costs, seconds),
    st.builds(Stopped, texts, texts, seconds),
    st.builds(Resumed, st.dictionaries(texts, texts, max_size=3), st.dictionaries(proper, values, max_size=3), seconds))


def through(data):
    line = codec.dumps(data)
    assert "\n" not in line and line.isascii()
    return json.loads(line)


@given(requests)
def test_request(request):
    assert codec.request_from_json(through(codec.request_to_json(request))) == request


@given(verdicts)
def test_verdict(verdict):
    assert codec.verdict_from_json(through(codec.verdict_to_json(verdict))) == verdict


@given(costs)
def test_cost(cost):
    assert codec.cost_from_json(through(codec.cost_to_json(cost))) == cost


@given(entries)
def test_entry(entry):
    assert entry_from_json(through(entry_to_json(entry))) == entry


@given(requests, st.builds(Budget, st.none() | st.integers(1, 99), st.none() | st.integers(1, 99),
                           st.none() | st.integers(1, 99), st.none() | st.floats(0.1, 1e6)))
def test_header(request, budget):
    header = Header(request, BestOfN(3).to_json(), budget, 2, "model", "hash", {"reflector": "rules"})
    assert header_from_json(through(header_to_json(header))) == header


@pytest.mark.parametrize("policy", [
    BestOfN(), BestOfN(3, False), NoisePromptScaling.official(), ReflectionFlow.official(),
    ReflectionFlow(), ReflectionFlow.for_budget(33, patience=2), ReflectionFlow(parents="best", corrector_guidance=2)])
def test_policy(policy):
    assert policy_from_json(through(policy.to_json())) == policy


def test_policy_settings_left_out_take_their_defaults():
    assert policy_from_json({"name": "best_of_n", "n": 5}) == BestOfN(5)
    assert set(POLICIES) == {"best_of_n", "noise_prompt", "reflection_flow", "reflect_dit"}


@pytest.mark.parametrize("data, words", [
    ({"name": "worst_of_n"}, "unknown policy"), ({}, "unknown policy"), ([], "JSON object"),
    ({"name": "best_of_n", "m": 3}, "no field 'm'"), ({"name": "best_of_n", "n": 0}, "from 1 on"),
    ({"name": "best_of_n", "n": "4"}, "must be int"), ({"name": "best_of_n", "n": True}, "must be int"),
    ({"name": "best_of_n", "early_stop": 1}, "must be bool"),
    ({"name": "reflection_flow", "parents": "first"}, "one of 'chain'"),
    ({"name": "reflection_flow", "patience": 0}, "from 1 on"),
])
def test_bad_policies_say_what_is_wrong(data, words):
    with pytest.raises(UserError, match=words):
        policy_from_json(data)


@pytest.mark.parametrize("data, words", [
    ({"line": "sketch"}, "unknown kind"), ({"line": "judged"}, "lacks the field"),
    ({"line": "judged", "candidates": 3, "verdicts": []}, "must be a list"),
    ({"line": "judged", "candidates": [True], "verdicts": []}, "expected int"),
    ({"line": "drawn", "first": 0, "sha256": [7], "costs": []}, "expected str"),
    ({"line": "plan", "round": 0, "planned": [{}], "chunks": [1]}, "JSON object"),
    ({"line": "stopped", "kind": "done", "reason": "x", "more": 1}, "no field 'more'"),
])
def test_bad_lines_say_what_is_wrong(data, words):
    with pytest.raises(UserError, match=words):
        entry_from_json(data)


def test_a_context_picture_from_outside_is_refused():
    with pytest.raises(UserError, match="from outside"):
        codec.pair_to_json(Pair("brighter", picture=object()))


@pytest.mark.parametrize("text, mended", [
    ("\ud83d", "\ufffd"), ("a \ud83d b", "a \ufffd b"), ("\ude00\ud83d", "\ufffd\ufffd"),
    ("\ud83d\ude00", "\U0001f600"), ("\ufeffa\x00\u2028\n", "\ufeffa\x00\u2028\n"), ("\U0001f600", "\U0001f600")])
def test_half_characters_become_marks_and_all_else_stays(text, mended):
    assert codec.plain({text: [text, {"x": text}]}) == {mended: [mended, {"x": mended}]}
