"""What is made of a language model's answers: verdicts. The model is a table."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from reflect_core.reflectors.vlm import ReleasedReflector, SentenceReflector
from reflect_core.types import UserError, Verdict
from reflect_core.verifiers.checklist import ChecklistVerifier
from reflect_core.verifiers.match import MatchVerifier
from reflect_core.verifiers.released import ReleasedVerifier
from reflect_core.verifiers.rubric import ASPECTS, RubricVerifier
from reflect_core.vlm.chat import Answer
from reflect_core.vlm.reading import Reading, read

RED, BLUE = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
WRONG = Verdict(0.2, False)


class Table:
    """A chat that answers with what `say(question)` returns: an Answer or a text."""

    def __init__(self, say):
        self.say, self.questions = say, []

    def ask(self, questions):
        self.questions += questions
        said = [self.say(q) for q in questions]
        return [Answer(one, tokens_in=10, tokens_out=2) if isinstance(one, str) else one for one in said]


def is_red(question):
    return question.picture is not None and question.picture.getpixel((0, 0))[0] > 128


@pytest.mark.parametrize("answer, p, how, mass", [
    (Answer("Yes", 0.6, 0.3), 2 / 3, "tokens", 0.9),
    (Answer("No", 0.0, 1.0), 0.0, "tokens", 1.0),
    (Answer("Yes."), 1.0, "word", None),
    (Answer("**No**, there is none"), 0.0, "word", None),
    (Answer("Answer: yes"), 1.0, "word", None),
    (Answer("Yes", 0.1, 0.05), 2 / 3, "tokens", 0.15),
    (Answer("Yes", 0.26, 0.23), 0.26 / 0.49, "tokens", 0.49),
])
def test_readings(answer, p, how, mass):
    reading = read(answer)
    assert isinstance(reading, Reading)
    assert (reading.p, reading.how, reading.mass) == (pytest.approx(p), how, pytest.approx(mass) if mass else mass)
    assert (reading.logit is None) == (how == "word")


@pytest.mark.parametrize("answer, why", [
    (Answer("I think that", 0.01, 0.02), "does not answer yes or no .*'yes' and 'no' at 0.03 together"),
    (Answer("\u662f\u7684"), "does not answer yes or no"),
    (Answer("Nothing is wrong"), "does not answer"),
    (Answer("", 0.0, 0.0), "it said nothing"),
    (Answer("Yes", 0.04, 0.02), "does not answer .*at 0.06 together"),
    (Answer("Yes", 0.1, 0.3), "does not answer .*at 0.40 together"),
    (Answer(error="HTTP 500: oops"), "HTTP 500"),
])
def test_what_cannot_be_read_says_why(answer, why):
    import re

    assert re.search(why, read(answer))


def test_match_ranks_by_how_sure_the_model_is():
    chat = Table(lambda q: Answer("Yes", 0.9, 0.05) if is_red(q) else Answer("No", 0.2, 0.7))
    verdicts = MatchVerifier(chat, threshold=0.8).judge("a red ball", [BLUE, RED])
    assert [v.accepted for v in verdicts] == [False, True]
    assert verdicts[1].score == pytest.approx(0.9 / 0.95) and verdicts[1].details["mass"] == 0.95


def checklist_chat(answers):
    """`answers(question, red)`: to the yes-or-no questions."""
    made = {"questions": [{"about": "object", "question": "Is there a ball?"},
                          {"about": "colour", "question": "Is it red?"},
                          {"about": "object", "question": "Is there a ball?"}]}
    return Table(lambda q: json.dumps(made) if q.picture is None else answers(q.text, is_red(q)))


def test_checks_are_made_once_for_a_prompt_and_each_picture_is_asked_all():
    yes, no = Answer("Yes", 0.9, 0.1), Answer("No", 0.1, 0.9)
    chat = checklist_chat(lambda text, red: yes if "ball" in text or red else no)
    verifier = ChecklistVerifier(chat)
    verdicts = verifier.judge("a red ball", [RED, BLUE]) + verifier.judge("a red ball", [BLUE])
    assert sum(q.picture is None for q in chat.questions) == 1
    assert len(chat.questions) == 1 + 3 * 2
    assert [(v.score, v.accepted) for v in verdicts] == [(pytest.approx(0.9), True), (0.5, False), (0.5, False)]
    assert [c.passed for c in verdicts[1].checks] == [True, False]
    assert verdicts[1].reason == "no to: Is it red?"
    # The questions that made the checks are paid for with the first pictures.
    assert verifier.spent.judge_calls == 7 and verifier.spent.tokens == 12
    assert len(verifier.asked) == 7


@pytest.mark.parametrize("about, taken", [("color", "colour"), (" Count ", "count"), ("attribute", "other"),
                                          ("x" * 9000, "other"), (3, "other"), (None, "other"), (..., "other")])
def test_what_a_check_is_about_may_be_called_anything(about, taken):
    """The schema that is sent says what is wanted all the same."""
    one = {"about": about, "question": "Is it red?"} if about is not ... else {"question": "Is it red?"}
    chat = Table(lambda q: json.dumps({"questions": [one]}))
    assert ChecklistVerifier(chat).prepare("a red ball") == ((taken, "Is it red?"),)
    (asked,) = chat.questions
    assert "colour" in asked.schema["properties"]["questions"]["items"]["properties"]["about"]["enum"]


def test_geometric_mean_and_own_checks():
    chat = Table(lambda q: Answer("", 0.25, 0.75) if "red" in q.text else Answer("", 1.0, 0.0))
    verifier = ChecklistVerifier(chat, mean="geometric", own=(("other", "A ball?"), ("other", "red?")))
    assert verifier.judge("a red ball", [RED])[0].score == pytest.approx(0.5)
    assert all(q.picture is not None for q in chat.questions)


def test_a_check_without_an_answer_is_no_pass_and_no_score():
    chat = Table(lambda q: Answer(error="HTTP 500") if "red" in q.text else Answer("Yes", 1.0, 0.0))
    three = (("o", "A ball?"), ("o", "red?"), ("o", "round?"))
    verdict = ChecklistVerifier(chat, own=three).judge("p", [RED])[0]
    assert verdict.judged and not verdict.accepted and verdict.score == 1.0
    assert [c.passed for c in verdict.checks] == [True, False, True] and "HTTP 500" in verdict.checks[1].note
    assert verdict.reason == "no answer to: red?"
    listener = Table(lambda q: "Add a ball")
    SentenceReflector(listener).reflect("p", [RED], [verdict])
    assert "red?" not in listener.questions[0].text
    verdict = ChecklistVerifier(chat, own=three[:2]).judge("p", [RED])[0]
    assert not verdict.judged and verdict.score == 0.0 and "HTTP 500" in verdict.reason


@pytest.mark.parametrize("tag", ASPECTS)
def test_rubric(tag):
    def say(question):
        assert question.text == "Description: two cats"
        mark = {"explanation": "so so", "score": 9 if is_red(question) else 4}
        return "Here it is:\n```json\n" + json.dumps(dict.fromkeys((*ASPECTS[tag], "overall_score"), mark)) + "\n```"

    good, bad = RubricVerifier(Table(say), tag).judge("two cats", [RED, BLUE])
    assert (good.score, good.accepted, bad.score, bad.accepted) == (0.9, True, 0.4, False)
    assert len(good.checks) == len(ASPECTS[tag]) and all(c.passed for c in good.checks)
    assert bad.reason == "so so"


def test_rubric_is_asked_again_once_and_then_given_up():
    replies = iter(["no JSON", '{"count_accuracy": {"explanation": "x", "score": 11}}', "again none", "and none"])
    chat = Table(lambda q: next(replies))
    first, second = RubricVerifier(chat, "counting").judge("two cats", [RED, BLUE])
    assert not first.judged and not second.judged and len(chat.questions) == 4
    assert "expected 0 to 10" in chat.questions[3].text and chat.questions[2].before[0][1] == "no JSON"


@pytest.mark.parametrize("more", ['"confidence": NaN', '"confidence": -Infinity', '"deep": ' + "[" * 700 + "]" * 700,
                                  '"notes": "\\u001b[2J' + "z" * 800_000 + '"'])
def test_of_a_rubric_only_what_was_asked_for_is_kept(more):
    """It goes on the record, which holds no NaN, and on a page."""
    from reflect_core.search.actors import as_recorded

    mark = {"explanation": "so \x1b[2J" + "so " * 900, "score": 5, "more": 1}
    marks = dict.fromkeys((*ASPECTS["general"], "overall_score"), mark)
    verdict = RubricVerifier(Table(lambda q: f"{json.dumps(marks)[:-1]}, {more}}}")).judge("two cats", [RED])[0]
    kept = as_recorded(verdict).details["marks"]
    assert list(kept) == [*ASPECTS["general"], "overall_score"] and verdict.score == 0.5
    assert all(mark.keys() == {"explanation", "score"} and len(mark["explanation"]) <= 300 for mark in kept.values())
    assert "\x1b" not in str(kept) and "[2J" in str(kept)


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1e999", "9" * 5000])
def test_a_mark_that_is_no_number_is_asked_for_again(score):
    mark = '{"explanation": "x", "score": %s}' % score
    reply = "{" + ", ".join(f'"{name}": {mark}' for name in (*ASPECTS["counting"], "overall_score")) + "}"
    chat = Table(lambda q: reply)
    assert not RubricVerifier(chat, "counting").judge("two cats", [RED])[0].judged and len(chat.questions) == 2


@pytest.mark.parametrize("reply, accepted, official, guarded", [
    ("The image is correct.", True, "", ""),
    ("The image is incorrect. There is no ball", False, "There is no ball", "There is no ball"),
    ("The image is incorrect. There is no ball.", False, "", "There is no ball"),
    ("This is correct", True, "", ""),
    ("incorrect", False, "incorrect", "incorrect"),
    ("", False, "", ""),
    ("...", False, "", ""),
])
def test_the_released_judges_rule(reply, accepted, official, guarded):
    for guard, feedback in ((False, official), (True, guarded)):
        verdict = ReleasedVerifier(Table(lambda q: reply), guard=guard).judge("a ball", [RED])[0]
        assert (verdict.accepted, verdict.score, verdict.details["feedback"]) == (accepted, float(accepted), feedback)
        assert ReleasedReflector().reflect("a ball", [RED], [verdict]) == [feedback]


def test_a_prompt_with_braces_is_text():
    chat = Table(lambda q: Answer("Yes", 1.0, 0.0))
    for verifier in (MatchVerifier(chat), ReleasedVerifier(chat)):
        verifier.judge("a {prompt} of {0} {", [RED])
        assert "a {prompt} of {0} {" in chat.questions[-1].text


def test_a_released_judge_that_refuses_has_not_judged():
    verdict = ReleasedVerifier(Table(lambda q: "I'm sorry, I can't assist with that.")).judge("a ball", [RED])[0]
    assert not verdict.judged and "the judge refuses" in verdict.reason and not verdict.details
    assert ReleasedReflector().reflect("a ball", [RED], [verdict]) == [""]


def test_blank_checks_are_none():
    blank = json.dumps({"questions": [{"about": "object", "question": " \u200b "}]})
    with pytest.raises(UserError, match="its questions are blank"):
        ChecklistVerifier(Table(lambda q: blank)).judge("a ball", [RED])


def test_a_model_without_checks_is_an_error_with_a_cure():
    with pytest.raises(UserError, match="could not take the prompt apart .*ask=match"):
        ChecklistVerifier(Table(lambda q: "no")).judge("a ball", [RED])
