"""Packed weights under ComfyUI's memory manager: moved whole, or layer by layer, they draw the same to the bit."""

import json
import subprocess
import sys
from functools import lru_cache

import pytest
from flux_files import component_tensors, write_base
from tiny_rewards import write_tiny_clip
from tiny_sana import write_tiny_sana
from tiny_vlm import write_tiny_qwen

from reflect_core.bench.engine import ROOT, SKIP, find_comfyui, python_of

COMFYUI = find_comfyui()
pytestmark = pytest.mark.skipif(COMFYUI is None, reason=SKIP)
PACKAGE = {"gguf": "gguf", "nf4": "bitsandbytes"}
SOME = 200_000
"""Bytes: room for a part of the tiny transformer's layers."""
BUDGETS = {"nothing": 0.1, "some": SOME, "all": 1e12}


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """A process of ComfyUI's Python that runs one case after the other; each is run once."""
    base = write_base(tmp_path_factory.mktemp("base"))
    packed = base.parent / "flux1-dev.gguf"
    if importable(sys.executable, "gguf"):
        from test_gguf_files import write_gguf

        write_gguf(packed, component_tensors(base)["transformer"], "Q8_0")
    command = [python_of(COMFYUI), str(ROOT / "tests" / "inside_comfy.py"), str(COMFYUI), str(base), str(packed)]
    log = open(base.parent / "log.txt", "w+")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=base)
    done = {}

    def ask(**case):
        case = json.dumps(case)
        if case not in done:
            print(case, file=process.stdin, flush=True)
            answer = next((line for line in process.stdout if line.startswith(">")), None)
            assert answer is not None, (base.parent / "log.txt").read_text()[-3000:]
            done[case] = json.loads(answer[1:])
        assert "error" not in done[case], done[case]["error"]
        return done[case]

    yield ask
    process.stdin.close()
    process.wait(20)
    log.close()


@lru_cache
def importable(python, package):
    there = f"import importlib.util; assert importlib.util.find_spec({package!r})"
    return not subprocess.run([python, "-c", there], capture_output=True).returncode


@pytest.fixture(scope="module")
def drawn(inside):
    def run(quantise, keep, budget="all", dtype="float32", **more):
        for python in {sys.executable, python_of(COMFYUI)} if quantise in PACKAGE else ():
            if not importable(python, PACKAGE[quantise]):
                pytest.skip(f"{python} has no {PACKAGE[quantise]}")
        return inside(quantise=quantise, keep=keep, budget=BUDGETS[budget], dtype=dtype, **more)

    return run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantise", ["none", "fp8", "nf4", "gguf"])
def test_a_part_that_comes_and_goes_whole_draws_the_same(drawn, quantise, dtype):
    done = drawn(quantise, "whole", dtype=dtype)
    assert done["dtype"] == f"torch.{dtype}"
    first, evicted, freed = done["pictures"]
    assert first == evicted == freed
    assert done["loaded"] == done["size"] and done["unloaded"] == 0
    assert bool(done["packed"]) == (quantise != "none") and done["stayed"] == 0
    assert done["text"] == ("cpu:0" if quantise == "nf4" else "cpu"), "bitsandbytes packs for the card"
    plain = drawn("none", "whole", dtype=dtype)
    assert (first == plain["pictures"][0]) == (quantise == "none")
    # All but norms, biases and what is not packed: a quarter for nf4, with its scales, as of fp32.
    most = {"none": 1, "fp8": 0.6, "nf4": 0.6, "gguf": 0.6}[quantise] if dtype == "float32" else 1
    assert done["size"] <= plain["size"] * most


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("quantise", ["none", "fp8", "nf4", "gguf"])
def test_layers_that_come_as_they_compute_draw_the_same(drawn, quantise, budget):
    whole, done = drawn(quantise, "whole"), drawn(quantise, "streamed", budget)
    assert done["pictures"] == whole["pictures"]
    assert done["unloaded"] == 0
    if budget == "all":
        assert done["loaded"] == done["size"]
    elif budget == "some":
        assert 0 < done["loaded"] <= SOME < done["size"]
    if quantise != "none":
        assert done["packed"] == whole["packed"] > 20
        assert done["moved"], "no layer has computed with the weights in main memory"
        assert {"nothing": done["stayed"] == done["packed"], "some": 0 < done["stayed"] < done["packed"],
                "all": done["stayed"] == 0}[budget]


@pytest.fixture(scope="module")
def sana(tmp_path_factory):
    return write_tiny_sana(tmp_path_factory.mktemp("sana") / "sana", settings={
        "defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 4.5}, "options": {"image_tokens": 16}},
        wide=True)


@pytest.mark.parametrize("quantise", ["none", "fp8", "nf4"])
def test_another_family_is_packed_and_moved_alike(drawn, sana, quantise):
    whole = drawn(quantise, "whole", folder=str(sana))
    assert whole["pictures"][0] == whole["pictures"][1] == whole["pictures"][2]
    assert drawn(quantise, "streamed", "nothing", folder=str(sana))["pictures"] == whole["pictures"]
    assert (whole["pictures"] == drawn("none", "whole", folder=str(sana))["pictures"]) == (quantise == "none")
    assert bool(whole["packed"]) == (quantise != "none")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    return str(write_tiny_qwen(tmp_path_factory.mktemp("judge") / "wide", answers=True, wide=True))


@pytest.mark.parametrize("quantise", ["none", "fp8", "nf4"])
def test_a_judge_is_packed_and_moved_as_a_model_is(inside, seeing, quantise):
    if quantise == "nf4" and not all(importable(one, "bitsandbytes") for one in (sys.executable, python_of(COMFYUI))):
        pytest.skip("no bitsandbytes")
    asked = {"judge": "local", "folder": seeing, "quantise": quantise}
    whole = inside(**asked)
    assert whole["scores"][0] == whole["scores"][1] and len(set(whole["scores"][0])) == 2
    assert inside(**asked, keep="streamed", budget=0.1)["scores"] == whole["scores"]
    assert (whole["scores"] == inside(**asked | {"quantise": "none"})["scores"]) == (quantise == "none")
    assert bool(whole["packed"]) == (quantise != "none")
    assert whole["options"].get("quantise", "none") == quantise and "offload" not in whole["options"]


@pytest.mark.parametrize("judge", ["local", "clip-score"])
def test_a_record_knows_a_judge_by_where_it_computes_and_not_where_it_waits(inside, judge, tmp_path):
    folder = (write_tiny_qwen(tmp_path / "tiny", answers=True) if judge == "local" else
              write_tiny_clip(tmp_path / "clip") or tmp_path / "clip")
    found = inside(judge=judge, folder=str(folder))
    assert found["options"]["device"] == "cpu:0" and found["options"]["dtype"] in ("auto", "float32")
    assert f"the judge {'is tiny' if judge == 'local' else 'clip-score is'}" in found["told"]
