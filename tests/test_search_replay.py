"""Replay: what comes out again, and what is said where it does not."""

import json
import shutil

import pytest
from fakes import SIZE, FakeGenerator, FakeReflector, FakeVerifier

from reflect_core.search import ActorError, ReflectionFlow, replay, resume, start
from reflect_core.types import Request, UserError

REQUEST = Request("two red circles", seed=3, width=SIZE, height=SIZE, steps=4)
FLOW = ReflectionFlow(4, 2, 3)


def actors():
    return FakeGenerator(batch_matters=True), FakeVerifier(2), FakeReflector()


@pytest.fixture
def folder(tmp_path):
    """A finished record."""
    with start(REQUEST, FLOW, *actors(), chunk=3, folder=tmp_path / "run", model="fake",
               fingerprint="abc") as stepper:
        stepper.run()
    return tmp_path / "run"


def lines_of(folder):
    return (folder / "run.jsonl").read_bytes().splitlines(keepends=True)


def test_replay_is_the_same_bit_for_bit(folder):
    seen = []
    report = replay(folder, FakeGenerator(batch_matters=True), "abc",
                    lambda done, of: seen.append((done, of)))
    assert report.same and report.pictures == 10 and report.same_model and seen[-1] == (10, 10)
    assert "bit for bit" in report.summary()


def test_replay_of_a_resumed_run_is_the_same(tmp_path):
    stepper = start(REQUEST, FLOW, *actors(), chunk=3, folder=tmp_path / "run")
    stepper.step(), stepper.step(), stepper.close()
    with resume(tmp_path / "run", *actors()) as stepper:
        stepper.run()
    assert replay(tmp_path / "run", FakeGenerator(batch_matters=True)).same


def test_replay_with_another_generator_says_what_differs(folder):
    class Off(FakeGenerator):
        def picture(self, request, salt=b""):
            image = super().picture(request, salt)
            if request.context:
                r, g, b = image.getpixel((1, 1))
                image.putpixel((1, 1), (r, g - 3 if g > 2 else g + 3, b))
            return image
    report = replay(folder, Off(batch_matters=True), "xyz")
    assert not report.same and not report.same_model
    assert [d.candidate for d in report.differences] == [4, 5, 6, 7, 8, 9]
    assert {d.largest for d in report.differences} == {3}
    assert "6 of 10 pictures differ" in report.summary() and "weights" in report.summary()


def test_replay_names_changed_versions(folder, monkeypatch):
    lines = lines_of(folder)
    data = json.loads(lines[0])
    data["versions"]["pillow"] = "1.2.3"
    lines[0] = json.dumps(data).encode() + b"\n"
    (folder / "run.jsonl").write_bytes(b"".join(lines))
    report = replay(folder, FakeGenerator())
    assert not report.same and any(v.startswith("pillow 1.2.3 -> ") for v in report.changed_versions)
    assert "pillow 1.2.3" in report.summary()


def test_replay_asks_no_judge_and_writes_nothing(folder):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    replay(folder, FakeGenerator(batch_matters=True))
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_replay_needs_a_generator_that_takes_the_context(folder):
    with pytest.raises(UserError, match="the generator takes 0"):
        replay(folder, FakeGenerator(max_context=0))


def test_replay_of_a_generator_that_loses_pictures(folder):
    class Short(FakeGenerator):
        def draw(self, requests, callback=None):
            return super().draw(requests)[1:]
    with pytest.raises(ActorError):
        replay(folder, Short())


def test_a_record_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert replay(tmp_path / "elsewhere", FakeGenerator(batch_matters=True)).same
