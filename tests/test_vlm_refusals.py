"""What servers say when they will not answer, each in its own words, and what is made of it."""

from __future__ import annotations

import json

import pytest
from fake_server import FakeServer, red_of, reds, replies, says, server_at

from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.vlm.chat import ALL_THOUGHT, Question
from reflect_core.vlm.refusals import parameter, seconds_told, wants_money
from reflect_core.vlm.wire import from_reply


def refusing(name, *said):
    """A hook: whatever has that parameter is refused."""
    return lambda document: said if name in document else None


OPENAI = says(403, "You are not allowed to request logprobs from this model", type="invalid_request_error", param=None)
GOOGLE = 400, [{"error": {"code": 400, "message": "Logprobs is not enabled for models/gemini-2.5-flash",
                          "status": "INVALID_ARGUMENT"}}]
GROQ = says(400, "This model does not support response format `json_schema`. See supported models.",
            type="invalid_request_error", param="response_format")
BESIDE = says(400, "Unsupported value for this model", param="response_format")
BEHIND = says(400, "Provider returned error", code=400, metadata={"raw": '{"detail": "temperature is not supported"}'})


@pytest.mark.parametrize("name, said", [("logprobs", OPENAI), ("logprobs", GOOGLE), ("response_format", GROQ),
                                        ("response_format", BESIDE), ("temperature", BEHIND)])
def test_parameters_as_servers_name_them(name, said):
    with FakeServer(hook=refusing(name, *said)).running() as fake:
        judge = find_judge(fake.url, {"pause": 0.01})
        told = judge.prepare("a red ball")
        verdict = judge.actors().verifier.judge("a red ball", reds(1))[0]
    assert verdict.judged and any(f"does not take {name}" in line for line in told)
    assert name in judge.settings()["options"]["found"]["dropped"] and name not in fake.documents[-1]


def test_gpt_5_takes_none_of_three():
    def hook(document):
        for name, said in (("max_tokens", says(400, "Unsupported parameter: 'max_tokens' is not supported with this "
                                                    "model. Use 'max_completion_tokens' instead.", param="max_tokens")),
                           ("temperature", says(400, "Unsupported value: 'temperature' does not support 0 with this "
                                                     "model. Only the default (1) value is supported.")),
                           ("logprobs", OPENAI)):
            if name in document:
                return said
        return None

    with FakeServer(hook=hook).running() as fake:
        judge = find_judge(fake.url, {"pause": 0.01})
        judge.prepare("a red ball")
        assert judge.actors().verifier.judge("a red ball", reds(1))[0].judged
    assert fake.documents[-1]["max_completion_tokens"] == 8


def test_a_name_within_another_word_is_no_parameter():
    """One question is refused, for its picture: the rest are asked as before."""
    lost = []

    def hook(document):
        if lost and json.dumps(document["messages"]) in lost:
            return says(400, "Provider bytedance/seed-1.6: image could not be fetched")
        return None

    with FakeServer(hook=hook).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "concurrency": 1, "pause": 0.01})
        judge.prepare("a red ball")
        verifier = judge.actors().verifier
        verifier.judge("a red ball", reds(2)[1:])
        lost.append(json.dumps(fake.documents[-1]["messages"]))
        verdicts = verifier.judge("a red ball", reds(3))
    assert [v.judged for v in verdicts] == [True, False, True] and "could not be fetched" in verdicts[1].reason
    assert judge.chat.dropped == set() and all("seed" in document for document in fake.documents)


@pytest.mark.parametrize("reason, name", [
    ("Response format is not supported", "response_format"), ("unknown field response-format", "response_format"),
    ("'seed' is not supported", "seed"), ("maker/seed has no room", None), ("seed-1.6 has no room", None),
    ("my_seed has no room", None), ("the model seed 2 has no room", None), ("temperatures differ", None)])
def test_which_parameter_is_named(reason, name):
    assert parameter(reason, {"seed": 0, "response_format": {}, "temperature": 0}, "seed 2") == name


def test_a_bill_is_no_limit():
    """Google says the same words of a limit, and for how long."""
    assert wants_money(429, "quota [insufficient_quota]", 20.0)
    assert wants_money(429, "You exceeded your current quota", 0)
    assert not wants_money(429, "You exceeded your current quota. Please retry in 18.02s.", 18.02)


def test_in_a_run_a_parameter_is_left_out_of_one_question():
    """What the record says of a judge stays true: it was asked with a seed."""
    refused = []

    def hook(document):
        if fake.number == 5 and not refused:
            refused.append(document)
            return says(400, "seed: cannot be used right now")
        return None

    with FakeServer(hook=hook).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "concurrency": 1, "pause": 0.01})
        judge.prepare("a red ball")
        assert fake.number == 2
        verdicts = judge.actors().verifier.judge("a red ball", reds(5))
    assert refused and all(v.judged for v in verdicts)
    assert ["seed" in d for d in fake.documents] == [True] * 5 + [False] + [True] * 2
    assert judge.chat.dropped == set()


@pytest.mark.parametrize("said, message", [
    (says(400, "Missing or invalid Authorization header."), "wants another key"),
    ((400, [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key."}}]), "another key"),
    (says(403, "Country, region, or territory not supported"), "wants another key"),
    (says(429, "You exceeded your current quota, please check your plan and billing details.",
          code="insufficient_quota"), "wants to be paid"),
    ((404, {"detail": "Not Found"}), "has nothing at .*/v1"),
    (says(404, "No endpoints found that support image input"), "takes no pictures"),
    (says(400, "gpt-9 is not a valid model ID"), "has no model 'fake-vl'"),
    ((500, {"error": {"message": "the request exceeds the available context size. try increasing the context size"}}),
     "do not fit into the context"),
    ((200, {"error": {"code": 402, "message": "Insufficient credits"}}), "wants to be paid .*Insufficient credits"),
])
def test_what_ends_a_run_at_once(said, message):
    with FakeServer(hook=lambda document: said).running() as fake:
        with pytest.raises(UserError, match=message):
            server_at(fake.url).ask([Question("?", reds(1)[0])])
    assert fake.number == 1


def test_an_error_within_a_good_reply_is_said():
    """OpenRouter's, where the provider behind it failed."""
    said = 200, {"error": {"code": 502, "message": "Upstream is down"}}
    with FakeServer(hook=lambda document: said).running() as fake:
        answer = server_at(fake.url, attempts=2).ask([Question("?", reds(1)[0])])[0]
    assert "HTTP 502: Upstream is down" in answer.error and answer.attempts == 2
    with pytest.raises(ValueError, match="it says Overflow"):
        from_reply({"choices": [{"message": {"content": ""}, "error": {"message": "Overflow"}}]})


@pytest.mark.parametrize("reply", [replies(None, refusal="I cannot help with that."),
                                   replies("", reason="content_filter"), replies(None, reason="content_filter")])
def test_a_model_that_refuses_is_asked_once(reply):
    """However many pictures it refuses: the server is there, and the run goes on."""
    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.01})
        judge.prepare("a red ball")
        before, fake.hook = fake.number, lambda document: reply
        verdicts = judge.actors().verifier.judge("a red ball", reds(30))
        assert fake.number == before + 30
    assert all(not v.judged and "the model refuses" in v.reason for v in verdicts)
    assert judge.actors().verifier.asked[-1].tokens_in == 100


def test_a_flagged_question_is_no_wrong_key():
    """OpenRouter answers 403 to what its moderation flagged."""
    with FakeServer(hook=lambda d: says(403, "Your chosen model requires moderation and your input was flagged")
                    ).running() as fake:
        answer = server_at(fake.url).ask([Question("?", reds(1)[0])])[0]
    assert "flagged" in answer.error


@pytest.mark.parametrize("said", [
    says(400, "System role not supported"), says(400, "Developer instruction is not enabled for models/gemma-3-12b-it"),
    says(500, "Jinja Exception: System role not supported"),
    says(400, "Conversation roles must alternate user/assistant/user/assistant/...")])
def test_a_model_without_a_system_turn(said):
    with FakeServer(hook=lambda d: said if d["messages"][0]["role"] == "system" else None).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.01})
        told = judge.prepare("a red ball")
        verdicts = judge.actors().verifier.judge("a red ball", reds(64)[40:42])
    assert [red_of(v) for v in verdicts] == [40, 41] and any("no system turn" in line for line in told)
    assert judge.settings()["options"]["found"]["folds"] is True
    assert [m["role"] for m in fake.documents[-1]["messages"]] == ["user"]
    assert "must be in the picture" in fake.documents[-1]["messages"][0]["content"][-1]["text"], "its words are kept"


def thinking_unless(**told):
    """A hook of a model that thinks, unless it is told not to in that way; in another way, it is a wrong request."""
    def hook(document):
        (name, value), = told.items()
        if document.get(name) == value:
            return None
        other = {"chat_template_kwargs", "reasoning_effort", "enable_thinking"} & set(document)
        if other:
            return says(400, f"Unknown parameter: '{other.pop()}'")
        return replies(None, reason="length", reasoning_content="Let me look at it")

    return hook


@pytest.mark.parametrize("ask", ["match", "rubric"])
@pytest.mark.parametrize("told", [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"},
                                  {"reasoning_effort": "minimal"}, {"enable_thinking": False}])
def test_a_model_that_thinks_is_told_not_to(told, ask):
    with FakeServer(hook=thinking_unless(**told)).running() as fake:
        judge = find_judge(fake.url, {"ask": ask, "pause": 0.01})
        said = judge.prepare("a red ball")
        assert judge.actors().verifier.judge("a red ball", reds(1))[0].judged
    assert any("told not to" in line and next(iter(told)) in line for line in said)
    assert judge.settings()["options"]["found"]["extra"] == told


def test_thoughts_in_the_place_of_an_answer_are_told_too():
    """vLLM without a parser of thoughts: a template has opened them, and they are cut."""
    with FakeServer(hook=lambda d: None if "chat_template_kwargs" in d else
                    replies("The user wants to know", reason="length")).running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.01})
        judge.prepare("a red ball")
    assert judge.chat.extra


def test_openai_says_of_thoughts_that_the_request_is_wrong():
    said = says(400, "Could not finish the message because max_tokens or model output limit was reached.")
    with FakeServer(hook=lambda document: said).running() as fake:
        assert server_at(fake.url).ask([Question("?", reds(1)[0])])[0].error == ALL_THOUGHT
    assert "max_tokens" in fake.documents[0] and fake.number == 1


@pytest.mark.parametrize("tokens, yes", [
    (["<think>", "\n\n", "</think>", "\n\n", "Yes"], 0.9), (["<think>", "hm", "</", "think", ">", " Yes"], 0.9),
    (["hm", "</think>", "Yes"], 0.9), (["Yes", "."], 0.9), (["<think>", "Yes"], None), (["<think>", "</think>"], None)])
def test_the_first_token_is_that_of_the_answer(tokens, yes):
    odds = {token: [{"token": token, "logprob": 0.0}] for token in tokens}
    for token in ("Yes", " Yes"):
        odds[token] = [{"token": "Yes", "logprob": -0.1053605}, {"token": "No", "logprob": -2.3}]
    reply = {"choices": [{"message": {"content": "".join(tokens)}, "finish_reason": "length", "logprobs": {
        "content": [{"token": token, "top_logprobs": odds[token]} for token in tokens]}}]}
    answer = from_reply(reply)
    assert answer.yes == (None if yes is None else pytest.approx(yes, abs=1e-3))


@pytest.mark.parametrize("text, seconds", [
    ("Please try again in 6.5s. Visit", 6.5), ("try again in 20ms", 0.02), ("Please try again in 7m12s.", 432),
    ("Please retry in 18.026117818s.", 18.026), ("try again in 1h2m", 3720), ("Please try again later", 0),
    ("try again in a moment", 0), ("retry after 3 s", 3)])
def test_how_long_a_server_wants_to_be_left_alone(text, seconds):
    assert seconds_told(text) == pytest.approx(seconds, abs=1e-3)
