"""What is made of a language model's words: reflections and prompts. The model is a table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vlm_judges import BLUE, RED, WRONG, Table, checklist_chat, is_red

from reflect_core.refiners.vlm import VlmRefiner
from reflect_core.reflectors import SpokenReflector
from reflect_core.reflectors.told import edits, lines, sentence
from reflect_core.reflectors.vlm import EditsReflector, SentenceReflector, TunedReflector
from reflect_core.text import bounded
from reflect_core.types import UserError, Verdict
from reflect_core.verifiers.checklist import ChecklistVerifier
from reflect_core.vlm.chat import Answer


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
