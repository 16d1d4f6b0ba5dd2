"""Every shipped workflow from start to end on the real ComfyUI, in the API form that it ships with."""

import json

import pytest
from fake_server import FakeServer

from reflect_core.bench.engine import ROOT, SKIP, Engine, find_comfyui
from reflect_core.bench.graphs import BUNDLED

pytestmark = pytest.mark.skipif(find_comfyui() is None, reason=SKIP)
FILES = sorted((ROOT / "workflows" / "api").glob("*.json"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with Engine(find_comfyui(), tmp_path_factory.mktemp("comfy")) as running:
        yield running


@pytest.fixture(scope="module")
def judge():
    with FakeServer(words=lambda document, red: "Add a red circle." if "Add, Remove" in str(document) else None
                    ).running() as fake:
        yield fake


def load(path, judge):
    """As shipped, but with the bundled model, its judge, and a server that is here."""
    graph = json.loads(path.read_text(encoding="utf-8"))
    for node in graph.values():
        if node["class_type"] == "ReflectServerJudge":
            node["inputs"]["address"] = judge.url
        if node["class_type"] in BUNDLED:
            name, bundled = BUNDLED[node["class_type"]]
            if node["inputs"][name] not in bundled:
                node["inputs"][name] = bundled[0]
    return graph


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_workflow_reaches_a_verdict_and_hands_on_pictures(engine, judge, path):
    graph = load(path, judge)
    done = engine.run(graph)
    assert done.error is None, done.error
    by_type = {node["class_type"]: done.outputs.get(id) for id, node in graph.items()}
    (answer,) = by_type["SaveImage"]["images"]
    assert engine.picture(answer).size == (64, 64)
    (run,) = json.loads(engine.picture(answer).info["reflect_run"]).values()
    assert run["candidates"] and all("score" in one for one in run["candidates"])
    report = by_type["PreviewAny"]["text"][0]
    # `human_in_the_loop` ships with one round: its reflection is the user's to write.
    assert "accepted" in report if path.stem != "human_in_the_loop" else "the round is drawn" in report
    assert engine.picture(by_type["ReflectShowRun"]["images"][0]).width > 300


def test_a_persons_words_are_what_the_second_round_draws(engine):
    """As its note says: look at the first picture, set rounds to 2, and the answer is the correction."""
    graph = json.loads((ROOT / "workflows" / "api" / "human_in_the_loop.json").read_text(encoding="utf-8"))
    (controller,) = (node for node in graph.values() if node["class_type"] == "ReflectLoopController")
    (save,) = (id for id, node in graph.items() if node["class_type"] == "SaveImage")
    first = engine.run(graph)
    controller["inputs"]["rounds"] = 2
    second = engine.run(graph)
    before, after = (engine.picture(done.outputs[save]["images"][0]) for done in (first, second))
    (run,) = json.loads(after.info["reflect_run"]).values()
    assert run["candidates"][1]["parent"] == 0 and run["candidates"][1]["reflection"] == "add a red circle"
    assert before.tobytes() != after.tobytes(), "the answer is the corrected picture"


@pytest.mark.parametrize("name, model, said, small", [
    ("reflectionflow", "flux-corrector", "black-forest-labs/FLUX.1-dev", "shapes-flux"),
    ("reflect_dit", "reflect-dit", "siglip-large-patch16-384", "shapes-sana")])
def test_the_papers_workflows_say_what_is_missing(engine, name, model, said, small):
    graph = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    (loader,) = (node for node in graph.values() if node["class_type"] == "ReflectLoadModel")
    assert loader["inputs"]["model"] in (model, small)
    loader["inputs"]["model"] = model
    message = engine.run(graph).error["exception_message"]
    assert said in message and small in message
