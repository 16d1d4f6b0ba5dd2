"""What a server can and cannot do, and the options that say how it is asked: found out once, told at once."""

from __future__ import annotations

import base64
import io

import pytest
from fake_server import FakeServer, reds, server_at
from PIL import Image

from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.verifiers.match import not_judged
from reflect_core.vlm.chat import Question
from reflect_core.vlm.probe import NO_THINKING, answers_yes_or_no


@pytest.mark.parametrize("name", ["logprobs", "seed", "temperature", "response_format", "max_tokens"])
def test_a_parameter_that_the_server_does_not_take_is_left_out(name):
    with FakeServer(refuses=[name]).running() as fake:
        judge = find_judge(fake.url, {"pause": 0.01})
        told = judge.prepare("a red ball")
        verdict = judge.actors().verifier.judge("a red ball", reds(64)[40:41])[0]
    assert verdict.judged
    assert any(name in line for line in told)
    if name == "max_tokens":
        assert fake.documents[-1]["max_completion_tokens"] == 8
    if name == "logprobs":
        assert verdict.score in (0.0, 1.0) and verdict.checks[0].note in ("yes 0.00", "yes 1.00")


def test_a_server_that_ignores_the_schema_is_asked_again():
    with FakeServer(schema=False).running() as fake:
        judge = find_judge(fake.url, {"ask": "rubric", "pause": 0.01})
        judge.prepare("a red ball")
        verifier = judge.actors().verifier
        verdicts = verifier.judge("a red ball", reds(3))
    assert all(v.judged for v in verdicts) and len(verdicts[0].checks) == 5
    assert verifier.spent.judge_calls == 2 + 6
    assert "prose" in fake.documents[-1]["messages"][2]["content"]


@pytest.mark.parametrize("settings, options, message", [
    ({"models": ["a", "b"]}, {}, "was asked for no model, and it has a, b; .* model=NAME"),
    ({"models": []}, {}, "it does not say which it has"),
    ({}, {"model": "gpt-9"}, "has no model 'gpt-9' .*expected one of fake-vl"),
    ({"key": "sesame"}, {}, "wants another key .* REFLECT_KEY_127_0_0_1"),
    ({"sees": False}, {}, "does not see pictures: .* 50% and 50%"),
    ({"logprobs": False, "words": lambda document, red: "Ja, sicher."}, {},
     "cannot be asked yes or no: .*'Ja, sicher.'"),
    ({"words": lambda document, red: "not a list" if red is None else None}, {},
     "could not take the prompt apart .*ask=match"),
])
def test_a_server_that_cannot_judge_says_so_at_once(settings, options, message, monkeypatch):
    monkeypatch.delenv("REFLECT_KEY_127_0_0_1", raising=False)
    with FakeServer(**settings).running() as fake:
        with pytest.raises(UserError, match=message):
            find_judge(fake.url, {"pause": 0.01, **options}).prepare("a red ball")


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"side": 1.5}, {"timeout": 0}, {"attempts": True},
                                     {"picture_format": "gif"}, {"temperature": "hot"}, {"nonsense": 1},
                                     {"ask": "nicely"},
                                     {"threshold": 2}, {"checks": []}, {"checks": "Is it?"}, {"tag": "cats"},
                                     {"wording": "no place"}, {"reflect": "released"}, {"edits": 0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(UserError, match="expected"):
        find_judge("http://127.0.0.1:1/v1", options)


def test_large_pictures_are_sent_smaller_and_only_once():
    with FakeServer().running() as fake:
        chat = server_at(fake.url, side=100)
        picture = Image.new("RGB", (400, 200), (200, 0, 0))
        chat.ask([Question(f"{k}?", picture) for k in range(3)])
    urls = {d["messages"][-1]["content"][0]["image_url"]["url"] for d in fake.documents}
    assert len(urls) == 1
    assert Image.open(io.BytesIO(base64.b64decode(urls.pop().partition(",")[2]))).size == (100, 50)


def test_a_server_that_gives_fewer_alternatives_is_asked_for_fewer():
    with FakeServer(most_logprobs=5).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.01})
        told = judge.prepare("a red ball")
        verdict = judge.actors().verifier.judge("a red ball", reds(41)[40:])[0]
    assert "first token's probabilities" in told[0] and verdict.details["how"] == "tokens"
    assert fake.documents[-1]["top_logprobs"] == 5 and judge.chat.dropped == set()


def test_a_model_that_thinks_needs_room(monkeypatch):
    """All its tokens go into thoughts: that is told at once, and with room for them it is a judge."""
    def answer(self, document):
        made = original(self, document)
        made["choices"][0].pop("logprobs", None)
        if document["max_tokens"] < 2000:
            made["choices"][0].update(message={"content": None, "reasoning_content": "hm"}, finish_reason="length")
        return made

    original = FakeServer.answer
    monkeypatch.setattr(FakeServer, "answer", answer)
    with FakeServer().running() as fake:
        with pytest.raises(UserError, match="it thought until .*-instruct.*ask=rubric with option thinking=2000"):
            find_judge(fake.url, {"pause": 0.01}).prepare("a red ball")
        with pytest.raises(UserError, match="try option thinking=4000"):
            find_judge(fake.url, {"ask": "rubric", "pause": 0.01}).prepare("a red ball")
        assert fake.number == 2 + 2 * len(NO_THINKING), "asked once, and once in each way in which it might not think"
        judge = find_judge(fake.url, {"ask": "rubric", "thinking": 4000, "pause": 0.01})
        judge.prepare("a red ball")
        assert judge.actors().verifier.judge("a red ball", reds(1))[0].judged


def test_a_reflector_alone_is_not_prepared_as_a_judge():
    with FakeServer(words=lambda document, red: "Add a dog").running() as fake:
        judge = find_judge(fake.url, {"reflect": "tuned", "pause": 0.01})
        judge.connect(judges=False)
        assert fake.number == 1
        said = judge.actors().reflector.reflect("a dog", reds(1), [not_judged("x")])
        assert said == ["Add a dog"] and judge.actors().reflector.spent.judge_calls == 2


def test_a_record_holds_nothing_of_other_prompts():
    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"pause": 0.01})
        for prompt in ("a first one", "a second one"):
            judge.prepare(prompt)
    said = repr(judge.settings("a second one"))
    assert "first" not in said and "Is there a ball?" in said
    assert judge.settings("a second one")["options"]["found"] == {"logprobs": True, "schema": True, "dropped": []}
    assert find_judge(judge.settings("a second one")).compiled.keys() == {"a second one"}


@pytest.mark.parametrize("stray", [(404, {"detail": "Not Found"}), (404, {"error": {"message": "404 page not found"}}),
                                   (200, {"error": "Unexpected endpoint or method. (GET /models)"})])
def test_an_address_without_v1(stray):
    """As vLLM, Ollama and LM Studio answer it."""
    with FakeServer().running() as fake:
        fake.stray = stray
        judge = find_judge(fake.url.removesuffix("/v1"), {"ask": "match", "pause": 0.01})
        told = judge.prepare("a red ball")
        assert judge.actors().verifier.judge("a red ball", reds(1))[0].judged
        assert any(line.startswith(f"the judge's server is at {fake.url};") for line in told)
        assert judge.settings()["options"]["url"] == fake.url
        with pytest.raises(UserError, match="most end in /v1"):
            find_judge(fake.url.removesuffix("/v1") + "/api", {"model": "fake-vl", "pause": 0.01}).prepare("a red ball")


@pytest.mark.parametrize("models, asked, answered, warned", [
    (["qwen2.5-vl-3b.gguf"], "qwen3-vl-235b", None, "its server has qwen2.5-vl-3b.gguf"),
    ([], "qwen3-vl-235b", "/models/qwen2.5-vl-3b.gguf", "'/models/qwen2.5-vl-3b.gguf' answered"),
    (["models/gemini-2.5-flash"], "gemini-2.5-flash", "gemini-2.5-flash", None),
    (["gpt-4o", "gpt-4o-mini"], "gpt-4o", "gpt-4o-2024-08-06", None),
    (["qwen3-vl:8b-instruct"], "qwen3-vl:8b-instruct", "qwen3-vl:8b-instruct", None),
    (["qwen/qwen3-vl-8b"], "Qwen/Qwen3-VL-8B:free", "qwen/qwen3-vl-8b", None)])
def test_a_server_that_takes_any_name_for_a_model(models, asked, answered, warned):
    """llama.cpp answers with what it has loaded."""
    def hook(document):
        return 200, {**FakeServer.answer(fake, document), "model": answered or asked}

    with FakeServer(models=[asked], hook=hook).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "model": asked, "pause": 0.01})
        judge.chat._listed = lambda maybe: models
        told = judge.prepare("a red ball")
    assert any("some servers take any name" in line for line in told) == (warned is not None)
    assert warned is None or any(warned in line for line in told)


def test_the_first_pictures_are_as_large_as_a_runs():
    """So that a context that is too small for them is found before anything is drawn."""
    with FakeServer().running() as fake:
        find_judge(fake.url, {"ask": "match", "side": 640, "pause": 0.01}).prepare("a red ball")
    url = fake.documents[0]["messages"][-1]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (640, 640)
    assert fake.documents[0]["messages"][0]["role"] == "system", "as a run's"


def test_any_chat_can_be_asked_whether_it_answers():
    with FakeServer().running() as fake:
        assert answers_yes_or_no(server_at(fake.url), "it").logprobs
    with FakeServer(sees=False).running() as fake:
        with pytest.raises(UserError, match="the judge it does not see"):
            answers_yes_or_no(server_at(fake.url), "it")
