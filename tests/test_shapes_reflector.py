"""The reflector: instructions in known words, for what the judge saw or believed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shapes_verifier import BLUE_STAR, RED_CIRCLE, RED_CIRCLE_2, random_objects

from reflect_core.reflectors import ShapesReflector
from reflect_core.shapes.prompt import COUNTS, WORDS
from reflect_core.shapes.repair import REFLECTION_WORDS, plan, words
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_requirement
from reflect_core.shapes.scene import render
from reflect_core.verifiers import FlippingVerifier, ShapesVerifier

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_reflections_use_known_words_only(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    text = words(plan(random_objects(rng, requirement), requirement), requirement, 10)
    assert set(text.replace(",", " ,").split()) <= WORDS | set(REFLECTION_WORDS) | set(COUNTS)


def reflect(prompt, *objects, judge=None, limit=3):
    pictures = [render(objects)]
    return ShapesReflector(limit).reflect(prompt, pictures, (judge or ShapesVerifier()).judge(prompt, pictures))[0]


@pytest.mark.parametrize("prompt, objects, expected", [
    ("a red circle", [RED_CIRCLE], ""),
    ("a red circle", [], "add a red circle"),
    ("a blue circle", [RED_CIRCLE], "change the red circle to blue"),
    ("a red star", [RED_CIRCLE], "change the red circle to a star"),
    ("a red circle", [RED_CIRCLE, BLUE_STAR], "remove the blue star"),
    ("a red circle", [RED_CIRCLE, RED_CIRCLE_2], "remove one red circle"),
    ("a red circle and a yellow square", [RED_CIRCLE], "add a yellow square"),
    ("a circle left of a square", [RED_CIRCLE], "add a square right of the circle"),
])
def test_reflections_in_words(prompt, objects, expected):
    assert reflect(prompt, *objects) == expected


def test_a_wrong_relation_asks_for_a_move():
    assert reflect("a circle right of a star", RED_CIRCLE, BLUE_STAR) in (
        "move the red circle right of the star", "move the blue star left of the circle")


def test_blobs_are_named_and_the_limit_kept():
    picture = np.array(render((RED_CIRCLE,)))
    picture[40:60, 30:38] = (40, 158, 60)
    verdicts = ShapesVerifier().judge("a red circle", [picture])
    assert ShapesReflector().reflect("a red circle", [picture], verdicts) == ["remove the green blob"]
    assert len(reflect("three red circles and three blue stars", limit=2).split(", ")) == 2
    with pytest.raises(ValueError, match="limit"):
        ShapesReflector(0)


def test_each_picture_needs_a_verdict():
    with pytest.raises(ValueError, match="1 verdicts on 2 pictures"):
        ShapesReflector().reflect("a star", [render(())] * 2, ShapesVerifier().judge("a star", [render(())]))


def test_reflections_follow_what_an_erring_judge_believes():
    contrary = FlippingVerifier(ShapesVerifier(), 1.0)
    # The circle is overlooked and something else imagined: the reflector asks for what is there.
    said = reflect("a red circle", RED_CIRCLE, judge=contrary)
    assert "a red circle" in said and "the red circle" not in said
    # The missing circle is imagined, so nothing asks for it.
    assert "add" not in reflect("a red circle", judge=contrary)
    # Everything stands right, and is told to move.
    said = reflect("a circle left of a star", BLUE_STAR, judge=contrary)
    assert "move" in said or "remove" in said


@settings(max_examples=80, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_an_erring_judge_that_refuses_always_gets_a_reflection(task, seed):
    rng = np.random.default_rng(seed)
    text, requirement = sample_prompt(task, rng)
    picture = render(random_objects(rng, requirement, most=5))
    (verdict,) = FlippingVerifier(ShapesVerifier(), 0.3, seed).judge(text, [picture])
    (said,) = ShapesReflector().reflect(text, [picture], [verdict])
    assert bool(said) != verdict.accepted
    assert verdict.accepted == all(check.passed for check in verdict.checks) == (verdict.score == 1)
