"""Replay: what comes out again, and what is said where it does not."""

import json
import shutil

import pytest
from fakes import FLOW, REQUEST, FakeGenerator, actors, finished_record, lines_of

from reflect_core.search import ActorError, load, replay, resume, start
from reflect_core.types import UserError


@pytest.fixture
def folder(tmp_path):
    return finished_record(tmp_path / "run")


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


def test_nothing_to_compare_is_no_success(folder):
    (folder / "run.jsonl").write_bytes(b"".join(lines_of(folder)[:2]))
    report = replay(folder, FakeGenerator())
    assert report.pictures == 0 and not report.same
    assert report.summary() == "there is no picture on the record to compare"


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


# Another machine.

def under_other_versions(folder, lines):
    """Cut the record, and say that it was begun with another Pillow and without numpy."""
    data = json.loads(lines[0])
    data["versions"] = {**data["versions"], "pillow": "1.2.3"}
    del data["versions"]["numpy"]
    (folder / "run.jsonl").write_bytes(json.dumps(data).encode() + b"\n" + b"".join(lines[1:]))


def test_a_resume_under_other_versions_is_on_record(folder):
    lines = lines_of(folder)
    under_other_versions(folder, lines[:8])
    for _ in range(2):
        resume(folder, *actors()).close()
    assert [json.loads(line)["line"] for line in lines_of(folder)[8:]] == ["resumed"]
    with resume(folder, *actors(), settings={"model": {"device": "cuda"}}) as stepper:
        run = stepper.run()
    assert len(run.candidates) == 10 and [first for first, _ in run.resumed] == [4, 4]
    run = load(folder)[1]
    assert run.resumed[0][1].versions["pillow"] != "1.2.3" and run.resumed[0][1].settings == {}
    assert run.resumed[1][1].settings == {"model": {"device": "cuda"}}
    report = replay(folder, FakeGenerator(batch_matters=True))
    here = run.resumed[0][1].versions
    assert report.resumed == (f"from candidate 4 on pillow 1.2.3 -> {here['pillow']}",
                              f"from candidate 4 on numpy none -> {here['numpy']}",
                              "from candidate 4 on model none -> {'device': 'cuda'}")
    assert report.same and f"pillow 1.2.3 -> {here['pillow']}" in report.summary()


def test_a_resume_notes_nothing_where_nothing_changed_or_nothing_follows(folder):
    lines = lines_of(folder)
    resume(folder, *actors()).close()
    assert lines_of(folder) == lines
    under_other_versions(folder, lines)
    resume(folder, *actors()).close()
    assert len(lines_of(folder)) == len(lines)
    under_other_versions(folder, lines[:8])
    with pytest.raises(UserError, match="secret"):
        resume(folder, *actors(), settings={"token": "x"})
    assert len(lines_of(folder)) == 8
