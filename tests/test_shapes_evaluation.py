"""The fixed evaluation set: frozen, complete, and kept away from what training draws."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from reflect_core.shapes.evaluation import (
    DATA,
    UNSEEN_TASKS,
    EvaluationPrompt,
    as_json,
    evaluation_prompts,
    is_held_out,
    make_evaluation_prompts,
    names_unseen,
)
from reflect_core.shapes.prompt import parse
from reflect_core.shapes.sample import TASKS, sample_prompt, sample_requirement, sample_scene, sample_sentence
from reflect_core.shapes.scene import UNSEEN_PAIRS

FROZEN = "72d4a6f511c35ddcb1304000eba1248e082cefc2d2bbb66a5a5b1babbc2376b5"
"""sha256 of the prompts. Scores on another set compare with none that are published: change it knowingly."""


def test_the_set_is_frozen():
    assert hashlib.sha256(DATA.read_text("utf-8").encode()).hexdigest() == FROZEN


def test_a_set_that_is_drawn_anew_is_written_with_its_seed():
    prompts = make_evaluation_prompts(seed=1)
    document = json.loads(as_json(prompts, seed=1))
    assert document["seed"] == 1 and [EvaluationPrompt(**p) for p in document["prompts"]] == list(prompts)
    assert Counter((p.task, p.unseen) for p in prompts) == Counter((p.task, p.unseen) for p in evaluation_prompts())


def test_sixty_of_each_task_and_sixty_unseen_all_different():
    prompts = evaluation_prompts()
    assert Counter(p.task for p in prompts if not p.unseen) == dict.fromkeys(TASKS, 60)
    assert Counter(p.task for p in prompts if p.unseen) == dict.fromkeys(UNSEEN_TASKS, 20)
    assert len({p.prompt for p in prompts}) == len(prompts)
    for p in prompts:
        assert names_unseen(parse(p.prompt)) == p.unseen
        assert p.unseen or is_held_out(p.task, p.prompt)
    assert evaluation_prompts("compose", unseen=False) == tuple(
        p for p in prompts if p.task == "compose" and not p.unseen)
    with pytest.raises(ValueError, match="counting"):
        evaluation_prompts("count")


def test_every_unseen_pair_is_asked_for():
    asked = {(g.colour, g.shape) for p in evaluation_prompts(unseen=True) for g in parse(p.prompt).groups}
    assert set(UNSEEN_PAIRS) <= asked


def assert_training_stays_away(draws, seed):
    held_out = {p.prompt for p in evaluation_prompts()}
    meanings = {parse(p.prompt).canonical() for p in evaluation_prompts()
                if p.task in ("color_attr", "compose")}
    rng = np.random.default_rng(seed)
    for k in range(draws):
        task = TASKS[k % len(TASKS)]
        text, requirement = sample_prompt(task, rng)
        assert text not in held_out
        assert task not in ("color_attr", "compose") or requirement.canonical() not in meanings
        assert not names_unseen(requirement)
        if k % 10 == 0:
            assert not {(o.colour, o.shape) for o in sample_scene(requirement, rng)} & set(UNSEEN_PAIRS)


def test_training_never_draws_an_evaluation_prompt():
    assert_training_stays_away(10_000, seed=0)


@pytest.mark.slow
def test_training_never_draws_an_evaluation_prompt_in_a_hundred_thousand():
    assert_training_stays_away(100_000, seed=1)


def test_holding_out_ignores_case_spaces_and_for_meanings_the_wording():
    assert is_held_out("colors", "A  red circle") == is_held_out("colors", "a red circle")
    one, other = "a red circle and a blue star", "one flat photo of a blue star and a red circle"
    assert is_held_out("color_attr", one) == is_held_out("color_attr", other)


def test_about_one_in_six_is_held_out():
    rng = np.random.default_rng(0)
    for task, low, high in (("color_attr", 0.12, 0.22), ("compose", 0.12, 0.22), ("counting", 0.1, 0.25)):
        texts = {sample_sentence(sample_requirement(task, rng), rng) for _ in range(3000)}
        assert low < np.mean([is_held_out(task, text) for text in texts]) < high, task


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_sampling_keeps_to_its_side(task, held_out):
    rng = np.random.default_rng(0)
    assert all(is_held_out(task, sample_prompt(task, rng, held_out)[0]) == held_out for _ in range(100))
