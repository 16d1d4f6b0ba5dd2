"""Language models as judges on the real ComfyUI: behind a server, and under its memory manager."""

import json

import pytest
from fake_server import FakeServer
from tiny_rewards import write_tiny_clip
from tiny_vlm import write_tiny_qwen

from reflect_core.bench.engine import SKIP, Engine, find_comfyui
from reflect_core.bench.graphs import loop, ran
from reflect_core.cli.judges import Judges
from reflect_core.cli.parser import make_parser
from reflect_core.search import load

pytestmark = pytest.mark.skipif(find_comfyui() is None, reason=SKIP)


KEY = "sk-of-nobody"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """With a key for servers on this machine."""
    base = tmp_path_factory.mktemp("comfy")
    write_tiny_qwen(base / "models" / "LLM" / "tiny-vl", answers=True)
    write_tiny_clip(base / "models" / "reflect" / "tiny-clip")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("REFLECT_KEY_127_0_0_1", KEY)
        with Engine(find_comfyui(), base) as running:
            yield running


def judged_by(kind, changes=(), **inputs):
    """The loop with another judge, never content, in two rounds."""
    graph = loop({"controller.rounds": 2, "controller.threshold": 1.0, **dict(changes)},
                 told={"class_type": "PreviewAny", "inputs": {"source": ["judge", 1]}},
                 said={"class_type": "PreviewAny", "inputs": {"source": ["reflector", 1]}})
    common = {"ask": "checks", "reflect": "edits", "threshold": 1.0, "checks": ""}
    graph["judge"] = {"class_type": kind, "inputs": {**common, **inputs}}
    return graph


def record(engine, done):
    (run,) = json.loads(engine.picture(done.outputs["save"]["images"][0]).info["reflect_run"]).values()
    return run


def test_a_server_judges_reflects_and_is_asked_no_more_than_needed(engine):
    words = {"words": lambda document, red: "- Add a red circle." if "Add, Remove" in str(document) else None}
    with FakeServer(**words).running() as fake:
        done = engine.run(judged_by("ReflectServerJudge", address=fake.url, model="", at_once=2))
        assert done.error is None, done.error
        assert "the judge is fake-vl" in done.text("told")
        assert done.text("said") == "Add a red circle\nAdd a red circle"
        assert all(0 < c["score"] < 1 for c in record(engine, done)["candidates"])
        assert fake.most <= 2
        # A probe of 3, checks made once, 2 pictures of 2 checks twice, 2 reflections twice (they are shown).
        assert fake.number == 3 + 1 + 2 * 2 * 2 + 2 * 2
        again = engine.run(judged_by("ReflectServerJudge", address=fake.url, model="", at_once=2))
        assert again.executed == [] and fake.number == 16


def test_who_reflects_and_who_rewrites_is_on_the_record_and_no_key_is_anywhere(engine):
    """Shapes judges, one server reflects, another rewrites: the command line then resumes with all three."""
    words = {"words": lambda document, red: "- Add a red circle." if "Add, Remove" in str(document) else "a red circle"}
    with FakeServer(**words, key=KEY).running() as one, FakeServer(**words, key=KEY).running() as two:
        said = {"ask": "match", "reflect": "edits", "threshold": 1.0, "checks": "", "model": ""}
        graph = loop({"controller.rounds": 2, "reflector.judge": ["one", 0], "controller.next_run": ["refiner", 0],
                      "tree.save": True, "tree.prefix": "known"},
                     one={"class_type": "ReflectServerJudge", "inputs": {**said, "address": one.url}},
                     two={"class_type": "ReflectServerJudge", "inputs": {**said, "address": two.url}},
                     refiner={"class_type": "ReflectRefiner", "inputs": {
                         "judge": ["two", 0], "prompt": ["prompt", 0], "run_in": ["reflector", 0]}})
        done = engine.run(graph)
        assert done.error is None, done.error
    header, run = load(engine.base / "output" / "known_00001")
    assert len(run.candidates) == 4 and any(c.request.context for c in run.candidates)
    roles = Judges.recorded(header.settings, make_parser().parse_args(["resume", "x"])).by_role
    assert {role: judge.name for role, judge in roles.items()} == {
        "judge": "shapes", "reflector": "server", "refiner": "server"}
    assert [roles[role].given["url"] for role in ("reflector", "refiner")] == [one.url, two.url]
    assert all(h["Authorization"] == f"Bearer {KEY}" for h in (*one.headers, *two.headers))
    kept = [path.read_bytes() for name in ("output", "temp", "user", "log.txt")
            for path in (engine.base / name, *(engine.base / name).rglob("*")) if path.is_file()]
    assert kept and not any(KEY.encode() in data for data in kept)
    assert KEY not in json.dumps([done.outputs, done.texts, engine.get("/history")])


def test_one_judge_for_all_is_on_the_record_once(engine):
    with FakeServer().running() as fake:
        graph = judged_by("ReflectServerJudge", {"tree.save": True, "tree.prefix": "once"}, address=fake.url, model="")
        assert engine.run(graph).error is None
    assert set(load(engine.base / "output" / "once_00001")[0].settings) == {"judge", "model"}


def test_a_server_that_is_not_there(engine):
    done = engine.run(judged_by("ReflectServerJudge", address="http://127.0.0.1:9/v1", model="x", timeout=1))
    assert "Load Judge (server): the judge's server" in done.error["exception_message"]
    assert "does not answer" in done.error["exception_message"]
    done = engine.run(judged_by("ReflectServerJudge", address="http://me:pw@127.0.0.1:9/v1", model="x"))
    said = done.error["exception_message"]
    assert "REFLECT_KEY_127_0_0_1" in said and "pw" not in said


def test_a_server_that_falls_silent_keeps_what_was_drawn(engine):
    with FakeServer(fault=lambda number: "500" if 8 <= number < 100 else None).running() as fake:
        graph = judged_by("ReflectServerJudge", address=fake.url, model="", checks="Is it red?\nIs it round?")
        done = engine.run(graph)
    # Marked, not lost: the second round's pictures have no verdict, the first's best is the answer.
    assert done.error is None, done.error
    scores = [c["score"] for c in record(engine, done)["candidates"]]
    assert len(scores) >= 2 and scores[0] > 0


def test_a_model_in_a_folder_is_moved_by_the_manager(engine):
    info = engine.get("/object_info/ReflectLocalJudge")["ReflectLocalJudge"]
    assert "tiny-vl" in info["input"]["required"]["model"][1]["options"]
    first = engine.run(judged_by("ReflectLocalJudge", model="tiny-vl", checks="Is it red?\nIs it round?"))
    assert first.error is None, first.error
    assert "the judge is tiny-vl" in first.text("told")
    scores = [c["score"] for c in record(engine, first)["candidates"]]
    engine.post("/free", {"unload_models": True, "free_memory": True})
    streamed = engine.run(judged_by("ReflectLocalJudge", model="tiny-vl", checks="Is it red?\nIs it round?",
                                    offload="streamed"))
    assert streamed.error is None, streamed.error
    assert [c["score"] for c in record(engine, streamed)["candidates"]] == scores
    assert ran(streamed.executed, "verifier") == 2


def test_a_reward_an_ensemble_and_an_audit(engine):
    reward = {"class_type": "ReflectRewardJudge", "inputs": {"kind": "clip-score", "model": "tiny-clip",
                                                             "threshold": -1.0}}
    graph = loop({"controller.rounds": 2, "controller.threshold": 1.0, "verifier.judge": ["audited", 0]}, reward=reward,
                 both={"class_type": "ReflectEnsemble", "inputs": {
                     "judge_1": ["judge", 0], "judge_2": ["reward", 0], "weight_1": 3.0, "weight_2": 1.0,
                     "threshold": -1.0}},
                 audited={"class_type": "ReflectAudit", "inputs": {"judge_in": ["both", 0], "audit": ["reward", 0]}})
    done = engine.run(graph)
    assert done.error is None, done.error
    assert all(0 < c["score"] < 1 for c in record(engine, done)["candidates"])


def test_what_was_asked_for_a_run_that_failed_is_on_no_other_record(engine):
    """Of an ensemble the second judge has no answer to what a prompt is taken apart into; the first has been asked."""
    def deaf(document, red):
        return "no idea" if "questions that somebody" in str(document) else None

    with FakeServer().running() as one, FakeServer(words=deaf, schema=False).running() as two:
        said = {"ask": "checks", "reflect": "none", "threshold": 1.0, "checks": "", "model": ""}
        graph = loop({"controller.rounds": 1, "verifier.judge": ["both", 0], "reflector.judge": ["one", 0],
                      "tree.save": True, "tree.prefix": "told"},
                     one={"class_type": "ReflectServerJudge", "inputs": {**said, "address": one.url}},
                     two={"class_type": "ReflectServerJudge", "inputs": {**said, "address": two.url}},
                     both={"class_type": "ReflectEnsemble", "inputs": {
                         "judge_1": ["one", 0], "judge_2": ["two", 0], "weight_1": 1.0, "weight_2": 1.0,
                         "threshold": -1.0}})
        failed = engine.run(graph)
        assert failed.error is not None
        asked = one.number
        graph["verifier"]["inputs"]["judge"] = ["one", 0]
        del graph["both"], graph["two"]
        done = engine.run(graph)
        assert done.error is None, done.error
    _, run = load(engine.base / "output" / "told_00001")
    told = [one for entry in run.entries for one in getattr(entry, "asked", ())]
    assert asked and len(told) == one.number - asked


def test_an_unknown_folder(engine):
    done = engine.run(judged_by("ReflectLocalJudge", model="nothing"))
    assert done.error is not None
