"""The grammar: every sentence that can be drawn is read, back and forth, and errors name the word."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_core.shapes.prompt import MAX_OBJECTS, Group, Requirement, parse, sentence
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_requirement, sample_sentence
from reflect_core.types import UserError

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=300, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds, held_out=st.booleans())
def test_parser_reads_every_sentence_that_sampling_draws(task, seed, held_out):
    text, requirement = sample_prompt(task, np.random.default_rng(seed), held_out)
    assert parse(text).canonical() == requirement.canonical()


@settings(max_examples=200, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_plain_sentence_round_trips(task, seed):
    requirement = sample_requirement(task, np.random.default_rng(seed))
    assert parse(sentence(requirement)) == requirement


def test_thousands_of_sentences_with_every_carrier():
    rng = np.random.default_rng(0)
    for task in TASKS:
        for _ in range(300):
            requirement = sample_requirement(task, rng)
            assert parse(sample_sentence(requirement, rng, carrier=1.0)).canonical() == requirement.canonical()


@pytest.mark.parametrize("prompt, groups, relations", [
    ("a red circle", [(1, "red", "circle")], []),
    ("A Red Circle.", [(1, "red", "circle")], []),
    ("an orange star", [(1, "orange", "star")], []),
    ("one simple drawing of three squares", [(3, None, "square")], []),
    ("an image of a star", [(1, None, "star")], []),
    ("a star to the left of a circle", [(1, None, "star"), (1, None, "circle")], [(0, "left of", 1)]),
    ("a star and a circle above a square", [(1, None, "star"), (1, None, "circle"), (1, None, "square")],
     [(1, "above", 2)]),
    ("a red star, a blue star, and two circles",
     [(1, "red", "star"), (1, "blue", "star"), (2, None, "circle")], []),
])
def test_parse_gives(prompt, groups, relations):
    assert parse(prompt) == Requirement(tuple(Group(*g) for g in groups), tuple(relations))


@pytest.mark.parametrize("one, other", [
    ("a star left of a circle", "a circle right of a star"),
    ("a star above a circle", "a photo of a circle below a star"),
    ("a red star and two circles", "two circles and one red star"),
])
def test_canonical_is_one_for_equal_requests(one, other):
    assert parse(one).canonical() == parse(other).canonical()


@pytest.mark.parametrize("one, other", [
    ("a star left of a circle", "a star right of a circle"),
    ("a star left of a circle", "a star and a circle"),
    ("two stars", "three stars"),
    ("a red star", "a star"),
])
def test_canonical_differs_for_different_requests(one, other):
    assert parse(one).canonical() != parse(other).canonical()


@pytest.mark.parametrize("prompt, named", [
    ("", "empty"),
    ("   ", "empty"),
    ("a pink circle", "'pink'"),
    ("a red hexagon", "'hexagon'"),
    ("a red", "the prompt ended"),
    ("red circle", "'red'"),
    ("two circle", "'circle'"),
    ("a circles", "'circles'"),
    ("a circle a star", "'a'"),
    ("a circle and", "the prompt ended"),
    ("a circle left a star", "'left'"),
    ("a circle to the above a star", "'above'"),
    ("a circle above a star below a square", "'below'"),
    (f"{'six'} circles and a star", str(MAX_OBJECTS + 1)),
    ("a red circle and a circle", "one object"),
    ("a circle left of a star left of a square", "expected 'and' or ',' after 'a circle left of a star', found 'left'"),
    ("2 circles", "write 'two'"),
    ("a circle and 3 stars", "write 'three'"),
    ("the circle", "write 'a'"),
    ("a circle left of the star", "write 'a'"),
])
def test_errors_name_what_is_wrong_and_what_can_be_drawn(prompt, named):
    with pytest.raises(UserError, match="I can draw") as error:
        parse(prompt)
    assert named in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(["a", "two", "red", "circle", "circles", "star", "left", "right", "of", "to", "the",
                                 "above", "and", ",", "photo", "simple", "blob"]), max_size=9))
def test_any_string_is_read_or_refused_in_words(words):
    try:
        requirement = parse(" ".join(words))
    except UserError as error:
        assert str(error)
    else:
        assert 1 <= requirement.objects <= MAX_OBJECTS


@pytest.mark.parametrize("junk", [None, 7, b"a circle"])
def test_what_is_no_text_is_refused(junk):
    with pytest.raises(UserError):
        parse(junk)
