"""Parts that are brought to a device and sent home: the same pictures, no move too many, nothing lost on the way.

The device is "cpu:0", which is another name than "cpu" and computes. A weight that is at home is NaN here, so that
whatever computes with one that nobody brought is seen.
"""

import gc
import json
import shutil
import weakref
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aligned import aligned
from command import inside, write_tiny_model
from PIL import Image
from tiny_flux import write_tiny_flux
from tiny_sana import write_tiny_sana

from reflect_core import search
from reflect_core.generators import offload as offload_module
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.offload import Offload, pinned_size
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.presets.choice import ModelChoice
from reflect_core.types import Pair, Request, UserError

AWAY = "cpu:0"
FAMILIES = {"flux": (write_tiny_flux, FluxCorrector), "sana": (write_tiny_sana, ReflectDiT)}
PLAIN = Request("a red circle", 3, 32, 32, 3)
ENCODERS = {"flux": ["text_encoder", "text_encoder_2"], "sana": ["text_encoder", "image_encoder"]}
PART_MOVES = {"flux": {"text_encoder": 1, "text_encoder_2": 1, "vae": 2, "transformer": 1},
              "sana": {"text_encoder": 1, "image_encoder": 1, "transformer": 1, "vae": 1}}


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def corrected(seed, words="add a star"):
    return replace(PLAIN, seed=seed, context=(Pair(words, picture=picture(seed)),))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    write, kind = FAMILIES[request.param]
    return request.param, write(tmp_path_factory.mktemp(request.param)), kind


@pytest.fixture
def moves(monkeypatch):
    """Counts by part and, of streamed parts, by block; what is at home is NaN."""
    counted = Counter()

    def home(self):
        for tensor, kept in self.tensors.values():
            tensor.data = torch.full_like(kept, torch.nan) if kept.is_floating_point() else torch.full_like(kept, -1)

    real = offload_module._Group.bring

    def bring(self):
        if not self.there and self.device != offload_module.HOME:
            counted[self] += 1
        real(self)
    monkeypatch.setattr(offload_module._Group, "_home", home)
    monkeypatch.setattr(offload_module._Group, "bring", bring)
    return counted


def by_part(moves, model):
    return {name: moves[part.rest] for name, part in model.places.manager.parts.items() if moves[part.rest]}


def drawn(model, requests, **more):
    return [one.picture.tobytes() for one in model.draw(requests, **more)]


def with_and_without(cls, folder, kind, requests, **more):
    """A model that is offloaded, and what it drew before, with weights laid as those that are moved."""
    plain = aligned(cls.from_folder(folder, **more))
    expected = drawn(plain, requests)
    beside = ({"lora": plain.lora, "tokenizer_2": plain.texts.tokenizer_2} if cls is FluxCorrector else
              {"context": plain.context})
    model = cls(**plain.parts, **beside, tokenizer=plain.texts.tokenizer, options=plain.options,
                scheduler=SimpleNamespace(config=plain.schedule_config))
    Offload.manage(model, AWAY, kind)
    return model, expected


@pytest.mark.parametrize("kind", ["component", "layers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pictures_are_the_same_to_the_bit(family, kind, dtype, moves):
    _, folder, cls = family
    requests = [PLAIN, corrected(4), replace(PLAIN, seed=5), corrected(6, "make it red")]
    model, expected = with_and_without(cls, folder, kind, requests, dtype=dtype)
    assert drawn(model, requests) == expected and drawn(model, requests) == expected
    assert len(set(expected)) == 4


@pytest.mark.parametrize("kind", ["none", "component", "layers"])
def test_nothing_is_loaded_to_the_device_before_it_is_asked_for(family, kind, monkeypatch):
    _, folder, cls = family
    moved, to = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args, **more: moved.append(str(args[0])) or
                        to(self, *args, **more))
    model = cls.from_folder(folder, device=AWAY, offload=kind)
    assert (AWAY in moved) == (kind == "none")
    assert kind == "none" or not any(part.rest.there for part in model.places.manager.parts.values())


@pytest.mark.parametrize("kind", ["component", "layers"])
def test_a_call_brings_each_part_once(family, kind, moves):
    """However many batches it is, of both kinds; the autoencoder before and after the transformer."""
    name, folder, cls = family
    model = cls.from_folder(folder, device=AWAY, offload=kind, max_batch=2)
    model.draw([PLAIN, corrected(4), replace(PLAIN, seed=5), corrected(6, "make it red"), replace(PLAIN, seed=8)])
    assert by_part(moves, model) == PART_MOVES[name]


def test_a_search_of_n_pictures_in_r_rounds_brings_each_part_as_often_as_it_must(family, moves):
    name, folder, cls = family
    model = cls.from_folder(folder, device=AWAY, offload="component")
    model.draw([replace(PLAIN, seed=n) for n in range(3)])
    for number in range(3):
        model.draw([corrected(number, f"add {word} star {number}") for word in ("one", "two")])
    # Each round has new words and pictures to be read. CLIP reads the prompt alone.
    assert by_part(moves, model) == {"transformer": 4} | (
        {"text_encoder": 1, "text_encoder_2": 4, "vae": 1 + 2 * 3} if name == "flux" else
        {"text_encoder": 4, "image_encoder": 3, "vae": 4})
    model.draw([replace(PLAIN, seed=9)])
    assert moves[model.places.manager.parts["text_encoder"].rest] == (1 if name == "flux" else 4), "texts are kept"


def test_of_a_streamed_part_each_block_comes_once_a_step(family, moves):
    name, folder, cls = family
    model = cls.from_folder(folder, device=AWAY, offload="layers")
    model.draw([PLAIN])
    parts = model.places.manager.parts
    blocks = [moves[block] for block in parts["transformer"].stream.blocks]
    # SANA's two prompts, that of the request and none, go through every block before the first step.
    assert blocks == ([3] * 4 if name == "flux" else [3 + 2] * 2)
    for one in ENCODERS[name]:
        assert all(moves[block] in (0, 1, 2) for block in parts[one].stream.blocks)
    assert parts["vae"].stream.blocks == [] and not any(block.there for block in parts["transformer"].stream.blocks)
    streamed = {id(tensor) for block in parts["transformer"].stream.blocks for tensor, _ in block.tensors.values()}
    blocks = [p for name, p in model.transformer.named_parameters() if "transformer_blocks." in name]
    left = [p for p in blocks if id(p) not in streamed]
    assert len(left) < len(blocks) / 10 and all(p.shape[0] == 6 for p in left), "SANA's tables, read without a layer"


@pytest.mark.parametrize("kind", ["component", "layers"])
def test_at_most_one_part_is_on_the_device(family, kind, moves):
    _, folder, cls = family
    model = cls.from_folder(folder, device=AWAY, offload=kind)
    seen = []

    def look(at):
        seen.append([name for name, part in model.places.manager.parts.items() if part.rest.there])
        stream = model.places.manager.parts["transformer"].stream
        assert sum(block.there for block in stream.blocks) == (kind == "layers")
    model.draw([corrected(4)], look)
    assert seen == [["transformer"]] * 3
    model.places.manager.release()
    assert not any(part.rest.there for part in model.places.manager.parts.values())
    assert all(torch.isnan(p).all() for p in model.transformer.parameters())


@pytest.mark.parametrize("kind", ["component", "layers"])
def test_after_a_cancelled_step_the_next_pictures_are_right(family, kind, moves):
    _, folder, cls = family
    model, expected = with_and_without(cls, folder, kind, [corrected(4), PLAIN])

    def cancel(at):
        if at.step == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        model.draw([corrected(4)], cancel)
    assert drawn(model, [corrected(4), PLAIN]) == expected


@pytest.mark.parametrize("kind", ["component", "layers"])
@pytest.mark.parametrize("at", ["begin", "middle"])
def test_out_of_memory_while_a_part_is_brought_leaves_nothing_behind(family, kind, at, moves, monkeypatch):
    _, folder, cls = family
    model, expected = with_and_without(cls, folder, kind, [PLAIN])
    part = model.places.manager.parts["transformer"]
    group = part.rest if kind == "component" or at == "begin" else part.stream.blocks[1]
    number, full = {"begin": 0, "middle": len(group.tensors) // 2}[at], [True]

    class Full:
        """A home from which nothing can be copied."""
        def __init__(self, kept):
            self.kept = kept

        def to(self, device, non_blocking=False):
            if full:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return self.kept.to(device)

        def __getattr__(self, name):
            return getattr(self.kept, name)
    key = list(group.tensors)[number]
    tensor, kept = group.tensors[key]
    group.tensors[key] = tensor, Full(kept)
    monkeypatch.setattr(offload_module.torch, "full_like", lambda like, value: torch.full(like.shape, value))
    with pytest.raises(UserError, match="not enough memory"):
        model.draw([PLAIN])
    assert not group.there and (group is not part.rest or model.places.manager.here is None)
    full.clear()
    assert drawn(model, [PLAIN]) == expected


def test_text_encoders_can_compute_on_the_cpu_beside(family, moves):
    name, folder, cls = family
    if name != "flux":
        pytest.skip("an option of FLUX")
    model = cls.from_folder(folder, device=AWAY, offload="component", encoder_device="cpu")
    assert str(model.places("vae")) == AWAY and model.places("text_encoder_2") == torch.device("cpu")
    assert by_part(moves, model) == {"vae": 1} and model.places.manager.here == "vae", "it need not go for them"


@pytest.mark.parametrize("kind", ["component", "layers"])
def test_a_model_that_nobody_holds_is_freed_at_once(family, kind):
    _, folder, cls = family
    model = cls.from_folder(folder, device=AWAY, offload=kind)
    model.draw([PLAIN])
    gone = weakref.ref(model.transformer)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_of_a_quantised_layer_a_copy_is_away_and_its_own_weights_stay_at_home(moves):
    """They are of a kind that nobody else may touch; what they are beside their numbers goes with them."""
    class Packed(torch.nn.Parameter):
        copies = []

        def __copy__(self):
            return Packed(self.data)

        def to(self, device):
            self.copies.append(str(device))
            return Packed(self.data.clone())

    class State:
        state2 = None
    class Layer(torch.nn.Linear):
        def to(self, device):
            assert str(device) == "cpu", "it is moved by nobody else"
            return self
    layer = Layer(2, 2, bias=False)
    layer.weight = home = Packed(layer.weight.data)
    home.quant_state = State()
    part = torch.nn.Sequential(layer, torch.nn.Linear(2, 2))
    manager = Offload({"one": [part], "two": [torch.nn.Linear(1, 1)]}, AWAY)
    manager("one"), manager("one")
    assert layer.weight is not home and torch.equal(layer.weight, home) and Packed.copies == [AWAY]
    manager("two")
    assert layer.weight is home and torch.isnan(part[1].weight).all() and not torch.isnan(home).any()
    manager("one"), manager.rest()
    assert layer.weight is home and Packed.copies == [AWAY, AWAY]


@pytest.mark.parametrize("machine, limits, taken", [
    (100, [], {"a:transformer", "vae"}), (70, [], {"a:transformer"}), (200, ["70"], {"a:transformer"}),
    (100, ["max"], {"a:transformer", "vae"}), (40, [], {"vae"}), (10, [], set()), (100, ["200", "1"], set())])
def test_what_is_locked_is_half_of_main_memory_at_most_the_transformer_first(machine, limits, taken, tmp_path,
                                                                            monkeypatch):
    """Units of a KiB. A container may have less than its machine."""
    files = [tmp_path / f"{number}" for number in range(len(limits))]
    for file, limit in zip(files, limits):
        file.write_text(str(int(limit) << 10) if limit.isdigit() else limit)
    monkeypatch.setattr(offload_module, "LIMITS", (*files, tmp_path / "none"))
    sizes = {"SC_PHYS_PAGES": machine, "SC_PAGE_SIZE": 1024}
    monkeypatch.setattr(offload_module.os, "sysconf", sizes.get, raising=False)
    parts = {"vae": [torch.nn.Linear(64, 64, bias=False)], "a:transformer": [torch.nn.Linear(64, 96, bias=False)],
             "text_encoder": [torch.nn.Linear(64, 64, bias=False)]}
    devices = dict.fromkeys(parts, torch.device("cuda")) | {"text_encoder": torch.device("cpu")}
    assert [pinned_size(held[0].weight.nbytes) >> 10 for held in parts.values()] == [16, 32, 16]
    assert offload_module._to_pin(parts, devices) == taken


def test_tied_weights_stay_tied(moves):
    one, other = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    other.weight = one.weight
    manager = Offload({"both": [torch.nn.Sequential(one, other)]}, AWAY)
    manager("both")
    assert len(manager.parts["both"].rest.tensors) == 1, "and are copied once"
    assert one.weight is other.weight and not torch.isnan(one.weight).any()


def test_what_is_wrong_is_said_before_anything_is_loaded(family):
    _, folder, cls = family
    with pytest.raises(UserError, match="offload is 'half'; expected 'none' or 'component' or 'layers'"):
        cls.from_folder(folder, offload="half")


def test_it_is_an_option_of_a_run_and_no_other_model(family):
    _, folder, _ = family
    plain, moved = ModelChoice(str(folder)), ModelChoice(str(folder), options={"offload": "layers"})
    assert moved.load().places.manager is not None and plain.load().places.manager is None
    assert moved.settings()["options"] == {"offload": "layers"} and moved.fingerprint() == plain.fingerprint()


def test_a_model_cannot_bring_it_along(family, tmp_path):
    """It says something of a machine. And in ComfyUI, which loads what lies in a folder, nobody else manages memory."""
    _, folder, cls = family
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "reflect.json").read_text())
    settings["options"]["offload"] = "component"
    (copy / "reflect.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="the option 'offload', which is about a machine.*--option offload=component"):
        cls.from_folder(copy)


class Recorder:
    """Blocks, streams and the calls that compute, as one list of what happened."""

    def __init__(self, monkeypatch, number):
        self.said, self.there = [], set()
        main = self.stream("main")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.stream("side"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
        self.blocks = [self.block(n) for n in range(number)]

    def stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.said.append(f"{name} waits for {other.name}"))

    def block(self, number):
        def bring():
            self.said.append(f"copy {number}")
            self.there.add(number)
            assert len(self.there) <= 2

        def leave():
            self.there.discard(number)
        return SimpleNamespace(bring=bring, leave=leave)


def test_on_cuda_the_next_block_is_copied_while_one_computes(monkeypatch):
    """On a stream of its own, which waits for what was queued before, and is waited for before a block computes."""
    seen = Recorder(monkeypatch, 3)
    stream = offload_module._Stream(seen.blocks, torch.device("cuda"))
    stream.open = True
    for number in (0, 0, 1, 2, 0):
        stream.arrive(number)
        assert number in seen.there
        seen.said.append(f"compute {number}")
    copy = ["side waits for main", "copy {}"]

    def step(now, after):
        return ["main waits for side", copy[0], copy[1].format(after), f"compute {now}"]
    assert seen.said == ["side waits for main", "copy 0", *step(0, 1), "compute 0", *step(1, 2), *step(2, 0),
                         *step(0, 1)]
    stream.arrive(2)  # out of turn: the one that was expected goes
    assert seen.there == {2, 0}
    stream.close()
    assert not seen.there and stream.now is None


def test_a_run_has_it_on_its_record(tmp_path, capsys):
    model, folder = write_tiny_model(tmp_path / "model"), tmp_path / "run"
    result = inside(capsys, "run", "a red circle", "--model", model, "--pictures", 2, "--option", "offload=component",
                    "--out", folder, "--quiet")
    assert result.code in (0, 3) and search.load(folder)[0].settings["model"]["options"] == {"offload": "component"}
    assert inside(capsys, "replay", folder, "--quiet").code == 0
    wrong = inside(capsys, "run", "a red circle", "--model", model, "--option", "offload=half", "--out", tmp_path / "b")
    assert "offload is 'half'" in wrong.error


@pytest.mark.parametrize("size, taken", [(1, 1), (2, 2), (3, 4), (75_497_472, 134_217_728), (0, 1)])
def test_pinned_memory_comes_in_powers_of_two(size, taken):
    assert pinned_size(size) == taken
