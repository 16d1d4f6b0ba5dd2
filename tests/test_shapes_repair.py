"""The reflector over the repair, and the refiner: what they say is enough, true to the prompt, repeatable."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shapes_verifier import BLUE_STAR, RED_CIRCLE, RED_CIRCLE_2, random_objects

from reflect_core.refiners import ShapesRefiner
from reflect_core.reflectors import ShapesReflector
from reflect_core.shapes.checks import check_objects
from reflect_core.shapes.prompt import COUNTS, WORDS, parse
from reflect_core.shapes.repair import REFLECTION_WORDS, apply, plan, words
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_requirement, sample_scene
from reflect_core.shapes.scene import Obj, render
from reflect_core.types import UserError
from reflect_core.verifiers import FlippingVerifier, ShapesVerifier

seeds = st.integers(0, 2**32 - 1)


def repaired(objects, requirement, rng, limit=None, rounds=1):
    """The objects after rounds of `limit` fixes; None where no free place was found."""
    for _ in range(rounds):
        fixes = plan(objects, requirement)
        if not fixes:
            break
        objects = apply(objects, requirement, fixes[:limit], rng)
        if objects is None:
            return None
    return objects


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_no_fix_is_planned_exactly_when_the_judge_accepts(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    assert plan(sample_scene(requirement, rng), requirement) == []
    objects = random_objects(rng, requirement)
    assert (plan(objects, requirement) == []) == check_objects(requirement, objects).accepted


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_all_fixes_make_the_judge_accept(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = repaired(random_objects(rng, requirement, most=5), requirement, rng)
    if objects is not None:
        findings = check_objects(requirement, objects)
        assert findings.accepted, findings.checks


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds, limit=st.integers(1, 3))
def test_a_few_fixes_a_round_get_there(task, seed, limit):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = repaired(random_objects(rng, requirement, most=5), requirement, rng, limit, rounds=12)
    assert objects is None or check_objects(requirement, objects).accepted


@pytest.mark.slow
def test_repairs_by_the_thousand():
    found_no_place = 0
    for seed in range(14_000):
        rng = np.random.default_rng(seed)
        requirement = sample_requirement(TASKS[seed % len(TASKS)], rng)
        objects = random_objects(rng, requirement, most=6)
        assert (plan(objects, requirement) == []) == check_objects(requirement, objects).accepted
        objects = repaired(objects, requirement, rng, limit=1 + seed % 3, rounds=15)
        found_no_place += objects is None
        assert objects is None or check_objects(requirement, objects).accepted
    assert found_no_place < 1400


def test_repaired_pictures_are_accepted_by_the_judge_that_looks_at_pixels():
    rng, judge, done = np.random.default_rng(0), ShapesVerifier(), 0
    for k in range(60):
        text, requirement = sample_prompt(TASKS[k % len(TASKS)], rng)
        objects = repaired(random_objects(rng, requirement, most=5), requirement, rng)
        if objects is not None:
            done += 1
            (verdict,) = judge.judge(text, [render(objects)])
            assert verdict.accepted, (text, verdict.reason)
    assert done > 40


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


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_refined_prompts_ask_for_the_same(task, seed):
    rng = np.random.default_rng(seed)
    text, requirement = sample_prompt(task, rng)
    picture = render((Obj("circle", "red", 20 + rng.integers(80) / 4, 20, 7),))
    (refined,) = ShapesRefiner(seed % 5).refine(text, [text], [picture], [None], [""])
    assert refined != text and parse(refined).canonical() == requirement.canonical()


def test_refiner_repeats_itself_and_varies_with_picture_seed_and_present_sentence():
    prompt = "two red circles left of a blue star and a yellow square"
    pictures = [render((Obj("circle", "red", 20 + k / 4, 20, 7),)) for k in range(12)]
    currents = [prompt] * len(pictures)
    nothing = [None] * len(pictures)
    first = ShapesRefiner(1).refine(prompt, currents, pictures, nothing, nothing)
    assert first == ShapesRefiner(1).refine(prompt, currents, pictures, nothing, nothing)
    assert first[::-1] == ShapesRefiner(1).refine(prompt, currents, pictures[::-1], nothing, nothing)
    assert first != ShapesRefiner(2).refine(prompt, currents, pictures, nothing, nothing)
    assert first != ShapesRefiner(1).refine(prompt, first, pictures, nothing, nothing)
    assert len(set(first)) > 6
    assert any("right of" in text for text in first) and any("left of" in text for text in first)
    with pytest.raises(UserError):
        ShapesRefiner().refine("a hexagon", ["a hexagon"], pictures[:1], [None], [""])
