"""What is made of a language model's answers: verdicts, reflections, prompts. The model is a table."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reflect_core.refiners.vlm import VlmRefiner
from reflect_core.reflectors import SpokenReflector
from reflect_core.reflectors.told import edits, lines, sentence
from reflect_core.reflectors.vlm import EditsReflector, ReleasedReflector, SentenceReflector, TunedReflector
from reflect_core.text import bounded
from reflect_core.types import UserError, Verdict
from reflect_core.verifiers.checklist import ChecklistVerifier
from reflect_core.verifiers.match import MatchVerifier
from reflect_core.verifiers.released import ReleasedVerifier
from reflect_core.verifiers.rubric import ASPECTS, RubricVerifier
from reflect_core.vlm.chat import Answer
from reflect_core.vlm.reading import Reading, read
from reflect_core.vlm.structured import misfit, object_of, parse

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


@pytest.mark.parametrize("reply, one, several", [
    ("1. Prompt Following:\n- Add a second red ball on the left.\n- The mood is nice\n- None",
     "Add a second red ball on the left.", "Add a second red ball on the left"),
    ("**Reflection:** There is no dog. Add one.", "There is no dog.", "There is no dog. Add one"),
    ("None.", "", ""), ("None", "", ""), ("No changes needed.", "", ""), ("The image is correct.", "", ""),
    ("", "", ""),
    ("Edits:\n1) Remove the cat\n2) Replace the sky; it is green\n3) Add x\n4) Add y", "Remove the cat",
     "Remove the cat; Replace the sky; it is green; Add x"),
    ('"Move the cup to the left of the plate."', "Move the cup to the left of the plate.",
     "Move the cup to the left of the plate"),
    ("Nothing but the dog is right: add a cat", "Nothing but the dog is right: add a cat",
     "Nothing but the dog is right: add a cat"),
    ("\u2022 Move the \x1b[31mcup\x00\u202e", "Move the [31mcup", "Move the [31mcup"),
    ("- Add a ball\n- Add a ball", "Add a ball", "Add a ball"),
    ("The picture matches the description except that the dog is missing.",) * 2 + (
        "The picture matches the description except that the dog is missing",),
    ("No issues with the cat, but the dog is missing", "No issues with the cat, but the dog is missing",
     "No issues with the cat, but the dog is missing"),
    ('A sign that says "OPEN"',) * 3, ("No", "", ""), ("Yes.", "", ""), ("New prompt: a cat", "a cat", "a cat"),
])
def test_reflections_out_of_replies(reply, one, several):
    assert sentence(reply, 300) == one
    assert edits(reply, 3, 300) == several


@given(st.text(max_size=400), st.integers(1, 5), st.integers(20, 120))
def test_whatever_a_model_says_becomes_one_bounded_line(reply, limit, most):
    for text in (sentence(reply, most), edits(reply, limit, most), bounded(reply, most)):
        assert len(text) <= most + 2 * limit and text == text.strip()
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)
    assert all(lines(reply))


def test_a_long_text_is_cut_behind_a_sentence_or_a_word():
    assert bounded("One thing here. And another one there", 20) == "One thing here."
    assert bounded("abc def ghi", 8) == "abc def"
    assert bounded("abc def ghi", 7) == "abc def"
    assert bounded("abcdefghij", 4) == "abcd"


@pytest.mark.parametrize("kind", [SentenceReflector, EditsReflector, TunedReflector])
def test_reflectors_ask_only_of_what_is_wrong(kind):
    chat = Table(lambda q: "Add a ball." if is_red(q) else Answer(error="HTTP 500"))
    reflector = kind(chat)
    said = reflector.reflect("a ball", [RED, RED, BLUE], [Verdict(1.0, True), WRONG, WRONG])
    assert [text.rstrip(".") for text in said] == ["", "Add a ball", ""]
    assert len(chat.questions) == 2 == reflector.spent.judge_calls
    assert reflector.asked[1].error == "HTTP 500"


CHINESE = "\u6ca1\u6709\u72d7\uff0c\u8bf7\u6dfb\u52a0"


@pytest.mark.parametrize("kind", [SentenceReflector, EditsReflector, TunedReflector])
def test_a_reply_in_a_script_that_the_model_does_not_read_is_marked(kind):
    """French is handed on. Of two languages the one that is read is."""
    chat = Table(lambda q: CHINESE if is_red(q) else "Ajoutez un chien \u00e0 droite")
    reflector = kind(chat)
    assert reflector.reflect("a dog", [RED, BLUE], [WRONG, WRONG]) == ["", "Ajoutez un chien \u00e0 droite"]
    assert reflector.notes == [("the model reads Latin letters alone; of what was said, left out: " + CHINESE,), ()]
    reads = kind(chat, scripts="any")
    assert reads.reflect("a dog", [RED], [WRONG]) == [CHINESE] and reads.notes == [()]
    both = kind(Table(lambda q: f"{CHINESE}\n1. Add a dog"))
    assert both.reflect("a dog", [RED], [WRONG]) == ["Add a dog"] and CHINESE in both.notes[0][0]
    both.chat = Table(lambda q: Answer(error="HTTP 500"))
    assert both.reflect("a dog", [RED], [WRONG]) == [""] and both.notes == [()], "notes are of the last call"


@pytest.mark.parametrize("say, noted", [(None, True), ("add", True), ("replace", False)])
def test_what_is_not_handed_on_is_on_the_record_and_on_the_page(tmp_path, say, noted):
    from fakes import REQUEST, FakeGenerator, FakeVerifier

    from reflect_core.report import html_page
    from reflect_core.search import ReflectionFlow, load, start

    inner = EditsReflector(Table(lambda q: CHINESE))
    inner.reflect("a dog", [RED], [WRONG])  # for nobody's record
    reflector = inner if say is None else SpokenReflector(inner, "add a dog", say)
    heard = []
    with start(REQUEST, ReflectionFlow(1, 1, 2, silent="correct"), FakeGenerator(), FakeVerifier(2), reflector,
               folder=tmp_path / "run", fingerprint="x",
               on_event=lambda event: heard.append(event.text) if event.kind == "reflected" else None) as stepper:
        run = stepper.run()
    header, again = load(tmp_path / "run")
    assert again.candidates == run.candidates and len(run.candidates) == 3
    notes = [note for c in again.candidates for note in c.notes]
    assert all(CHINESE in note for note in notes) and bool(notes) == noted
    assert len(notes) == len(set(id(c) for c in again.candidates if c.notes)), "each once, however often it was said"
    assert (CHINESE in html_page(again, header=header, chosen=None)) == noted
    assert any(CHINESE in text for text in heard) == (say is None), "and told meanwhile"
    assert ('"notes"' in (tmp_path / "run" / "run.jsonl").read_text()) == noted


def test_a_new_prompt_that_the_model_does_not_read_leaves_the_old_one():
    refiner = VlmRefiner(Table(lambda q: CHINESE if is_red(q) else "A dog on grass"))

    def refined(refiner, prompt):
        return refiner.refine(prompt, [prompt, prompt], [RED, BLUE], [WRONG, WRONG], ["", ""])

    assert refined(refiner, "a dog") == ["a dog", "A dog on grass"]
    assert [len(noted) for noted in refiner.notes] == [1, 0] and CHINESE in refiner.notes[0][0]
    for other, prompt in ((refiner, CHINESE[:3]), (VlmRefiner(refiner.chat, scripts="any"), "a dog")):
        assert refined(other, prompt) == [CHINESE, "A dog on grass"] and other.notes == [(), ()]


@pytest.mark.parametrize("say, noted", [(True, True), (False, False)])
def test_so_does_the_record(tmp_path, say, noted):
    from fakes import REQUEST, FakeGenerator, FakeReflector, FakeVerifier

    from reflect_core.search import ReflectionFlow, load, start

    refiner = VlmRefiner(Table(lambda q: CHINESE if say else "a dog on grass"))
    with start(REQUEST, ReflectionFlow(1, 1, 2, refine=True), FakeGenerator(), FakeVerifier(2), FakeReflector(),
               refiner, folder=tmp_path / "run", fingerprint="x") as stepper:
        run = stepper.run()
    again = load(tmp_path / "run")[1]
    assert again.candidates == run.candidates and any(c.notes for c in again.candidates) == noted
    assert {c.request.prompt for c in again.candidates[1:]} == {REQUEST.prompt if say else "a dog on grass"}


def test_a_judge_speaks_what_the_model_reads():
    from reflect_core.judges import find_judge
    from reflect_core.presets.choice import ModelChoice

    def judge(**options):
        made = find_judge("server", {"url": "http://127.0.0.1:1/v1", **options})
        made._chat = Table(lambda q: CHINESE)
        return made

    assert [ModelChoice(name).scripts for name in ("shapes-flux", "shapes-sana")] == ["latin", "any"]
    for policy, scripts, said, handed_on in (
            ("reflection_flow", "latin", {}, False), ("reflection_flow", "any", {}, True),
            ("reflect_dit", "any", {}, True), (None, None, {"reflect": "sentence"}, True), (None, None, {}, False),
            ("reflection_flow", "latin", {"scripts": "any"}, True)):
        one = judge(**said)
        if policy is not None:
            one.suit(policy, scripts)
            assert find_judge(one.settings("a dog")).ask.scripts == said.get("scripts", scripts), "as on the record"
        assert one.actors().reflector.reflect("a dog", [RED], [WRONG]) == [CHINESE if handed_on else ""]
    with pytest.raises(UserError, match="option scripts is 'chinese'; expected 'latin' or 'any'"):
        judge(scripts="chinese")


REFUSAL = "I\u2019m sorry, but I can\u2019t assist with that."


@pytest.mark.parametrize("kind", [SentenceReflector, EditsReflector, TunedReflector])
@pytest.mark.parametrize("scripts", ["latin", "any"])
def test_a_refusal_is_no_reflection(kind, scripts):
    reflector = kind(Table(lambda q: REFUSAL if is_red(q) else "Add a dog"), scripts=scripts)
    assert reflector.reflect("a dog", [RED, BLUE], [WRONG, WRONG]) == ["", "Add a dog"]
    assert reflector.notes == [(f"the judge refuses to say what is wrong: {REFUSAL}",), ()]


THOUGHTS = "Got it, let me look at the picture. The user wants a dog. I have to say what is wrong with it. First"


@pytest.mark.parametrize("kind, reply, said", [
    (SentenceReflector, THOUGHTS, ""), (EditsReflector, THOUGHTS, ""), (TunedReflector, THOUGHTS[:30], ""),
    (EditsReflector, f"{THOUGHTS}\nAdd a dog\nMove the c", "Add a dog"), (EditsReflector, "Add a d", ""),
    (TunedReflector, "Add a dog. Move the cat. Rem", "Add a dog."), (TunedReflector, "Add a do", ""),
    (TunedReflector, "Add a dog.", "Add a dog.")])
def test_of_a_reply_that_was_cut_off_only_what_is_whole_is_handed_on(kind, reply, said):
    reflector = kind(Table(lambda q: Answer(reply, cut=True)))
    assert reflector.reflect("a dog", [RED], [WRONG]) == [said]
    assert bool(reflector.notes[0]) == (not said) and (said or "was cut off" in reflector.notes[0][0])


@pytest.mark.parametrize("answer, why", [(Answer("A dog on the gra", cut=True), "the new prompt was cut off"),
                                         (Answer(THOUGHTS, cut=True), "cut off"), (REFUSAL, "the judge refuses")])
def test_what_is_no_whole_prompt_leaves_the_old_one(answer, why):
    refiner = VlmRefiner(Table(lambda q: answer if is_red(q) else "A dog on grass"))
    assert refiner.refine("a dog", ["a small dog", "dog"], [RED, BLUE], [WRONG, WRONG], ["", ""]) == [
        "a small dog", "A dog on grass"]
    assert why in refiner.notes[0][0] and refiner.notes[1] == ()


def test_a_released_judge_that_refuses_has_not_judged():
    verdict = ReleasedVerifier(Table(lambda q: REFUSAL)).judge("a ball", [RED])[0]
    assert not verdict.judged and "the judge refuses" in verdict.reason and not verdict.details
    assert ReleasedReflector().reflect("a ball", [RED], [verdict]) == [""]


def test_a_reflector_hears_what_failed():
    chat = checklist_chat(lambda text, red: Answer("No", 0.0, 1.0))
    verdict = ChecklistVerifier(chat).judge("a red ball", [BLUE])[0]
    chat = Table(lambda q: "Add a ball")
    SentenceReflector(chat).reflect("a red ball", [BLUE], [verdict])
    assert "Is it red?" in chat.questions[0].text and chat.questions[0].picture is BLUE


def test_refiner_keeps_the_present_prompt_where_it_gets_none():
    chat = Table(lambda q: "A large red ball,\non grass." if is_red(q) else Answer(error="HTTP 500"))
    said = VlmRefiner(chat).refine("a red ball", ["a red ball", "a ball"], [RED, BLUE], [WRONG, WRONG], ["Add", ""])
    assert said == ["A large red ball, on grass.", "a ball"]
    first, second = (question.text for question in chat.questions)
    assert "present description" not in first and "present description: a ball" in second


SCHEMA = object_of(name={"type": "string"}, number={"type": "integer", "minimum": 0, "maximum": 3})


@pytest.mark.parametrize("text, found", [
    ('{"name": "a", "number": 1}', {"name": "a", "number": 1}),
    ('Sure! {"a": 1} {"name": "a", "number": 2} and more', {"name": "a", "number": 2}),
    ('{{{ {"name": "}", "number": 3}', {"name": "}", "number": 3}),
    ('```json\n{"name": "a", "number": 0, "more": 1}\n```', {"name": "a", "number": 0, "more": 1}),
    ('{"name": "a", "number": 4}', "number is 4; expected 0 to 3"),
    ('{"name": "a", "number": true}', "number is true; expected integer"),
    ('{"name": "a"}', "it lacks 'number'"),
    ('{"name": "a", "number": 1', "it has no JSON object"),
    ("[]", "it has no JSON object"),
    ("{" * 5000, "it has no JSON object"),
])
def test_json_is_found_and_checked(text, found):
    assert parse(text, SCHEMA) == found


@pytest.mark.parametrize("text", ['{"questions":[' * 10_000, '{"a":' * 20_000, "{" * 140_000,
                                  '{"name": ["' + "x" * 140_000 + '"], "number": 1}'])
def test_a_reply_is_looked_through_in_no_time(text):
    began = time.process_time()
    assert isinstance(why := parse(text, SCHEMA), str) and len(why) < 200
    assert time.process_time() - began < 1


def test_a_strange_value_is_shown_short():
    deep = json.loads("[" * 900 + "]" * 900)
    for value in ("x" * 10_000, deep, {"a": deep}):
        assert len(misfit({"type": "string", "enum": ["a"]}, value)) < 120
        assert len(misfit({"type": "integer"}, value)) < 120
    assert len(misfit({"type": "integer", "minimum": 0, "maximum": 10}, 10**4000)) < 120


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
def test_only_what_fits_is_taken(value):
    fits = isinstance(value, dict) and isinstance(value.get("name"), str) and type(value.get("number")) is int \
        and 0 <= value["number"] <= 3
    assert (misfit(SCHEMA, value) is None) == fits


def test_blank_checks_are_none():
    blank = json.dumps({"questions": [{"about": "object", "question": " \u200b "}]})
    with pytest.raises(UserError, match="its questions are blank"):
        ChecklistVerifier(Table(lambda q: blank)).judge("a ball", [RED])


def test_a_model_without_checks_is_an_error_with_a_cure():
    with pytest.raises(UserError, match="could not take the prompt apart .*ask=match"):
        ChecklistVerifier(Table(lambda q: "no")).judge("a ball", [RED])
