"""The repair: few fixes, which are enough, and touch nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shapes_verifier import random_objects

from reflect_core.shapes.checks import check_objects
from reflect_core.shapes.corrupt import corrupt
from reflect_core.shapes.detector import detect
from reflect_core.shapes.prompt import Group, Requirement, holds, parse
from reflect_core.shapes.repair import Fix, apply, plan, words
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_requirement, sample_scene
from reflect_core.shapes.scene import SHAPES, UNSEEN_PAIRS, Obj, fits, render
from reflect_core.verifiers import ShapesVerifier

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


def fewest_fixes(objects, requirement):
    """The fewest fixes over all ways to give objects to groups, each counted from the rules."""
    fewest = len(objects) + requirement.objects
    groups = requirement.groups
    for owner in itertools.product([*range(len(groups)), None], repeat=len(objects)):
        if any(owner.count(k) > group.count for k, group in enumerate(groups)):
            continue
        wrong = sum(k is None or not groups[k].takes(obj) for k, obj in zip(owner, objects))
        added = sum(group.count - owner.count(k) for k, group in enumerate(groups))
        broken = [{a, b} for i, relation, j in requirement.relations
                  for a, b in itertools.permutations(range(len(objects)), 2)
                  if owner[a] == i and owner[b] == j and not holds(relation, objects[a], objects[b])]
        moved = next(n for n in range(len(objects) + 1)
                     if any(all(pair & set(some) for pair in broken)
                            for some in itertools.combinations(range(len(objects)), n)))
        fewest = min(fewest, wrong + added + moved)
    return fewest


def test_no_other_roles_need_fewer_fixes():
    for seed in range(350):
        rng = np.random.default_rng(seed)
        requirement = sample_requirement(TASKS[seed % len(TASKS)], rng)
        for objects in (random_objects(rng, requirement, most=5),
                        corrupt(sample_scene(requirement, rng), requirement, rng, 3)):
            if len(objects) <= 5:
                assert len(plan(objects, requirement)) == fewest_fixes(objects, requirement), seed


def test_two_fixes_where_roles_must_be_traded():
    objects = [Obj("triangle", "green", 21, 10, 7), Obj("triangle", "yellow", 26, 49, 7)]
    assert len(plan(objects, parse("a circle right of a star"))) == 2


@settings(max_examples=200, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds, limit=st.integers(1, 3))
def test_what_has_no_fix_stays_exactly_as_it_was_and_the_rest_is_as_told(task, seed, limit):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = random_objects(rng, requirement, most=5)
    fixes = plan(objects, requirement)[:limit]
    scene = apply(objects, requirement, fixes, rng)
    if scene is None:
        return
    touched = {fix.obj for fix in fixes}
    new = list(scene)
    for obj in objects:
        if obj not in touched:
            new.remove(obj)
    for fix in fixes:
        said, group = words([fix], requirement), fix.group is not None and requirement.groups[fix.group]
        if fix.kind == "remove":
            assert said == f"remove {fix.which} {fix.obj.words}"
            continue
        if fix.kind == "add":
            made = next(o for o in new if group.takes(o))
            assert group.singular in said
        elif fix.kind == "move":
            made = next(o for o in new if o.words == fix.obj.words and (o.x, o.y) != (fix.obj.x, fix.obj.y))
            assert fix.obj.words in said
        else:
            made = next(o for o in new if group.takes(o) and abs(o.x - fix.obj.x) + abs(o.y - fix.obj.y) < 8)
            told = said.split(" to ")[1]
            assert made.shape in told or made.shape == fix.obj.shape
            # The one exception: training shows no such pair.
            assert made.colour in told or made.colour == fix.obj.colour or (
                (fix.obj.colour, made.shape) in UNSEEN_PAIRS and group.colour is None)
        new.remove(made)
    assert not new


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("radius", [2.5, 4, 5.5, 8, 10.5, 12, 15])
def test_a_blob_anywhere_becomes_an_object_that_the_judge_reads(shape, radius):
    requirement = Requirement((Group(1, "blue", shape),))
    for x, y in itertools.product((0.3, 5.1, 32, 60.2, 63.9), repeat=2):
        blob = Obj("blob", "red", x, y, radius)
        (fix,) = plan([blob], requirement)
        assert isinstance(fix, Fix) and fix.kind == "change"
        scene = apply([blob], requirement, [fix], np.random.default_rng(0))
        assert fits(scene[0], ()) and [o.words for o in detect(render(scene))] == [f"blue {shape}"]


@settings(max_examples=150, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_words_mean_one_object_unless_they_say_one(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = random_objects(rng, requirement, most=6)
    for fix in plan(objects, requirement):
        alike = [o for o in objects if fix.obj is not None and o.words == fix.obj.words]
        if fix.which == "the":
            assert len(alike) <= 1
        elif fix.which == "one":
            assert len(alike) > 1
        else:
            outermost = (min if fix.which == "the left" else max)(alike, key=lambda o: o.x)
            assert len(alike) > 1 and outermost is fix.obj


def test_of_like_objects_the_outermost_are_told_to_change():
    row = [Obj("circle", "red", x, 32, 6) for x in (10, 50, 30)]
    assert words(plan(row, parse("two red circles")), parse("two red circles")) in (
        "remove the left red circle", "remove the right red circle")
    wanted = parse("a red circle, a blue circle and a red star")
    assert "one" not in words(plan(row, wanted), wanted).split()
    above = [Obj("circle", "red", 30, y, 6) for y in (10, 50)]
    assert words(plan(above, parse("a red circle")), parse("a red circle")) == "remove one red circle"
