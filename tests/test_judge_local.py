"""A judge of a folder: what it says of itself, and what of its questions and answers goes on whose record."""

import pytest
import torch
from test_vlm_eyes import ALWAYS, template
from test_vlm_local import pictures
from tiny_vlm import write_tiny_qwen

from reflect_core.judges import find_judge
from reflect_core.search.actors import Actors
from reflect_core.vlm.chat import ALL_THOUGHT, Answer, Asker, Question


def test_a_judge_of_a_folder(tmp_path):
    folder = write_tiny_qwen(tmp_path / "model", answers=True)
    judge = find_judge(str(folder), {"checks": ["Is it red?", "Is there a house?"]})
    told = judge.prepare("a red house")
    assert told[0] == "the judge is model, on cpu" and "Is there a house?" in told[-1]
    assert judge.settings() == {"name": "local", "options": {"folder": str(folder),
                                                            "checks": ["Is it red?", "Is there a house?"]}}
    actors = judge.actors()
    verdicts = actors.verifier.judge("a red house", pictures(2))
    assert all(v.judged and len(v.checks) == 2 and v.details["mass"][0] > 0.9 for v in verdicts)
    assert actors.verifier.spent.judge_calls == 2 + 4, "two of them to see whether it answers"
    said = actors.reflector.reflect("a red house", pictures(2), verdicts)
    assert len(said) == 2


def test_a_model_that_does_not_answer_is_not_believed(tmp_path):
    folder = write_tiny_qwen(tmp_path / "model")
    verdict = find_judge(str(folder), {"ask": "match"}).actors().verifier.judge("a house", pictures(1))[0]
    assert not verdict.judged and "does not answer yes or no" in verdict.reason and "together" in verdict.reason


def says(judge, monkeypatch, yes, no, text="Yes"):
    """Its chat answers with these probabilities, or what `yes(red)` returns."""
    monkeypatch.setattr(judge.chat, "ask", lambda questions: [
        Answer(text, yes(q.picture.getpixel((0, 0))[0] > 128) if callable(yes) else yes, no) for q in questions])


@pytest.mark.parametrize("ask", ["match", "checks", "rubric", "released"])
@pytest.mark.parametrize("yes, no, text, said", [
    (0.01, 0.02, "I see", "cannot be asked yes or no: the model does not answer yes or no (it said 'I see', with 'yes' "
                          "and 'no' at 0.03 together): its verdicts are worth as much; try another model"),
    (0.9, 0.1, "Yes", "does not see pictures: asked whether a red and a blue one are red, it is 90% and 90% sure: "),
    (lambda red: 0.3 if red else 0.2, 0.1, "Yes", "the judge hardly answers: 'yes' and 'no' have 0.30 together"),
    (lambda red: 0.9 if red else 0.5, 0.1, "Yes", None)])
def test_who_does_not_answer_is_said_to(tmp_path, monkeypatch, ask, yes, no, text, said):
    judge = find_judge(str(write_tiny_qwen(tmp_path / "model")), {"ask": ask, "checks": ["Is it red?"]})
    judge.chat.check()
    says(judge, monkeypatch, yes, no, text)
    told = judge.connect()
    wanted = said is not None and ask in ("match", "checks")
    assert len(told) == 1 + wanted and (not wanted or said in told[1])
    assert len(judge.actors().verifier.asked) == (2 if ask in ("match", "checks") else 0), "for the record"
    assert judge.connect() == []


def test_whose_prompt_opens_a_thought_is_said_to(tmp_path):
    judge = find_judge(str(template(write_tiny_qwen(tmp_path / "model"), behind=ALWAYS)), {"ask": "match"})
    assert "try its variant that does not think aloud, such as -Instruct" in judge.connect()[1]
    verdict = judge.actors().verifier.judge("a dog", pictures(1))[0]
    assert not verdict.judged and ALL_THOUGHT in verdict.reason


def test_who_only_speaks_is_not_asked_yes_or_no(tmp_path, monkeypatch):
    judge = find_judge(str(write_tiny_qwen(tmp_path / "model")))
    assert len(judge.connect(judges=False)) == 1


def test_where_it_computes_is_said(tmp_path):
    folder = str(write_tiny_qwen(tmp_path / "model", answers=True))
    offloaded = find_judge(folder, {"ask": "rubric", "device": "cpu:0", "offload": "component"})
    assert offloaded.connect() == ["the judge is model, on cpu:0 while it answers"]
    managed = find_judge(folder, {"ask": "rubric"})
    managed.chat.places.manager = lambda name, pixels: torch.device("cpu:0")
    assert managed.connect() == ["the judge is model, on cpu:0 while it answers"]


class Cancelled(Exception):
    pass


def cancel_after(count):
    left = iter(range(count))

    def wait():
        if next(left, None) is None:
            raise Cancelled

    return wait


def test_what_was_answered_before_a_cancel_is_kept(tmp_path):
    chat = find_judge(str(write_tiny_qwen(tmp_path / "model", answers=True))).chat
    chat.check()
    asked = [Question(text, picture, yes_no=True) for picture in pictures(2) for text in ("Is it red?", "Is it blue?")]
    asker, chat.on_wait = Asker(chat), cancel_after(3)
    with pytest.raises(Cancelled) as error:
        asker.ask(asked)
    answers = error.value.answers
    assert [answer is None for answer in answers] == [False, False, False, True]
    assert [one.reply for one in asker.asked] == [answer.text for answer in answers[:3]]
    chat.on_wait = None
    assert [a.yes for a in chat.ask(asked)][:3] == [a.yes for a in answers[:3]]


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_a_run_that_was_cancelled_asked_is_on_no_other_record(tmp_path, goes_on):
    """Where the run itself goes on, it is on its own."""
    judge = find_judge(str(write_tiny_qwen(tmp_path / "model", answers=True)), {"checks": ["Is it red?"]})
    judge.prepare("a dog")
    verifier = judge.actors().verifier
    one = Actors(None, verifier)
    judge.wait_with(cancel_after(2))
    with pytest.raises(Cancelled):
        one.call("verifier", 3, lambda actor: actor.judge("a dog", pictures(3)))
    judge.wait_with(None)
    assert one.owed.judge_calls == 4, "two of the judge's first questions, and two answers"
    if not goes_on:
        judge.prepare("a cat")
    run = one if goes_on else Actors(None, verifier)
    _, cost = run.call("verifier", 1, lambda actor: actor.judge("a cat", pictures(1)))
    before = 4 if goes_on else 0
    assert len(run.asked("verifier")) == cost.judge_calls == before + 1
    assert run.asked("verifier") == ()
