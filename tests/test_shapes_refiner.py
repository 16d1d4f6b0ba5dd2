"""The refiner: other sentences that ask for the same, and the same ones again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reflect_core.refiners import ShapesRefiner
from reflect_core.shapes.prompt import parse
from reflect_core.shapes.sample import TASKS, sample_prompt
from reflect_core.shapes.scene import Obj, render
from reflect_core.types import UserError

seeds = st.integers(0, 2**32 - 1)


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
    with pytest.raises(ValueError, match="12 sentences for 1 pictures"):
        ShapesRefiner().refine(prompt, currents, pictures[:1], nothing, nothing)
    with pytest.raises(UserError):
        ShapesRefiner().refine("a hexagon", ["a hexagon"], pictures[:1], [None], [""])
