"""The judge behind a server: in order, at once, and through everything that a network does."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest
from fake_server import FAULTS, FakeServer, red_of, reds, server_at
from PIL import Image

from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.verifiers.match import MatchVerifier
from reflect_core.vlm.chat import Question
from reflect_core.vlm.patience import PATIENCE
from reflect_core.vlm.probe import probe
from reflect_core.vlm.wire import from_reply


def test_many_at_once_come_back_in_order():
    with FakeServer(latency=0.2).running() as fake:
        verifier = MatchVerifier(server_at(fake.url, picture_format="jpeg"))
        pictures = reds(32, side=1024)
        began = time.monotonic()
        verdicts = verifier.judge("a red ball", pictures)
        seconds = time.monotonic() - began
    assert [red_of(v) for v in verdicts] == list(range(32))
    assert fake.most == 8
    # 32 answers of 0.2 s, 8 at a time, take 0.8 s at least. Alone on two cores it takes 1.1 to 1.2 s.
    assert seconds < 2.4, seconds
    assert verifier.spent.judge_calls == 32 and verifier.spent.tokens == 32 * 101


def test_no_more_at_once_than_asked_for():
    with FakeServer(latency=0.02).running() as fake:
        MatchVerifier(server_at(fake.url, concurrency=3)).judge("a red ball", reds(20))
    assert fake.most == 3


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_got_over(fault):
    with FakeServer(fault=lambda number: fault if number < 3 else None).running() as fake:
        verdicts = MatchVerifier(server_at(fake.url, timeout=0.6)).judge("a red ball", reds(3))
    assert [red_of(v) for v in verdicts] == [0, 1, 2]
    assert fake.met == [fault] * 3 and fake.number == 6


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "429"])
def test_what_cannot_be_got_over_is_marked(fault):
    """One picture is never answered: the others are judged, and it is not counted as bad but as not judged."""
    with FakeServer().running() as fake:
        def failing(number):
            return fault if fake.documents[number] in lost else None

        lost = []
        fake.fault = failing
        chat = server_at(fake.url, timeout=0.5, attempts=2, concurrency=1)
        verifier = MatchVerifier(chat)
        pictures = reds(3)
        first = verifier.judge("a red ball", pictures[1:2])
        lost.append(fake.documents[0])
        verdicts = verifier.judge("a red ball", pictures)
    assert first[0].judged
    assert [v.judged for v in verdicts] == [True, False, True]
    assert [red_of(v) for v in verdicts] == [0, 0, 2] and not verdicts[1].accepted
    assert verdicts[1].reason.startswith("not judged: ")
    said = [e for e in verifier.asked if e.error]
    assert len(said) == 1 and said[0].attempts == 2


def test_a_dead_server_ends_the_run_with_a_cure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="does not answer .*try to start it"):
        MatchVerifier(server_at(url, attempts=1)).judge("a red ball", reds(PATIENCE))
    with pytest.raises(UserError, match="does not answer"):
        probe(server_at(url, attempts=1))


def test_a_reply_in_drops_is_no_answer():
    """One byte every now and then would hold up a read timeout for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def drip():
        while not stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" " * 200)
                    except OSError:
                        break

    threading.Thread(target=drip, daemon=True).start()
    try:
        chat = server_at(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", attempts=1, timeout=0.5)
        began = time.monotonic()
        answer = chat.ask([Question("?")])[0]
        assert time.monotonic() - began < 5 and "no answer within 0.5 s" in answer.error
    finally:
        stop.set()
        listener.close()


def test_waiting_can_be_cancelled():
    class Cancelled(Exception):
        pass

    def cancel():
        raise Cancelled

    with FakeServer(latency=5).running() as fake:
        chat = server_at(fake.url)
        chat.on_wait = cancel
        began = time.monotonic()
        with pytest.raises(Cancelled):
            chat.ask([Question("?")] * 20)
        assert time.monotonic() - began < 2
        assert fake.number <= 8


def test_a_search_of_64_pictures_with_a_fifth_of_faults(tmp_path):
    """Every picture is judged or marked, none lost, none mixed up; the record says so."""
    from fakes import FakeGenerator, quality_of

    from reflect_core.search import BestOfN, load, start
    from reflect_core.types import Request

    dice = random.Random(7)
    faults = [dice.choice(FAULTS) if dice.random() < 0.2 else None for _ in range(2000)]
    with FakeServer(fault=lambda number: faults[number], hang=3).running() as fake:
        # Two attempts: often enough both fail, so that there is something to mark.
        chat = server_at(fake.url, timeout=0.5, attempts=2)
        with start(Request("a red ball", 5, 8, 8, 2, 1.0), BestOfN(64, early_stop=False), RedGenerator(FakeGenerator()),
                   MatchVerifier(chat), chunk=16, folder=tmp_path / "run") as stepper:
            stepper.run()
    _, run = load(tmp_path / "run")
    assert len(run.candidates) == 64 and not run.unjudged
    assert len(fake.met) > 6 and set(fake.met) == set(FAULTS)
    missed = run.not_judged
    assert 0 < len(missed) < 16
    for candidate in run.candidates:
        red = run.picture(candidate.id).getpixel((0, 0))[0]
        if candidate.judged:
            assert candidate.score == pytest.approx(red / 255, abs=1e-4)
        else:
            assert candidate.verdict.reason.startswith("not judged: ")
    assert run.best().judged
    best = max(quality_of(run.picture(c.id)) for c in run.candidates if c.judged)
    assert quality_of(run.picture(run.best().id)) == best
    asked = [e for entry in run.entries for e in getattr(entry, "asked", ())]
    assert len(asked) == 64 == run.ledger.total.judge_calls
    assert [e.pictures[0] for e in asked] == [c.sha256 for c in run.candidates]


class RedGenerator:
    """The pictures of another, all of one colour."""

    def __init__(self, inner):
        self.inner, self.max_context, self.evaluations = inner, inner.max_context, inner.evaluations

    def draw(self, requests, callback=None):
        from dataclasses import replace

        return [replace(one, picture=Image.new("RGB", one.picture.size, one.picture.getpixel((0, 0))))
                for one in self.inner.draw(requests, callback)]


@pytest.mark.parametrize("status, said, message", [
    (400, "This model's maximum context length is 2048 tokens", "do not fit into the context"),
    (400, "this model does not support image input", "takes no pictures .*-VL"),
    (402, "insufficient credits", "wants to be paid"),
    (403, "forbidden", "wants another key"),
    (301, "moved", None),
    (418, "I am a teapot", None),
])
def test_refusals(status, said, message):
    with FakeServer().running() as fake:
        fake.status = (status, said)
        chat = server_at(fake.url)
        if message is None:
            answer = chat.ask([Question("?", reds(1)[0])])[0]
            assert f"HTTP {status}" in answer.error and answer.attempts == 1
        else:
            with pytest.raises(UserError, match=message):
                chat.ask([Question("?", reds(1)[0])])


def test_a_picture_that_is_refused_does_not_end_the_run():
    with FakeServer().running() as fake:
        judge = find_judge(fake.url, {"ask": "match", "pause": 0.01})
        judge.prepare("a red ball")
        fake.status = (400, "the image may violate our policy")
        verdict = judge.actors().verifier.judge("a red ball", reds(1))[0]
    assert not verdict.judged and "violate our policy" in verdict.reason


@pytest.mark.parametrize("content, said", [
    ([{"type": "text", "text": None}], "it is empty"), ([{"type": "text", "text": "yes"}], None), (7, "it has no text"),
    ("<think>hm</think> yes", None)])
def test_replies_of_odd_shapes(content, said):
    reply = {"choices": [{"message": {"content": content}}]}
    if said is None:
        assert from_reply(reply).text == "yes"
    else:
        with pytest.raises(ValueError, match=said):
            from_reply(reply)


def test_what_was_answered_before_a_server_died_is_paid_for():
    with FakeServer(fault=lambda number: "500" if number >= 5 else None).running() as fake:
        verifier = MatchVerifier(server_at(fake.url, attempts=1, concurrency=1))
        with pytest.raises(UserError, match="does not answer"):
            verifier.judge("a red ball", reds(30))
        assert [bool(one.error) for one in verifier.asked] == [False] * 5 + [True] * (PATIENCE - 1)
        fake.fault = lambda number: None
        verifier.judge("a red ball", reds(1))
        assert verifier.spent.judge_calls == 5 + PATIENCE - 1 + 1
