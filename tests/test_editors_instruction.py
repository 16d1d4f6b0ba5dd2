"""A reflection as an edit instruction: what each kind of it becomes, and what holds for any."""

import fakes  # noqa: F401  its profile for hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.generators.editors.instruction import KEEP, as_edit, edits_of, instruction

PROMPT = "two red circles left of a blue star"


@pytest.mark.parametrize("said, edit", [
    ("change the blue circle to red, add a star", "Change the blue circle to red, add a star."),
    ("Please remove the tree!", "Remove the tree!"),
    ("The red circle is missing.", "Add the red circle."),
    ("a third cat is not visible in the picture", "Add a third cat."),
    ("There is no dog in the image", "Add dog."),
    ("The cat should be left of the dog", "The cat should be left of the dog."),
    ("The circle is blue instead of red.", "Correct this: the circle is blue instead of red."),
    ("Paris is not shown.", "Add Paris."),
    ("Only two cats", "Correct this: only two cats."),
    ("The dog is here but the cat is missing", "Correct this: the dog is here but the cat is missing."),
    ("FLUX drew one star", "Correct this: FLUX drew one star."),
    ("把圆形改成红色", "把圆形改成红色"),
    ("None.", ""), ("N/A", ""), ("No changes needed.", ""), ("there are no issues", ""), ("Nothing to fix", ""),
    ("...", ""), ("", ""), ("  \t", "")])
def test_a_sentence(said, edit):
    assert as_edit(said) == edit
    assert as_edit(edit) == edit, "what is an edit already stays"


@pytest.mark.parametrize("said, edits", [
    ("1. Prompt Following:\n- Add a red circle to the left\n- None\n\n2. Aesthetics: None.\n* The star is green.",
     ["Add a red circle to the left.", "Correct this: the star is green."]),
    ("**Add** a dog.\nadd a dog", ["Add a dog."]),
    ("The circle is blue. Make it red.", ["Correct this: the circle is blue. Make it red."]),
    ("1) Move the cat\n(2) Make the sky 1.5 times as high", ["Move the cat.", "Make the sky 1.5 times as high."]),
    ("2 dogs are missing", ["2 dogs are missing."]),
    ("Prompt following: replace the cup", ["Replace the cup."])])
def test_a_reflection_of_several_lines(said, edits):
    assert edits_of(said) == edits


def test_what_is_told_besides_the_edits():
    told = instruction(PROMPT, "add a star")
    assert told.text == told.short == f"Add a star. {KEEP}"
    assert instruction(PROMPT, "add a star", keep=False).text == "Add a star."
    always = instruction(PROMPT, "add a star", target="always")
    assert always.text == f"Add a star. {KEEP} The picture should then show this: {PROMPT}"
    assert always.short == told.text, "CLIP has no room for both"


@pytest.mark.parametrize("said", ["", " \n ", "None.", "1. Prompt Following:\n- None"])
@pytest.mark.parametrize("target", ["silent", "always"])
def test_nothing_said_restates_the_prompt(said, target):
    told = instruction(PROMPT, said, target=target)
    assert told.text == told.short and told.text.endswith(PROMPT) and told.text != PROMPT and told.edits == ""


def test_what_has_no_room_is_left_out_from_the_end():
    told = instruction(PROMPT, "add a star\nremove the tree\nmove the cat to the left", max_words=7)
    assert told.edits == f"Add a star. Remove the tree. {KEEP}" and told.left_out == ("Move the cat to the left.",)
    one = instruction(PROMPT, "add a star\nremove the tree", max_words=2)
    assert one.edits == f"Add a {KEEP}" and one.left_out == ("star.", "Remove the tree.")


words = st.text(st.characters(codec="utf-8"), max_size=200)


@given(words, words, st.sampled_from(["silent", "always"]), st.booleans(), st.integers(1, 30))
def test_any_reflection(prompt, said, target, keep, most):
    told = instruction(prompt, said, target, keep, most)
    assert len(told.edits.removesuffix(KEEP).split()) <= most
    assert "\n" not in told.text and told.text == told.text.strip()
    shows = " ".join(prompt.split())
    if shows:
        assert told.text, "an editor is always told something"
        assert (shows in told.text) or (target == "silent" and told.edits)
    assert bool(told.edits) == bool(edits_of(said)), "edits are made of what was said and nothing else"
    whole = instruction(prompt, said, target, keep, 10_000)
    assert whole.left_out == ()
    # Nothing is lost between what is told and what is left out.
    assert (" ".join([told.edits.removesuffix(KEEP).strip(), *told.left_out]).split()
            == whole.edits.removesuffix(KEEP).split())


@given(st.lists(st.sampled_from(["add a star", "The sky is green", "None", "the cat is missing", "- move it"]),
                min_size=1, max_size=6))
def test_each_thing_that_was_said_is_told_once(lines):
    edits = edits_of("\n".join(lines))
    assert len(edits) == len(set(lines) - {"None"}) and len(set(edits)) == len(edits)
    assert edits_of("\n".join(edits)) == edits
