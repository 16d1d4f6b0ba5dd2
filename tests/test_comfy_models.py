"""Models on the real ComfyUI: one's own folder, damage, eviction, streamed layers."""

import json
import shutil

import numpy as np
import pytest
from flux_files import write_base, write_files
from tiny_editors import write_tiny_kontext
from tiny_sana import write_tiny_sana

from reflect_core.bench.engine import ROOT, SKIP, Engine, find_comfyui
from reflect_core.bench.graphs import all_in_one, loop
from reflect_core.search.record import LINES

pytestmark = pytest.mark.skipif(find_comfyui() is None, reason=SKIP)
PRESET = ROOT / "reflect_core" / "presets" / "shapes-flux"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    for kind, name in (("reflect", "mine"), ("diffusers", "torn"), ("diffusers", "stranger")):
        shutil.copytree(PRESET, base / "models" / kind / name)
    file = base / "models" / "diffusers" / "torn" / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    write_tiny_sana(base / "models" / "reflect" / "sana", settings={
        "defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 4.5}, "options": {"image_tokens": 16}})
    write_tiny_kontext(base / "models" / "diffusers" / "editor", settings={
        "defaults": {"width": 64, "height": 64, "steps": 2}, "options": {"max_sequence_length": 12}})
    write_tiny_kontext(base / "models" / "diffusers" / "editor-and-base", settings={
        "defaults": {"width": 64, "height": 64, "steps": 2},
        "options": {"max_sequence_length": 12, "base": "../../reflect/mine"}})
    flux = write_base(base / "flux", real_words=True)
    for part, file in write_files(flux, base / "files").items():
        kind = {"transformer": "diffusion_models", "vae": "vae"}.get(part, "text_encoders")
        (base / "models" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, base / "models" / kind)
    for name, other in (("ae", "not-flux"), ("flux1-dev", "fluxKontext")):
        shutil.copy(base / "files" / f"{name}.safetensors",
                    base / "models" / "diffusion_models" / f"{other}.safetensors")
    (base / "models" / "loras" / "FLUX-Corrector").mkdir(parents=True)
    shutil.copy(flux / "lora" / "pytorch_lora_weights.safetensors", base / "models" / "loras" / "FLUX-Corrector")
    index = base / "models" / "diffusers" / "stranger" / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "SomethingElse"))
    with Engine(find_comfyui(), base) as running:
        yield running


def pictures(engine, **changes):
    done = engine.run(loop({"controller.rounds": 2, **{k.replace("_", ".", 1): v for k, v in changes.items()}}))
    assert done.error is None, done.error
    return [np.asarray(engine.picture(one).convert("RGB")).tobytes() for one in done.outputs["all"]["images"]]


def test_the_list_has_ones_own_models_of_our_families(engine):
    listed = engine.get("/object_info/ReflectLoadModel")["ReflectLoadModel"]["input"]["required"]["model"][1]["options"]
    assert {"shapes-flux", "flux-corrector", "reflect-dit", "mine", "torn", "kontext", "qwen-image-edit", "editor"
            } <= set(listed) and "stranger" not in listed


def test_a_folder_of_ones_own_draws_the_same(engine):
    assert pictures(engine, model_model="mine") == pictures(engine)


def test_streamed_layers_draw_the_same(engine):
    assert pictures(engine, model_offload="streamed") == pictures(engine)


def test_evicted_and_used_again_it_draws_the_same(engine):
    first = pictures(engine, sample_seed=11)
    engine.post("/free", {"unload_models": True})
    pictures(engine, sample_seed=12)
    engine.post("/free", {"unload_models": True, "free_memory": True})
    assert pictures(engine, sample_seed=11) == first


def test_a_model_that_sees_several_pictures(engine):
    """Random weights of the SANA family, never right: each round is drawn with up to three earlier ones in view, in the
    wired loop as in the one in a single node."""
    small = {"sample.candidates": 1, "sample.steps": 2, "sample.guidance": 4.5, "model.model": "sana",
             "controller.rounds": 5}
    done = engine.run(loop(small))
    assert done.error is None, done.error
    (run,) = json.loads(engine.picture(done.outputs["save"]["images"][0]).info["reflect_run"]).values()
    told = [one.get("reflection", "").count(";") + bool(one.get("reflection")) for one in run["candidates"]]
    assert told[:4] == [0, 1, 2, 3]
    one = engine.run(all_in_one(policy="reflect_dit", budget=5, steps=2, guidance=4.5) | {
        "model": {"class_type": "ReflectLoadModel", "inputs": {**loop()["model"]["inputs"], "model": "sana"}}})
    assert one.error is None, one.error
    seen = [[np.asarray(engine.picture(p)).tobytes() for p in part.outputs["all"]["images"]] for part in (done, one)]
    assert seen[0] == seen[1], "the same pictures, to the bit"
    wrong = engine.run(all_in_one(policy="reflect_dit", budget=5))
    assert "it takes 1" in wrong.error["exception_message"]


def test_an_editor_is_one_widget_apart(engine):
    """Random weights, never right: the same graphs with another model; no picture is edited more than three times."""
    widgets = {"sample.candidates": 1, "sample.steps": 2, "model.model": "editor", "controller.rounds": 7}
    runs = []
    for offload in ("whole", "streamed"):
        done = engine.run(loop({**widgets, "model.offload": offload}))
        assert done.error is None, done.error
        runs.append([np.asarray(engine.picture(p)).tobytes() for p in done.outputs["all"]["images"]])
    assert runs[0] == runs[1] and len(runs[0]) == 7
    (run,) = json.loads(engine.picture(done.outputs["save"]["images"][0]).info["reflect_run"]).values()
    depths = []
    for one in run["candidates"]:
        depths.append(depths[one["parent"]] + 1 if one.get("reflection") else 0)
    assert max(depths) in range(1, 4) and sum(map(bool, depths)) == 6
    one = engine.run(all_in_one(budget=6, steps=2) | {
        "model": {"class_type": "ReflectLoadModel", "inputs": {**loop()["model"]["inputs"], "model": "editor"}}})
    assert one.error is None, one.error
    missing = engine.run(loop({"model.model": "kontext"}))
    assert "black-forest-labs/FLUX.1-Kontext-dev (34 GB" in missing.error["exception_message"]


def test_an_editors_reflect_json_names_a_model_for_the_first_pictures(engine):
    drawn = {}
    for model in ("mine", "editor", "editor-and-base"):
        done = engine.run(loop({"sample.candidates": 1, "sample.steps": 2, "sample.guidance": 3.5, "model.model": model,
                                "controller.rounds": 2}))
        assert done.error is None, done.error
        drawn[model] = [np.asarray(engine.picture(p)).tobytes() for p in done.outputs["all"]["images"]]
    first, second = drawn["editor-and-base"]
    assert first == drawn["mine"][0] != drawn["editor"][0] and second not in (drawn["mine"][1], drawn["editor"][1])


def test_a_damaged_model_is_told_and_the_queue_goes_on(engine):
    done = engine.run(loop({"model.model": "torn"}))
    assert "diffusion_pytorch_model.safetensors" in done.error["exception_message"]
    assert len(pictures(engine)) == 4


CHOSEN = {"transformer": "flux1-dev.safetensors", "vae": "the usual one", "text_encoder": "the usual one",
          "text_encoder_2": "the usual one", "lora": "FLUX-Corrector/pytorch_lora_weights.safetensors",
          "quantise": "none", "dtype": "auto", "offload": "whole", "text_join": "the model's own"}


def from_files(engine, **changes):
    done = engine.run(loop({"controller.rounds": 2, "sample.candidates": 1, "sample.steps": 2}, model={
        "class_type": "ReflectLoadFiles", "inputs": CHOSEN | changes}))
    assert done.error is None, done.error
    return [np.asarray(engine.picture(one).convert("RGB")).tobytes() for one in done.outputs["all"]["images"]]


def test_single_files_as_other_nodes_of_comfyui_read_them(engine):
    inputs = engine.get("/object_info/ReflectLoadFiles")["ReflectLoadFiles"]["input"]["required"]
    assert {"flux1-dev.safetensors", "not-flux.safetensors"} <= set(inputs["transformer"][1]["options"])
    assert inputs["vae"][1]["options"] == ["the usual one", "ae.safetensors"]
    assert "t5xxl_fp16.safetensors" in inputs["text_encoder_2"][1]["options"]
    drawn = from_files(engine)
    assert len(drawn) == 2 and drawn[0] != drawn[1]
    assert drawn == from_files(engine, vae="ae.safetensors", text_encoder="clip_l.safetensors",
                               text_encoder_2="t5xxl_fp16.safetensors")
    assert drawn == pictures(engine, model_model="flux-corrector", sample_candidates=1, sample_steps=2), "by its name"


def test_single_files_in_fp8(engine):
    eight = from_files(engine, quantise="fp8")
    assert len(eight) == 2 and eight != from_files(engine)
    assert from_files(engine, offload="streamed") == from_files(engine)
    assert from_files(engine, quantise="fp8", offload="streamed") == eight


def test_a_folder_in_fp8(engine):
    eight = pictures(engine, model_model="mine", model_quantise="fp8")
    assert eight != pictures(engine, model_model="mine")
    assert eight == pictures(engine, model_model="mine", model_quantise="fp8", model_offload="streamed")


def header(engine, **changes):
    """The first line of the record of a run."""
    before = set((engine.base / "output").rglob(LINES))
    done = engine.run(loop({"controller.rounds": 2, "tree.save": True, "tree.prefix": "kept", **changes}))
    assert done.error is None, done.error
    (lines,) = set((engine.base / "output").rglob(LINES)) - before
    return json.loads(lines.read_text(encoding="utf-8").splitlines()[0])


def test_what_a_record_says_of_how_the_model_was_loaded(engine):
    """A replay outside of ComfyUI loads it so; nothing is said of what is as it always was."""
    assert header(engine)["settings"]["model"]["options"] == {}
    options = header(engine, **{"model.quantise": "fp8", "model.vae_tiling": True})["settings"]["model"]["options"]
    assert options == {"quantise": "fp8", "vae_tiling": True}


@pytest.mark.parametrize("changes, said", [
    ({"quantise": "nf4"}, "Load Reflective DiT: quantise is 'nf4', which is offered on a GPU only"),
    ({"quantise": "int8"}, "quantise is 'int8'; expected one of none, fp8, nf4")])
def test_ways_to_load_that_there_are_not(engine, changes, said):
    done = engine.run(loop({f"model.{name}": value for name, value in changes.items()}))
    assert said in done.error["exception_message"]


@pytest.mark.parametrize("changes, said", [
    ({"transformer": "not-flux.safetensors"}, "not-flux.safetensors: holds vae"),
    ({"transformer": "fluxKontext.safetensors"}, "'kontext' at Load Reflective DiT"),
    ({"text_encoder_2": "clip_l.safetensors"}, "holds text_encoder; expected text_encoder_2"),
    ({"quantise": "nf4"}, "Load FLUX Files: quantise is 'nf4', which is offered on a GPU only"),
    ({"vae": "../vae/ae.safetensors"}, "there is no file")])
def test_files_that_are_something_else(engine, changes, said):
    graph = loop(model={"class_type": "ReflectLoadFiles", "inputs": CHOSEN | changes})
    assert said in json.dumps(engine.run(graph).error)
