"""A server that limits how often it is asked, one that still loads its model, and one that refuses everything."""

from __future__ import annotations

import threading
import time
import zlib
from email.utils import formatdate

import pytest
from fake_server import FakeServer, red_of, reds, replies, says, server_at

from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.verifiers.match import MatchVerifier
from reflect_core.vlm import patience
from reflect_core.vlm.chat import Question
from reflect_core.vlm.failures import failed
from reflect_core.vlm.patience import PATIENCE, Patience

LOADING = says(503, "Loading model", code=503, type="unavailable_error")


class Limited:
    """A hook: so many questions in each span of seconds, as services count them."""

    def __init__(self, most, span, *headers):
        self.most, self.span, self.headers = most, span, headers
        self.lock, self.taken, self.refused = threading.Lock(), [], 0

    def __call__(self, document):
        with self.lock:
            now = time.monotonic()
            self.taken = [then for then in self.taken if now - then < self.span]
            if len(self.taken) < self.most:
                self.taken.append(now)
                return None
            self.refused += 1
            left = self.span - (now - self.taken[0])
            return *says(429, f"Rate limit reached. Please try again in {left * 1000:.0f}ms."), dict(self.headers)


def test_a_limit_is_kept_to_and_every_picture_is_judged(monkeypatch):
    """With one attempt a question: to be told to come later is no failed one. One pause is everybody's. It lasts longer
    than a server may be busy without an answer: each answer begins that anew."""
    monkeypatch.setattr(patience, "BUSY", 0.7)
    limit = Limited(10, 0.4)
    with FakeServer(hook=limit).running() as fake:
        verdicts = MatchVerifier(server_at(fake.url, attempts=1, pause=0.05)).judge("a red ball", reds(40))
    assert [red_of(v) for v in verdicts] == list(range(40))
    # Three pauses, and at most the eight that are under way are refused at each; some threads come twice.
    assert limit.refused <= 3 * 8 + 12, limit.refused


def test_a_limit_that_does_not_end_ends_the_run_and_says_what_it_is(monkeypatch):
    monkeypatch.setattr(patience, "BUSY", 0.5)
    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.02})
        judge.prepare("a red ball")
        fake.hook = lambda document: says(429, "Rate limit reached")
        began = time.monotonic()
        with pytest.raises(UserError, match="takes no more questions for now .*Rate limit.* concurrency=1") as error:
            judge.actors().verifier.judge("a red ball", reds(30))
    assert 0.4 < time.monotonic() - began < 5 and "start it" not in str(error.value)


def test_a_limit_of_an_hour_is_not_waited_for():
    with FakeServer(hook=lambda d: (*says(429, "Daily limit"), {"Retry-After": "3600"})).running() as fake:
        began = time.monotonic()
        with pytest.raises(UserError, match="Daily limit"):
            server_at(fake.url).ask([Question("?")])
    assert time.monotonic() - began < 2 and fake.number == 1


@pytest.mark.parametrize("busy", [LOADING, says(529, "Overloaded"), says(503, "The model is overloaded."),
                                  (503, {"error": "nobody here"}, {"Retry-After": "0.01"})])
def test_a_server_that_is_loading_is_waited_for(busy):
    """llama.cpp does for a minute; four attempts were over in six seconds."""
    ends = time.monotonic() + 0.5
    with FakeServer(hook=lambda d: busy if time.monotonic() < ends else None).running() as fake:
        answer = server_at(fake.url, attempts=2).ask([Question("Is it? yes or no")])[0]
    assert not answer.error and answer.attempts == fake.number > 2


def test_another_503_is_tried_as_often_as_told():
    with FakeServer(hook=lambda d: says(503, "backend is down")).running() as fake:
        assert server_at(fake.url, attempts=2).ask([Question("?")])[0].attempts == 2


def test_a_pause_can_be_cancelled():
    class Cancelled(Exception):
        pass

    began = time.monotonic()

    def cancel():
        if time.monotonic() - began > 0.3:
            raise Cancelled

    with FakeServer(hook=lambda d: (*says(429, "slow"), {"Retry-After": "30"})).running() as fake:
        chat = server_at(fake.url)
        chat.on_wait = cancel
        with pytest.raises(Cancelled):
            chat.ask([Question("?")] * 20)
        time.sleep(0.2)
        assert fake.number <= 8 and time.monotonic() - began < 2


@pytest.mark.parametrize("headers, seconds", [
    ({"Retry-After": "7"}, 7), ({"Retry-After": "nonsense"}, 0), ({}, 0), ({"Retry-After": "-5"}, 0),
    ({"Date": formatdate(1000, usegmt=True), "Retry-After": formatdate(1042, usegmt=True)}, 42),
    ({"Retry-After": formatdate(1000, usegmt=True)}, 0)])
def test_retry_after(headers, seconds):
    class Response:
        pass

    Response.headers = headers
    assert failed(429, b'{"error": "slow down"}', Response).pause == seconds


def test_the_clock_of_patience(monkeypatch):
    """Two minutes, counted from the last answer, whoever got it; not from a limit of yesterday."""
    now = [0.0]
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])
    one = Patience(0.5)
    for _ in range(8):
        began = now[0]
        assert one.busy(began, 0)
        until = one._until
        assert one.busy(began, 0) and one._until == until, "one that was under way says nothing new"
        now[0] = one._until
    assert now[0] == 0.5 + 1 + 2 + 4 + 8 + 16 + 30 + 30
    one.spoke()
    assert one.busy(now[0], 20) and one._until == now[0] + 20
    now[0] += 119
    assert one.busy(now[0], 0)
    now[0] += 2
    assert not one.busy(now[0], 0)
    for _ in range(2):
        now[0] += 86400
        assert one.busy(now[0], 0)


@pytest.mark.parametrize("said, message", [
    (says(400, "This model's maximum context length is 4096 tokens, you asked for 5120"), "into the context .*side"),
    (says(422, "something that nobody understands"), "one question after the other .*nobody understands"),
    (replies(None, reason="length"), "one question after the other .*thought until .*thinking=4000")])
def test_what_is_refused_of_every_picture_ends_the_run(said, message):
    """All were marked as not judged, and the run ended well."""
    def hook(document):
        return said if "image_url" in str(document) else None

    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"concurrency": 1, "pause": 0.01})
        judge.connect()
        fake.hook = hook  # pictures of the run are larger, or other, than those of the first questions
        judge.prepare("a red ball")
        before = fake.number
        with pytest.raises(UserError, match=message):
            judge.actors().verifier.judge("a red ball", reds(40))
        assert fake.number == before + PATIENCE


def test_refusals_between_answers_end_nothing():
    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "concurrency": 1, "pause": 0.01})
        judge.prepare("a red ball")
        verifier = judge.actors().verifier
        assert verifier.judge("a red ball", reds(1))[0].judged
        fake.hook = lambda document: says(422, "not this one")
        assert not any(v.judged for v in verifier.judge("a red ball", reds(PATIENCE + 2)))


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_a_reply_that_is_packed_all_the_same(packing):
    """A proxy may do it unasked. What would swell is not unpacked."""
    def pack(data):
        packer = zlib.compressobj(wbits=31 if packing == "gzip" else 15)
        return packer.compress(data) + packer.flush()

    class Packed(FakeServer):
        def _handler(fake):
            class Handler(super()._handler()):
                def _raw(self, body, kind="application/json", status=200, headers=()):
                    super()._raw(pack(body), kind, status, {**dict(headers), "Content-Encoding": packing})

            return Handler

    with Packed().running() as fake:
        assert not server_at(fake.url).ask([Question("Is it? yes or no")])[0].error
        fake.words = lambda document, red: "a" * 10_000_000
        assert "longer than 1 MiB" in server_at(fake.url, attempts=1).ask([Question("?")])[0].error
