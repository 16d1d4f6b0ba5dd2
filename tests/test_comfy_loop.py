"""The loop on the real ComfyUI, over HTTP: what runs, what is reused, what is said when something is wrong."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from reflect_core import search
from reflect_core.bench.engine import SKIP, Engine, find_comfyui
from reflect_core.bench.graphs import PROMPT, SMALL, all_in_one, loop, ran
from reflect_core.judges import find_judge
from reflect_core.presets.choice import ModelChoice
from reflect_core.search import ReflectionFlow, load, replay
from reflect_core.types import Request

pytestmark = pytest.mark.skipif(find_comfyui() is None, reason=SKIP)

OTHERS = Path(__file__).with_name("other_nodes.py").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(find_comfyui(), tmp_path_factory.mktemp("comfy"), extra={"others.py": OTHERS}) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_kept(engine):
    """No test reuses what another one has drawn."""
    engine.post("/free", {"free_memory": True})
    # The worker is woken to do it, but says nothing when it has.
    time.sleep(0.5)


@pytest.fixture(scope="module")
def by_library():
    """Pixels of the run that the library makes with the loop's settings, three rounds of two."""
    choice, judge = ModelChoice("shapes-flux", device="cpu", dtype="float32"), find_judge("shapes").actors()
    generator = choice.load()
    run = search.start(Request(PROMPT, 0, **{k: SMALL[k] for k in ("width", "height", "steps", "guidance")}),
                       ReflectionFlow(2, 2, 2, early_stop=False), generator, judge.verifier, judge.reflector,
                       chunk=2).run()
    assert not run.accepted and len(run.candidates) == 6, "the tests need three rounds"
    return [np.asarray(run.picture(c.id)) for c in run.candidates], run


def shown(engine, outputs):
    return [np.asarray(engine.picture(one).convert("RGB")) for one in outputs["images"]]


def test_the_pack_loads_without_a_warning_of_ours(engine):
    log = engine.log.read_text()
    assert "IMPORT FAILED" not in "\n".join(line for line in log.splitlines() if "reflect" in line.lower())
    assert not [line for line in log.splitlines() if "custom_nodes/reflect" in line and "seconds" not in line]
    info = engine.get("/object_info")
    ours = {name: node for name, node in info.items() if name.startswith("Reflect")}
    assert len(ours) == 17
    for name, node in ours.items():
        assert node["category"].split("/")[0] == "reflect" and node["description"], name
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert all(spec[1].get("tooltip") for spec in inputs.values()), name
        assert all(node["output_tooltips"]), name


def test_a_loop_draws_what_the_library_draws_to_the_bit(engine, by_library):
    pictures, run = by_library
    done = engine.run(loop())
    assert done.error is None
    assert [p.tobytes() for p in shown(engine, done.outputs["all"])] == [p.tobytes() for p in pictures]
    (answer,) = shown(engine, done.outputs["save"])
    assert answer.tobytes() == pictures[run.best().id].tobytes()
    assert [ran(done.executed, n) for n in ("sample", "verifier", "controller")] == [3, 3, 3]
    assert ran(done.executed, "reflector") == 2, "nobody reflects on the last round"
    assert "all 3 rounds are drawn" in done.text("report")
    assert any(text.startswith("round 2/3, score 0.") for text in done.texts)


def test_saved_pictures_carry_prompt_workflow_and_the_run_in_short(engine):
    done = engine.run(loop({"controller.rounds": 2}))
    kept = engine.picture(done.outputs["save"]["images"][0]).info
    assert json.loads(kept["prompt"])["sample"]["class_type"] == "ReflectSample" and "workflow" in kept
    short = json.loads(kept["reflect_run"])["controller"]
    assert short["prompt"] == PROMPT and len(short["candidates"]) == 4 and short["model"] == "shapes-flux"


def test_only_what_changed_runs_again(engine):
    first = engine.run(loop())
    assert engine.run(loop()).executed == []
    more = engine.run(loop({"controller.rounds": 4}))
    assert ran(more.executed, "sample") == 1 and ran(more.executed, "reflector") == 1
    less = engine.run(loop({"controller.rounds": 2}))
    assert ran(less.executed, "sample") == 0
    content = engine.run(loop({"controller.threshold": 0.1}))
    assert ran(content.executed, "sample") == 0 and "the threshold is 0.1" in content.text("report")
    other = engine.run(loop({"sample.seed": 5}))
    assert ran(other.executed, "sample") == 3
    assert shown(engine, other.outputs["all"])[0].tobytes() != shown(engine, first.outputs["all"])[0].tobytes()


def test_the_loop_ends_with_the_first_accepted_round(engine):
    done = engine.run(loop({"prompt.value": "a red circle", "sample.steps": 16, "controller.rounds": 8}))
    assert "the judge accepted candidate" in done.text("report")
    rounds = ran(done.executed, "sample")
    assert rounds < 8 and ran(done.executed, "reflector") == rounds - 1


def test_a_preview_in_the_body_shows_every_round(engine, by_library):
    done = engine.run(loop(peek={"class_type": "PreviewImage", "inputs": {"images": ["sample", 0]}}))
    of_rounds = [shown(engine, done.outputs[id]) for id in ("peek", "controller~1.peek", "controller~2.peek")]
    assert [p.tobytes() for two in of_rounds for p in two] == [p.tobytes() for p in by_library[0]]


def test_a_users_own_node_in_the_body_changes_what_is_judged_and_corrected(engine):
    mine = {"class_type": "OtherInvert", "inputs": {"image": ["sample", 0]}}
    done = engine.run(loop({"verifier.image": ["mine", 0]}, mine=mine))
    assert done.error is None and ran(done.executed, "mine") == 3
    seen = shown(engine, done.outputs["all"])
    assert np.mean(seen[0]) < 60, "the run has the inverted pictures"


def test_words_of_a_person_take_the_judges_place(engine):
    plain = engine.run(loop())
    mine = engine.run(loop({"reflector.words": "add a green star\nadd a red circle", "reflector.say": "line by line"},
                           said={"class_type": "PreviewAny", "inputs": {"source": ["reflector", 1]}}))
    assert mine.outputs["said"]["text"] == ["add a green star\nadd a green star"]
    assert mine.outputs["controller~1.said"]["text"] == ["add a red circle\nadd a red circle"]
    assert ran(mine.executed, "sample") == 2, "the first round is the same"
    assert [p.tobytes() for p in shown(engine, mine.outputs["all"])][:2] == \
        [p.tobytes() for p in shown(engine, plain.outputs["all"])][:2]


def test_a_larger_first_round_and_refined_prompts(engine):
    refiner = {"class_type": "ReflectRefiner",
               "inputs": {"judge": ["judge", 0], "prompt": ["prompt", 0], "run_in": ["reflector", 0]}}
    done = engine.run(loop({"sample.first_round": 5, "controller.next_run": ["refiner", 0],
                            "controller.rounds": 2}, refiner=refiner))
    assert done.error is None and len(done.outputs["all"]["images"]) == 5 + 2


def test_without_a_reflector_every_round_is_fresh(engine):
    done = engine.run(loop({"controller.next_run": None}, reflector=None))
    assert done.error is None and len(done.outputs["all"]["images"]) == 6


def test_cancel_in_the_second_round_keeps_the_first(engine):
    graph = loop({"sample.steps": 60, "judge.kind": "none"})

    def in_round_two(message):
        data = message.get("data", {})
        return message["type"] == "progress_state" and any(
            id == "controller~1.sample" and 0 < state["value"] < state["max"] for id, state in data["nodes"].items())
    stopped = engine.run(graph, interrupt=in_round_two)
    assert stopped.interrupted and stopped.error is None and not stopped.outputs.get("save")
    on = engine.run(graph)
    assert on.error is None and ran(on.executed, "sample") == 2, "round 1 was there already"


@pytest.mark.parametrize("changes, nodes, said", [
    ({"verifier.image": ["fewer", 0]},
     {"fewer": {"class_type": "OtherFewer", "inputs": {"image": ["sample", 0], "round": ["start", 2]}}},
     "round 2, Verifier: got 1 pictures for the 2"),
    ({"sample.run_so_far": None}, {}, "the run does not come from Loop Start"),
    ({"controller.next_run": ["start", 1]}, {}, "'next run' does not come from this round"),
    ({"controller.run_in": ["start", 1]}, {}, "Loop Controller: there is no run yet"),
    ({"tree.run_in": ["start", 1]}, {}, "Show Run: there is no run yet"),
    ({"controller.next_run": ["refiner", 0]},
     {"refiner": {"class_type": "ReflectRefiner", "inputs": {"judge": ["judge", 0], "prompt": ["prompt", 0],
                                                             "run_in": ["start", 1]}}},
     "Prompt Refiner: there is no run yet"),
    ({"verifier.run_in": ["nan", 0]}, {"nan": {"class_type": "OtherNan", "inputs": {"run_in": ["sample", 1]}}}, "nan"),
    ({"model.text_join": "shout"}, {}, "text join is 'shout'"),
    ({"controller.run_in": ["twice", 0]},
     {"twice": {"class_type": "OtherTwice", "inputs": {"run_in": ["verifier", 0]}}},
     "the loop carries one run; got a list of 2"),
    ({"prompt.value": ""}, {}, "the prompt is empty"),
    ({"prompt.value": "two purple dogs"}, {}, "dogs"),
    ({"model.model": "flux-corrector"}, {}, "black-forest-labs/FLUX.1-dev"),
    ({"model.model": "../../etc"}, {}, "there is no model '../../etc'"),
    ({"model.lora": "none.safetensors"}, {}, "there is no LoRA"),
    ({"judge.kind": "me"}, {}, "there is no judge 'me'"),
    ({"verifier.run_in": None}, {}, "neither a run nor an image"),
    ({"reflector.say": "shout"}, {}, "say is 'shout'"),
    ({"sample.width": 70}, {}, "expected a multiple of"),
    ({"tree.save": True, "tree.prefix": "../../outside"}, {}, "within the output folder"),
])
def test_what_is_wrong_is_said_once_and_the_queue_goes_on(engine, changes, nodes, said):
    done = engine.run(loop(changes, **nodes))
    assert done.error is not None and said in done.error["exception_message"], done.error
    assert engine.run(loop({"controller.rounds": 1})).error is None


@pytest.mark.parametrize("changes, said", [({"controller.budget": 0}, "smaller than min of 1"),
                                           ({"controller.threshold": 1.5}, "bigger than max of 1.0"),
                                           ({"controller.flow": ["prompt", 0]}, "Return type mismatch"),
                                           ({"controller.flow": None}, "Required input is missing")])
def test_what_the_core_refuses_never_starts(engine, changes, said):
    answer = engine.post("/prompt", {"prompt": loop(changes)})
    assert said in json.dumps(answer["node_errors"])


@pytest.mark.parametrize("option, said", [(["--cache-lru", "3"], None), (["--cache-none"], "with --cache-none")])
def test_other_caches(tmp_path, option, said):
    with Engine(find_comfyui(), tmp_path, *option) as other:
        done = other.run(loop())
        if said is None:
            assert done.error is None and len(done.outputs["all"]["images"]) == 6
        else:
            assert done.error is None or said in done.error["exception_message"]
            assert other.run(all_in_one(budget=2)).error is None


def test_rounds_that_are_wired_in_have_a_limit_too(engine):
    done = engine.run(loop({"controller.rounds": ["many", 0]},
                           many={"class_type": "PrimitiveInt", "inputs": {"value": 500}}))
    assert "got 500 rounds; expected 1 to 32" in done.error["exception_message"]


def test_a_start_without_an_end_draws_one_round(engine):
    graph = {name: node for name, node in loop().items() if name in ("model", "judge", "prompt", "start", "sample")}
    graph["peek"] = {"class_type": "PreviewImage", "inputs": {"images": ["sample", 0]}}
    done = engine.run(graph)
    assert done.error is None and len(done.outputs["peek"]["images"]) == 2


def test_a_preview_that_the_core_leaves_out_is_left_out_of_later_rounds_too(engine):
    half = {"class_type": "ImageBatch", "inputs": {"image1": ["sample", 0]}}
    done = engine.run(loop(half=half, peek={"class_type": "PreviewImage", "inputs": {"images": ["half", 0]}}))
    assert done.error is None and ran(done.executed, "sample") == 3 and ran(done.executed, "half") == 0


@pytest.mark.parametrize("stage", ["judging", "reflecting"])
def test_cancel_while_somebody_judges_or_reflects_keeps_what_was_drawn(engine, stage):
    """A node that asks for the interruption, as the button does, right before the next one of ours starts."""
    after, change = {"judging": ("sample", "verifier.run_in"), "reflecting": ("verifier", "reflector.run_in")}[stage]
    graph = loop({change: ["cancel", 0], "controller.rounds": 2},
                 cancel={"class_type": "OtherCancel", "inputs": {"run_in": [after, 1 if after == "sample" else 0]}})
    stopped = engine.run(graph)
    assert stopped.interrupted and stopped.error is None
    on = engine.run(loop({"controller.rounds": 2}))
    assert on.error is None and ran(on.executed, "sample") == 1, "the first round was there already"


def test_an_error_of_somebody_elses_node_keeps_the_rounds_before(engine):
    breaks = {"class_type": "OtherBreaks", "inputs": {"run_in": ["sample", 1], "round": ["start", 2]}}
    done = engine.run(loop({"verifier.run_in": ["breaks", 0]}, breaks=breaks))
    assert "somebody else's node" in done.error["exception_message"]
    again = engine.run(loop({"verifier.run_in": ["breaks", 0]}, breaks=breaks))
    assert ran(again.executed, "sample") <= 1


def test_a_loop_in_a_loop(engine):
    """The outer loop hands its run to an inner one that draws two rounds, and is drawn twice itself."""
    graph = loop({"start.run_in": ["outer start", 1], "controller.rounds": 2})
    graph["outer start"] = {"class_type": "ReflectLoopStart", "inputs": {}}
    graph["outer"] = {"class_type": "ReflectLoopController",
                      "inputs": {"flow": ["outer start", 0], "run_in": ["controller", 2], "next_run": ["again", 0],
                                 "threshold": 1.0, "rounds": 2, "budget": 64, "keep": "best"}}
    graph["again"] = {"class_type": "ReflectReflector",
                      "inputs": {**graph["reflector"]["inputs"], "run_in": ["controller", 2]}}
    for name in ("save", "report", "tree", "all"):
        graph[name]["inputs"] = {key: ["outer", value[1]] if isinstance(value, list) else value
                                 for key, value in graph[name]["inputs"].items()}
    done = engine.run(graph)
    assert done.error is None
    assert len(done.outputs["all"]["images"]) == 8 and ran(done.executed, "sample") == 4


def test_a_run_is_saved_loaded_and_gone_on_from(engine, by_library):
    done = engine.run(loop({"tree.save": True, "controller.rounds": 2}))
    assert done.error is None
    (folder,) = (engine.base / "output" / "reflect").glob("run_*")
    header, run = load(folder)
    assert header.model == "shapes-flux" and header.policy["name"] == "reflection_flow"
    assert header.settings["judge"] == "shapes"
    choice = ModelChoice("shapes-flux", device="cpu", dtype="float32")
    assert replay(folder, choice.load(), choice.fingerprint()).same
    info = engine.get("/object_info/ReflectLoadRun")["ReflectLoadRun"]
    name = f"reflect/{folder.name}"
    assert name in info["input"]["required"]["record"][1]["options"]
    on = loop({"start.run_in": ["said", 0], "controller.rounds": 1},
              loaded={"class_type": "ReflectLoadRun", "inputs": {"record": name}},
              said={"class_type": "ReflectReflector",
                    "inputs": {"judge": ["judge", 0], "prompt": ["prompt", 0], "run_in": ["loaded", 0], "words": "",
                               "say": "replace"}})
    after = engine.run(on)
    assert after.error is None
    assert [p.tobytes() for p in shown(engine, after.outputs["all"])] == [p.tobytes() for p in by_library[0]]
    for bad, said in (("../input", "there is no record"), ("nowhere", "there is no record")):
        on["loaded"]["inputs"]["record"] = bad
        assert said in engine.run(on).error["exception_message"]
    lines = (folder / "run.jsonl").read_text().replace('"format":1', '"format":99', 1)
    newer = shutil.copytree(folder, engine.base / "output" / "reflect" / "newer")
    (newer / "run.jsonl").write_text(lines)
    on["loaded"]["inputs"]["record"] = "reflect/newer"
    assert "format 99" in engine.run(on).error["exception_message"]


@pytest.mark.parametrize("policy", ["reflection_flow", "best_of_n", "noise_prompt"])
def test_all_in_one_is_the_same_search_as_the_command_lines(engine, policy):
    choice, judge = ModelChoice("shapes-flux", device="cpu", dtype="float32"), find_judge("shapes").actors()
    run = search.start(Request(PROMPT, 0, **{k: SMALL[k] for k in ("width", "height", "steps", "guidance")}),
                       search.POLICIES[policy].for_budget(6), choice.load(), judge.verifier, judge.reflector,
                       judge.refiner, budget=search.Budget(6)).run()
    done = engine.run(all_in_one(policy=policy, budget=6))
    assert done.error is None
    hashes = [hashlib.sha256(p.tobytes()).hexdigest() for p in shown(engine, done.outputs["all"])]
    assert hashes == [hashlib.sha256(run.picture(c.id).tobytes()).hexdigest() for c in run.candidates]
    assert run.stopped.reason in done.text("report")


def test_cancel_in_the_all_in_one_loop(engine):
    stopped = engine.run(all_in_one(steps=200, budget=20), interrupt=lambda m: m["type"] == "progress_state" and any(
        s["value"] > 2 for s in m["data"]["nodes"].values()))
    assert stopped.interrupted
    assert engine.run(all_in_one(budget=2, policy="best_of_n")).error is None
