"""The judge 'me': a person's answers, line by line, decide a real run of a model that draws anything."""

import io
import json

import pytest
from command import reflect, write_tiny_model
from PIL import Image

from reflect_core.cli.person import LOOK, Person
from reflect_core.search import load
from reflect_core.types import UserError, Verdict

PROMPT = "a dragon on a bicycle"


def person(tmp_path, *lines):
    return Person(tmp_path, io.StringIO("".join(line + "\n" for line in lines)), io.StringIO())


def test_answers_become_verdicts_and_words(tmp_path):
    asked = person(tmp_path, "3", "maybe", "12", "Y", "a longer tail", "")
    first, second = asked.judge(PROMPT, [Image.new("RGB", (8, 8))] * 2)
    assert (first.score, first.accepted) == (0.3, False) and (second.score, second.accepted) == (1.0, True)
    assert asked.questions.getvalue().count("expected y or a digit from 0 to 9") == 2
    assert asked.reflect(PROMPT, [Image.new("RGB", (8, 8))] * 2, [first, first]) == ["a longer tail", ""]


def test_the_picture_that_is_asked_about_lies_in_the_folder(tmp_path):
    asked = person(tmp_path / "run", "1")
    asked.judge(PROMPT, [Image.new("RGB", (8, 8), "red")])
    assert Image.open(tmp_path / "run" / LOOK).getpixel((0, 0)) == (255, 0, 0)
    assert str(tmp_path / "run" / LOOK) in asked.questions.getvalue()


def test_no_more_answers_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="input has ended"):
        person(tmp_path).reflect(PROMPT, [Image.new("RGB", (8, 8))], [Verdict(0.0, False)])


def test_a_run_of_any_prompt_goes_on_where_the_answers_ended(tmp_path):
    model = write_tiny_model(tmp_path / "tiny")
    arguments = ["run", PROMPT, "--model", model, "--judge", "me", "--steps", "1", "--size", "32", "--pictures", "3",
                 "--set", "pool=1", "--set", "branches=1", "--set", "rounds=2", "--out", tmp_path / "run"]
    cut = reflect(*arguments, answers="2\nmore wings\n")
    assert cut.code == 2 and "Traceback" not in cut.err and "input has ended" in cut.err
    done = reflect("resume", tmp_path / "run", "--json", answers="y\n")
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["accepted"] and [c["reflection"] for c in document["candidates"]] == [None, "more wings"]
    assert [c.verdict.score for c in load(tmp_path / "run")[1].candidates] == [0.2, 1.0]
