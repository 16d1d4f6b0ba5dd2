"""The judge's truth table: counts, extras, colours, relations, surplus; and the judge that errs."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_core.shapes.checks import check_objects, listing
from reflect_core.shapes.prompt import RELATIONS, Group, Requirement, holds, parse
from reflect_core.shapes.sample import TASKS, place, sample_prompt, sample_requirement, sample_scene
from reflect_core.shapes.scene import COLOURS, SHAPES, Obj, render
from reflect_core.types import UserError, Verdict
from reflect_core.verifiers import FlippingVerifier, ShapesVerifier
from reflect_core.verifiers.flipping import believe
from reflect_core.verifiers.shapes import seen

seeds = st.integers(0, 2**32 - 1)
RED_CIRCLE = Obj("circle", "red", 15, 15, 7)
RED_CIRCLE_2 = Obj("circle", "red", 15, 45, 7)
BLUE_STAR = Obj("star", "blue", 45, 15, 8)
BLUE_SQUARE = Obj("square", "blue", 45, 45, 7)


def judge(prompt, *objects):
    return ShapesVerifier().judge(prompt, [render(objects)])[0]


def outcome(verdict):
    return "".join(f"{check.kind[0]}{'+' if check.passed else '-'}" for check in verdict.checks)


@pytest.mark.parametrize("prompt, objects, expected", [
    ("a circle", [RED_CIRCLE], "o+e+"),
    ("a circle", [], "o-e+"),
    ("a circle", [BLUE_STAR], "o-e-"),
    ("a circle", [RED_CIRCLE, RED_CIRCLE_2], "o+e-"),
    ("a red circle", [RED_CIRCLE], "o+e+"),
    ("a blue circle", [RED_CIRCLE], "o-e-"),
    ("two circles", [RED_CIRCLE], "o+o-e+"),
    ("two circles", [RED_CIRCLE, RED_CIRCLE_2], "o+o+e+"),
    ("two circles", [RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR], "o+o+e-"),
    ("a red circle and a blue star", [RED_CIRCLE, BLUE_STAR], "o+o+e+"),
    ("a blue circle and a red star", [RED_CIRCLE, BLUE_STAR], "o-o-e-"),
    ("a circle left of a star", [RED_CIRCLE, BLUE_STAR], "o+o+r+e+"),
    ("a circle right of a star", [RED_CIRCLE, BLUE_STAR], "o+o+r-e+"),
    ("a star right of a circle", [RED_CIRCLE, BLUE_STAR], "o+o+r+e+"),
    ("a star above a square", [BLUE_STAR, BLUE_SQUARE], "o+o+r+e+"),
    ("a square below a star", [BLUE_STAR, BLUE_SQUARE], "o+o+r+e+"),
    ("a star below a square", [BLUE_STAR, BLUE_SQUARE], "o+o+r-e+"),
    ("a circle above a star", [RED_CIRCLE, BLUE_STAR], "o+o+r-e+"),
    ("a circle left of a star", [RED_CIRCLE], "o+o-r-e+"),
    ("a circle left of a star", [], "o-o-r-e+"),
    ("two circles left of a star", [RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR], "o+o+o+r+e+"),
    ("two circles below a star", [RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR], "o+o+o+r-e+"),
    ("two circles left of a star", [RED_CIRCLE, BLUE_STAR], "o+o-o+r-e+"),
    ("a circle below a star", [RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR], "o+o+r+e-"),
])
def test_truth_table(prompt, objects, expected):
    verdict = judge(prompt, *objects)
    assert outcome(verdict) == expected
    passed = [check.passed for check in verdict.checks]
    assert verdict.score == sum(passed) / len(passed)
    assert verdict.accepted == all(passed)


def test_a_blob_is_something_else():
    picture = np.array(render((RED_CIRCLE,)))
    picture[40:60, 30:38] = COLOURS["green"]
    (verdict,) = ShapesVerifier().judge("a red circle", [picture])
    assert outcome(verdict) == "o+e-" and "green blob" in verdict.reason


def test_reasons_in_words():
    assert judge("a circle", RED_CIRCLE).reason == "all 2 checks passed"
    assert judge("two red circles", RED_CIRCLE, BLUE_STAR).reason == (
        "missing a red circle (found 1 of 2); also a blue star")
    assert judge("a circle right of a star", RED_CIRCLE, BLUE_STAR).reason == (
        "circle right of star fails: the circle is not right of the star")
    assert listing([RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR]) == "two red circles and a blue star"


def test_details_are_json_and_read_back():
    verdict = judge("a circle", RED_CIRCLE, BLUE_STAR)
    assert json.loads(json.dumps(verdict.details)) == verdict.details
    assert {o.words for o in seen(verdict)} == {"red circle", "blue star"}


def test_prompts_of_no_grammar_and_foreign_verdicts_are_refused():
    with pytest.raises(UserError, match="hexagon"):
        judge("a red hexagon", RED_CIRCLE)
    with pytest.raises(ValueError, match="objects"):
        seen(type("V", (), {"details": {}}))


@settings(max_examples=60, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_a_scene_made_for_a_prompt_is_accepted(task, seed):
    rng = np.random.default_rng(seed)
    text, requirement = sample_prompt(task, rng)
    (verdict,) = ShapesVerifier().judge(text, [render(sample_scene(requirement, rng))])
    assert verdict.accepted, verdict.reason


def random_objects(rng, requirement, most=7):
    """Objects at random, half of them such as are asked for, so that surplus and lack both happen."""
    objects = []
    for _ in range(int(rng.integers(most + 1))):
        shape, colour = SHAPES[rng.integers(4)], list(COLOURS)[rng.integers(8)]
        if rng.random() < 0.6:
            group = requirement.groups[rng.integers(len(requirement.groups))]
            shape, colour = group.shape, group.colour or colour
        obj = place(shape, colour, objects, rng, 6)
        if obj:
            objects.append(obj)
    return objects


def best_score_by_trying_all(requirement, objects):
    """Every way to give objects to groups, judged by the rules written out once more."""
    best = 0.0
    options = [[k for k, g in enumerate(requirement.groups) if g.takes(obj)] + [None] for obj in objects]
    for owner in itertools.product(*options):
        members = [[o for o, k in zip(objects, owner) if k == n] for n in range(len(requirement.groups))]
        if any(len(m) > g.count for m, g in zip(members, requirement.groups)):
            continue
        passed = sum(len(m) for m in members) + (None not in owner)
        for i, relation, j in requirement.relations:
            whole = len(members[i]) == requirement.groups[i].count and len(members[j]) == requirement.groups[j].count
            passed += whole and all(holds(relation, a, b) for a in members[i] for b in members[j])
        best = max(best, passed / (requirement.objects + len(requirement.relations) + 1))
    return best


@settings(max_examples=200, deadline=None)
@given(task=st.sampled_from(["counting", "two_object", "position", "compose"]), seed=seeds)
def test_no_other_assignment_passes_more_checks(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = random_objects(rng, requirement)
    assert check_objects(requirement, objects).score == pytest.approx(best_score_by_trying_all(requirement, objects))


def test_surplus_is_chosen_for_every_direction():
    for relation in RELATIONS:
        requirement = Requirement((Group(1, None, "circle"), Group(1, None, "star")), ((0, relation, 1),))
        around = [Obj("circle", "red", 32 + dx, 32 + dy, 6) for dx, dy in ((-20, 0), (20, 0), (0, -20), (0, 20))]
        objects = [*around, Obj("star", "blue", 32, 32, 6)]
        assert [c.kind for c in check_objects(requirement, objects).checks if not c.passed] == ["extra"]


def flipped(prompt, objects, probability, seed=0):
    return FlippingVerifier(ShapesVerifier(), probability, seed).judge(prompt, [render(objects)])[0]


def test_no_flips_changes_nothing_and_all_flips_turn_all():
    prompt, objects = "two red circles left of a blue star", (RED_CIRCLE, RED_CIRCLE_2, BLUE_STAR)
    assert flipped(prompt, objects, 0.0) == judge(prompt, *objects)
    verdict = flipped(prompt, objects, 1.0)
    assert outcome(verdict) == "o-o-o-r-e-" and verdict.score == 0 and not verdict.accepted
    assert flipped("two stars", (), 1.0).checks[0].passed


def test_flips_are_the_same_again_and_differ_by_seed_and_picture():
    prompt = "two red circles and a blue star"
    scenes = [(RED_CIRCLE, RED_CIRCLE_2, Obj("star", "blue", 40 + k / 4, 20, 8)) for k in range(24)]
    pictures = [render(scene) for scene in scenes]
    one = FlippingVerifier(ShapesVerifier(), 0.3, seed=1)
    first = one.judge(prompt, pictures)
    assert first == [one.judge(prompt, [picture])[0] for picture in pictures]
    other = FlippingVerifier(ShapesVerifier(), 0.3, seed=2).judge(prompt, pictures)
    assert [v.score for v in first] != [v.score for v in other]
    assert len({outcome(v) for v in first}) > 3


def test_flips_come_at_the_rate_asked_for():
    prompt, turned, total = "two red circles and a blue star", 0, 0
    judge_that_errs = FlippingVerifier(ShapesVerifier(), 0.2, seed=5)
    for k in range(120):
        scene = (RED_CIRCLE, RED_CIRCLE_2, Obj("star", "blue", 35 + k % 12 / 4, 20 + k // 12 / 4, 8))
        verdict = judge_that_errs.judge(prompt, [render(scene)])[0]
        turned += sum(not check.passed for check in verdict.checks)
        total += len(verdict.checks)
    assert 0.14 < turned / total < 0.26


@settings(max_examples=200, deadline=None)
@given(task=st.sampled_from(TASKS), seed=seeds)
def test_what_is_believed_gives_the_told_outcomes(task, seed):
    rng = np.random.default_rng(seed)
    requirement = sample_requirement(task, rng)
    objects = random_objects(rng, requirement)
    truth = check_objects(requirement, objects).checks
    told = [check.passed != (rng.random() < 0.4) for check in truth]
    believed = check_objects(requirement, believe(requirement, objects, told, lambda name: rng.random())).checks
    whole = all(told[: requirement.objects])
    for check, expected in zip(believed, told):
        if check.kind == "extra" or (check.kind == "relation" and whole):
            assert check.passed == expected
    at = 0
    for group in requirement.groups:
        assert sum(c.passed for c in believed[at : at + group.count]) == sum(told[at : at + group.count])
        at += group.count


class JudgeOfAnotherKind:
    def judge(self, prompt, pictures):
        return [Verdict(0.5, False, (), "", {}) for _ in pictures]


def test_a_judge_whose_checks_are_others_is_refused():
    for probability in (0.0, 1.0):
        with pytest.raises(ValueError, match="JudgeOfAnotherKind; expected 2"):
            FlippingVerifier(JudgeOfAnotherKind(), probability).judge("a circle", [render((RED_CIRCLE,))])


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_probabilities_are_probabilities(probability):
    with pytest.raises(ValueError, match="0 to 1"):
        FlippingVerifier(ShapesVerifier(), probability)


def test_parse_is_what_the_judge_reads():
    checks = judge("a nice photo of two red circles and a star").checks
    assert len(checks) == parse("two red circles and a star").objects + 1
