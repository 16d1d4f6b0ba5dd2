"""Run by ComfyUI's own Python: its memory manager, as it is, and a model of ours, on a card that is played by the CPU.

    python inside_comfy.py COMFYUI FOLDER GGUF < cases

A case is a line of JSON, {"quantise", "keep", "budget", "dtype", "folder"} or {"judge", "folder"}, and so is what came
of it. The card is `cpu:0`: torch takes it for another device than `cpu`, so that what goes there is copied, and
ComfyUI is told that it is none.
"""

import importlib.util
import json
import sys
import tempfile
import traceback
from contextlib import contextmanager, nullcontext
from pathlib import Path

COMFYUI, FOLDER, GGUF = sys.argv[1:]
ROOT = Path(__file__).resolve().parents[1]
sys.argv = ["main.py", "--cpu", "--base-directory", tempfile.mkdtemp()]
sys.path.insert(0, COMFYUI)

import torch  # noqa: E402
from aligned import aligned  # noqa: E402

library = torch.library.Library("torchvision", "FRAGMENT")  # see bench/engine.py
for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
    try:
        library.define(operator)
    except RuntimeError:
        pass

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.model_management as manager  # noqa: E402

CARD, HOME = torch.device("cpu:0"), torch.device("cpu")
BUDGET = [0.0]
"""Bytes of a part's weights that ComfyUI believes to have room for."""
manager.get_torch_device = manager.text_encoder_device = manager.vae_device = lambda: CARD
manager.is_device_cpu = lambda device: device.index is None
manager.vram_state = manager.VRAMState.NORMAL_VRAM
load_as_it_is = manager.LoadedModel.model_load
manager.LoadedModel.model_load = lambda self, lowvram_model_memory=0, **more: load_as_it_is(
    self, max(0.1, BUDGET[0] - self.model_loaded_memory()) if lowvram_model_memory else 0, **more)
manager.soft_empty_cache = lambda *arguments: None

spec = importlib.util.spec_from_file_location("reflect_pack", ROOT / "__init__.py",
                                              submodule_search_locations=[str(ROOT)])
pack = importlib.util.module_from_spec(spec)
sys.modules["reflect_pack"] = pack
spec.loader.exec_module(pack)
import diffusers  # noqa: E402
import folder_paths  # noqa: E402
from PIL import Image  # noqa: E402
from reflect_pack.nodes import memory  # noqa: E402
from reflect_pack.nodes import model as nodes  # noqa: E402
from reflect_pack.nodes.streamed import is_packed  # noqa: E402
from reflect_pack.reflect_core.generators import quantise as ways  # noqa: E402
from reflect_pack.reflect_core.presets.choice import ModelChoice  # noqa: E402
from reflect_pack.reflect_core.types import Pair, Request  # noqa: E402

# These look for a GPU when they are imported.
for package in ("peft", "bitsandbytes"):
    if importlib.util.find_spec(package) is not None:
        __import__(package)
if "bitsandbytes" in sys.modules:
    # On a CPU it lays its weights anew as they are first used, and rounds the scales; on a card not.
    sys.modules["bitsandbytes.nn.modules"].has_avx512bf16 = lambda: False
for name in ("FluxTransformer2DModel", "AutoencoderKL"):
    getattr(diffusers, name)


@contextmanager
def a_gpu():
    """diffusers refuses bitsandbytes where there is none, which bitsandbytes itself does not."""
    there, ways.NEED_GPU, torch.cuda.is_available = torch.cuda.is_available, (), lambda: True
    try:
        yield
    finally:
        torch.cuda.is_available = there


def load(quantise, keep, dtype, folder):
    parts = {"transformer": GGUF} if quantise == "gguf" else {}
    options = {} if quantise in ("none", "gguf") else {"quantise": quantise}
    with a_gpu() if quantise == "nf4" else nullcontext():
        return nodes.ReflectModel(ModelChoice(folder, dtype=dtype, options=options, parts=parts), keep)


def draw(model):
    """A plain picture, and one that is corrected, as bytes; under inference mode, as ComfyUI runs its nodes."""
    side = model.generator.defaults["width"]
    asked = Request("two red circle left of a blue square", 3, side, side, 2, 3.5)
    with torch.inference_mode():
        first = model.generator.draw([asked])[0].picture
        told = Request(asked.prompt, 4, side, side, 2, 3.5, context=(Pair("make it blue", picture=first),))
        exact = getattr(model.generator, "draw_latents", None)
        seen = [first, *(one.picture for one in model.generator.draw([asked, told]))]
        return [one.tobytes().hex() for one in seen] + [
            latents.float().numpy().tobytes().hex() for latents in (exact([asked, told]) if exact else [])]


def layers(model):
    return [layer for part in model.generator.parts.values() for layer in part.modules()]


def storages(layer):
    """Where a packed layer's weight and its scales begin in memory, by what holds them alive."""
    state = getattr(layer.weight, "quant_state", None)
    scales = [] if state is None else [state.absmax, state.code]
    return [tensor.untyped_storage() for tensor in (layer.weight, *scales)]


def at(layer):
    return [storage.data_ptr() for storage in storages(layer)]


def watch(model):
    """What packed layers hold, and a list that tells at each call whether all of it is somewhere else then."""
    home, seen = {layer: storages(layer) for layer in layers(model) if is_packed(layer)}, []
    for layer in home:  # after the pack's own hooks
        layer.register_forward_pre_hook(lambda layer, arguments: seen.append(
            not any(here == there.data_ptr() for here, there in zip(at(layer), home[layer]))))
    return home, seen


def waits_on_a_small_card(model):
    """Where the large text encoder computes if ComfyUI leaves text encoders to the CPU."""
    name = max(name for name in model.generator.parts if name.startswith("text_encoder"))
    as_it_is, manager.text_encoder_device = manager.text_encoder_device, lambda: HOME
    try:
        return str(memory.Parts({name: [model.generator.parts[name]]}).patchers[name].load_device)
    finally:
        manager.text_encoder_device = as_it_is


def run(quantise, keep, budget, dtype, folder=FOLDER):
    BUDGET[0] = budget
    model = load(quantise, keep, dtype, folder)
    aligned(model.generator)
    home, seen = watch(model)
    patcher = model.patcher
    said = {"pictures": [draw(model)], "size": patcher.model_size(), "loaded": patcher.loaded_size(),
            "packed": sum(map(is_packed, layers(model))), "moved": all(seen) and len(seen)}
    said["stayed"] = sum(at(layer) == [one.data_ptr() for one in there] for layer, there in home.items())
    manager.unload_all_models()
    said["unloaded"] = patcher.loaded_size()
    said["pictures"].append(draw(model))
    # As another model asks for some of the room: what can be is moved out of it, the rest goes.
    manager.free_memory(1e30, CARD)
    said["pictures"].append(draw(model))
    said["dtype"], said["text"] = str(model.generator.transformer.dtype), waits_on_a_small_card(model)
    return said


def judge(judge, folder, quantise="none", keep="whole", budget=1e12):
    """What is told of a judge from a folder, what a record would know of it, and of a language model what it says of
    two pictures, before and after it was sent away."""
    from reflect_pack.nodes.language_judge import ReflectLocalJudge
    from reflect_pack.nodes.reward_judge import ReflectRewardJudge

    there = Path(folder_paths.models_dir) / "LLM" / Path(folder).name
    there.parent.mkdir(parents=True, exist_ok=True)
    if not there.exists():
        there.symlink_to(folder)
    BUDGET[0] = budget
    if judge != "local":
        made = ReflectRewardJudge.execute(judge, there.name, -1.0)
        return {"told": made.args[1], "options": made.args[0].judge.settings()["options"]}
    with a_gpu() if quantise == "nf4" else nullcontext():
        made = ReflectLocalJudge.execute(there.name, "match", "none", -1.0, quantise=quantise, offload=keep)
    model = made.args[0].judge.chat.model
    looked = [Image.new("RGB", (112, 84), colour) for colour in ("red", "blue")]
    scores = []
    for _ in range(2):
        scores.append([one.score for one in made.args[0].actors.verifier.judge("a red circle", looked)])
        manager.unload_all_models()
    return {"told": made.args[1], "options": made.args[0].judge.settings()["options"], "scores": scores,
            "packed": sum(map(is_packed, model.modules()))}


for line in sys.stdin:
    case = json.loads(line)
    try:
        came = judge(**case) if "judge" in case else run(**case)
    except Exception:
        came = {"error": traceback.format_exc()}
    print("\n>" + json.dumps(came), flush=True)
