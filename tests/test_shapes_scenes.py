"""Scenes: what is placed fits, what is corrupted stays within training's world, what cannot be drawn is refused."""

from collections import Counter

import numpy as np
import pytest

from reflect_core.shapes.checks import check_objects
from reflect_core.shapes.corrupt import FLAWS, corrupt
from reflect_core.shapes.sample import SEEN_PAIRS, TASKS, place, sample_requirement, sample_scene
from reflect_core.shapes.scene import GAP, MAX_RADIUS, MIN_RADIUS, SHAPES, SIZE, SPACE, Obj, fits, render_array


def apart(scene, gap=GAP):
    return all(fits(obj, [other for other in scene if other is not obj], gap) for obj in scene)


@pytest.mark.parametrize("task", TASKS)
def test_sampled_scenes_show_what_is_required_and_keep_their_distance(task):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        requirement = sample_requirement(task, rng)
        scene = sample_scene(requirement, rng)
        assert apart(scene, SPACE) and check_objects(requirement, scene).accepted
        assert apart(sample_scene(requirement, rng, gap=GAP))
        assert all(MIN_RADIUS <= obj.r <= MAX_RADIUS for obj in scene)
        assert all((obj.colour, obj.shape) in SEEN_PAIRS for obj in scene)


@pytest.mark.parametrize("shape", SHAPES)
def test_places_are_free_and_liked_or_none_is_found(shape):
    rng, scene = np.random.default_rng(1), []
    while (obj := place(shape, "red", scene, rng, len(scene) + 1)) is not None:
        scene.append(obj)
    assert len(scene) > 5 and apart(scene)
    liked = [place(shape, "red", [], rng, accept=lambda o: o.x < 20, radius=7.25) for _ in range(20)]
    assert all(obj.x < 20 and obj.r == 7.25 for obj in liked)
    assert place(shape, "red", [], rng, accept=lambda o: False) is None


def test_touching_and_leaving_the_canvas_do_not_fit():
    circle = Obj("circle", "red", 32, 32, 8)
    assert fits(circle, []) and not fits(circle, [Obj("circle", "red", 47, 32, 8)])
    assert not fits(Obj("circle", "red", 7, 32, 8), []) and not fits(Obj("star", "red", 32, SIZE - 9, 8), [])


def differences(scene, flawed):
    """How many objects stand in one scene only."""
    return (Counter(scene) - Counter(flawed)).total() + (Counter(flawed) - Counter(scene)).total()


def test_a_flaw_changes_two_objects_at_most_and_draws_no_unseen_pair():
    for seed in range(700):
        rng = np.random.default_rng(seed)
        requirement = sample_requirement(TASKS[seed % len(TASKS)], rng)
        scene = sample_scene(requirement, rng)
        for flaws in (1, 3):
            flawed = corrupt(scene, requirement, rng, flaws)
            assert differences(scene, flawed) <= 4 * flaws and abs(len(flawed) - len(scene)) <= flaws
            assert all((obj.colour, obj.shape) in SEEN_PAIRS for obj in flawed)
        assert corrupt(scene, requirement, rng, 0) == scene


def test_corruptions_come_in_every_kind_and_again():
    rng, kinds = np.random.default_rng(3), Counter()
    requirement = sample_requirement("compose", rng)
    scene = sample_scene(requirement, rng)
    for seed in range(200):
        flawed = corrupt(scene, requirement, np.random.default_rng(seed))
        assert flawed == corrupt(scene, requirement, np.random.default_rng(seed))
        at = {(o.x, o.y): o for o in scene}
        here = [(at.get((o.x, o.y)), o) for o in flawed]
        recoloured = sum(was is not None and was.colour != o.colour for was, o in here)
        reshaped = sum(was is not None and was.shape != o.shape for was, o in here)
        kinds[("drop" if len(flawed) < len(scene) else "extra" if len(flawed) > len(scene) else
               "displace" if any(was is None for was, _ in here) else "swap" if recoloured + reshaped > 1 else
               "recolour" if recoloured else "reshape" if reshaped else "nothing")] += 1
    assert set(FLAWS) <= set(kinds) and kinds["nothing"] < 20


def test_corrupting_nothing_adds_something():
    requirement = sample_requirement("single_object", np.random.default_rng(0))
    assert all(len(corrupt((), requirement, np.random.default_rng(seed))) == 1 for seed in range(10))


def test_pictures_are_of_the_scene():
    picture = render_array((Obj("square", "black", 20, 40, 8),))
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert tuple(picture[40, 20]) == (28, 28, 32) and tuple(picture[20, 40]) == (240, 240, 236)


@pytest.mark.parametrize("obj, said", [
    (Obj("blob", "red", 32, 32, 8), "red blob; expected one of circle"),
    (Obj("circle", "pink", 32, 32, 8), "pink circle; expected one of circle"),
    (Obj("circle", "red", -40, 32, 8), "expected x and y from 0 to 64"),
    (Obj("star", "red", 32, 90, 8), "expected x and y from 0 to 64"),
    (Obj("star", "red", 32, 32, 20), "r from 5.5 to 10.5"),
    (Obj("star", "red", 32, 32, 0), "r from 5.5 to 10.5"),
    (Obj("star", "red", float("nan"), 32, 8), "expected x and y"),
])
def test_what_cannot_be_drawn_is_refused_in_words(obj, said):
    with pytest.raises(ValueError, match=said):
        render_array((obj,))


def test_objects_may_cross_the_edge():
    assert (render_array((Obj("circle", "red", -2, 32, 8),))[32, :4] == (214, 36, 44)).all()
