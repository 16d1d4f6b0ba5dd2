"""What somebody said, as bare statements: whatever stands around them goes, and nothing else."""

import fakes  # noqa: F401  its profile for hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reflect_core.generators.editors.instruction import edits_of
from reflect_core.reflectors.refusal import refuses
from reflect_core.reflectors.told import VERBS, edits, foreign, is_command, latin, lines, nothing, sentence

STATEMENTS = ["Add a red circle.", "The dog is missing", "move the cat 2 steps to the left", "There is no ball",
              "Only two cats are shown", "Replace the sky; it is green", "Make the text say \"OPEN\" in red",
              "\u628a\u5706\u5f62\u6539\u6210\u7ea2\u8272", "2 dogs are missing", "No issues, but the star is blue",
              "Ajoutez un chien \u00e0 droite", "Color is wrong", "no changes to the sky; add a dog",
              "No errors in the sky, the dog is missing"]
NOTHINGS = ["None.", "none", "N/A", "Nothing", "No", "Yes.", "No changes needed.", "there are no issues", "No defects",
            "Nothing to fix", "nothing is wrong here", "The image is correct.", "This picture matches the description.",
            "No further changes are required", "There is nothing else", "Nothing missing", "No flaws found",
            "No errors, everything matches", "The picture is correct, nothing is missing", "no edits: it is right",
            "There are no problems to report"]
HEADINGS = ["1. Prompt Following:", "**Aesthetics**", "## Image Analysis", "### What is wrong", "Edits:", "Reflection",
            "**Prompt following:**", "2) **Visual quality:**", "Here is what I would change in this picture of a cat:",
            "# Colors and style", "Overall", "\u63d0\u793a\uff1a", "## Correct elements"]
AROUND = ["{}", "- {}", "* {}", "\u2022 {}", "1. {}", "(2) {}", "3: {}", "a) {}", "**{}**.", "- **{}**", "`{}`", '"{}"',
          "\u201c{}\u201d", "Edits: {}", "**Reflection:** {}", "1. Instruction: {}", "> {}", "- 1) {}", "  \t{}  ",
          "\u2014 {}", "New prompt: {}", "- Aesthetics: {}"]


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_a_statement_goes(around):
    for said in STATEMENTS:
        if around.startswith('"') and '"' in said:
            continue  # its own quotes are no pair around it
        expected = f"{said}." if around == "**{}**." else said
        assert lines(around.format(said)) == [expected]
        assert edits_of(around.format(said)) == edits_of(expected) != [], "an editor hears the same"


@pytest.mark.parametrize("around", AROUND)
def test_nothing_is_nothing_for_all(around):
    for said in NOTHINGS:
        reply = around.format(said)
        assert nothing(said) and lines(reply) == edits_of(reply) == [], reply
        assert sentence(reply, 99) == edits(reply, 3, 99) == ""


@pytest.mark.parametrize("heading", HEADINGS)
def test_headings_go(heading):
    assert lines(heading) == edits_of(heading) == []
    assert lines(f"{heading}\n- Add a star") == ["Add a star"]


@pytest.mark.parametrize("line", ["# Add a red star", "**Remove the green dog**", "## The dog is missing",
                                  "**It is blue.**"])
def test_what_is_only_printed_as_a_heading_stays(line):
    assert lines(line) == [line.strip("#* ")]


@pytest.mark.parametrize("line, said", [
    ("1. **Composition:** Add a cat.", "Add a cat."), ("**Color**: change it to red", "change it to red"),
    ("- **Add:** a dog", "Add: a dog"), ("**Left side:** the dog is missing", "the dog is missing")])
def test_a_topic_in_bold_print_is_no_part_of_what_is_said(line, said):
    assert lines(line) == [said]


def test_the_first_sentence_that_says_something():
    assert sentence("The image matches the prompt. Add a dog. Add a cat.", 99) == "Add a dog."
    assert sentence("There is no dog! Add one.", 99) == "There is no dog!"


@pytest.mark.parametrize("text, command", [
    ("add a star", True), ("Please remove it", True), ("Color the sky blue", True), ("Slightly enlarge the cat", True),
    ("Color is wrong", False), ("Position of the cat", False), ("The star", False), ("Addition", False), ("", False),
    ("Add", True), ("Light looks dull", False), ("Move and turn the cup", True)])
def test_a_command_begins_with_a_verb_used_as_one(text, command):
    assert is_command(text) == command


def test_where_some_can_be_done_talk_is_left_out():
    said = "The mood is nice\nEnlarge the dog\nColor is wrong"
    assert edits(said, 3, 99) == "Enlarge the dog"
    assert edits("Color is wrong\nThe dog is missing", 3, 99) == "Color is wrong; The dog is missing"
    assert all(is_command(f"{verb} the dog") for verb in VERBS)


replies = st.text(st.characters(codec="utf-8"), max_size=200) | st.lists(st.builds(
    lambda around, said: around.format(said), st.sampled_from(AROUND),
    st.sampled_from(STATEMENTS + NOTHINGS + HEADINGS)), max_size=6).map("\n".join)


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("said", [
    "I'm sorry, I can't assist with that.", "I\u2019m sorry, but I can\u2019t help with this.", "Sorry, I can't",
    "I cannot assist with that request.", "I'm unable to provide an evaluation of people.", "I can\u2019t do that.",
    "As an AI language model, I cannot view images", "I am sorry, but I am not able to describe this image.",
    "Unfortunately, I can't identify real people in images.", "I won't help with that.", "I must decline.",
    "Lo siento, no puedo ayudar con eso.", "Es tut mir leid, dabei kann ich nicht helfen.",
    "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u63d0\u4f9b\u5e2e\u52a9\u3002", "I apologize, but I can't comply with that"])
def test_a_refusal(said, around):
    assert refuses(around.format(said)) and refuses(f"{around.format(said)}\nLet me know what else I can do.")


@pytest.mark.parametrize("said", [*STATEMENTS, *NOTHINGS, *HEADINGS, "", "I can't see a dog.", "I cannot find the cat",
                                  "I don't see a second mug", "Unfortunately, the dog is missing", "A sorry sight",
                                  "Sorry, but there is no dog", "The man can't help the dog", "I can't help noticing",
                                  "Add a dog\nI'm sorry, I can't assist with the rest", "I will not see a star there"])
def test_what_is_wrong_is_no_refusal(said):
    assert not refuses(said)


@given(replies)
def test_any_reply(reply):
    said = lines(reply)
    assert lines("\n".join(said)) == said, "what is bare stays as it is"
    assert len({line.casefold() for line in said}) == len(said) and all(said) and not any(map(nothing, said))
    assert not any("\n" in line or line != line.strip() or "**" in line or "`" in line for line in said)
    assert (not said) <= (edits_of(reply) == [] and sentence(reply, 99) == edits(reply, 3, 99) == "")


@given(st.lists(st.sampled_from(STATEMENTS), unique_by=str.casefold), st.lists(st.sampled_from(NOTHINGS + HEADINGS)),
       st.randoms(use_true_random=False))
def test_no_statement_is_lost_among_what_is_none(statements, others, random):
    mixed = [(one, True) for one in statements] + [(one, False) for one in others]
    random.shuffle(mixed)
    assert lines("\n".join(f"- {one}" if stays else one for one, stays in mixed)) == [
        one for one, stays in mixed if stays]


@given(replies)
def test_letters_that_are_not_latin_are_set_apart_line_by_line(reply):
    kept, left = latin(reply)
    assert not any(map(foreign, kept.splitlines())) and foreign(left) == any(map(foreign, reply.splitlines()))
    assert kept.splitlines() == [line for line in reply.splitlines() if not foreign(line)]
