"""A corrector from one's own pictures: of any size, with words that no grammar knows, on any FLUX folder."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from command import contents
from PIL import Image
from tiny_flux import write_tiny_flux
from tiny_training import inside, tensors, write_config
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from reflect_core.generators.flux_corrector.inputs import condition_ids
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.types import Pair, Request, UserError
from trainer.config import load_config
from trainer.loop import _Run, step_generator
from trainer.pictures import save_sheet
from trainer.settings import CorrectorData
from trainer.shapes import correction_figures, corrupted_triplets, is_right
from trainer.sources import Sources
from trainer.tasks.base import BaseTask
from trainer.tasks.corrector import CorrectorTask
from trainer.tasks.text import TextTask
from trainer.tasks.vae import VaeTask
from trainer.train import main
from trainer.triplets import read_lines

SIZE, CONDITION = 32, 16
OPTIONS = {"condition_size": CONDITION, "max_sequence_length": 12, "posterior": "mode"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_flux(tmp_path_factory.mktemp("model") / "flux", lora=False)


def write_pictures(folder, count=6, seed=0):
    """Triplets of noise in sizes, modes and formats as one's own pictures have them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for k in range(count):
        height, width = rng.integers(20, 90, size=2)
        noise = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        names = {"flawed": f"bad-{k}.png", "good": f"good-{k}.{('png', 'jpg', 'webp')[k % 3]}"}
        noise.resize((40, 30)).convert(("RGBA", "L", "P")[k % 3]).save(folder / names["flawed"])
        noise.save(folder / names["good"])
        told = {"prompt": f"a dragon number {k}, oil on canvas", "reflection": "give it « teeth »\u2028!"}
        lines.append({**told, **names})
    write_lines(folder, lines)
    return folder


def write_lines(folder, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "triplets.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path / "mine")


def config_file(folder, base, source, **changes):
    data = {"sources": [{"kind": "folder", "path": str(source)}], "held_out": 2, **changes.pop("data", {})}
    settings = {"base": str(base), "text_length": 12, "rank": 2, "size": SIZE, "condition_size": CONDITION,
                "sample_steps": 1, **changes.pop("model", {})}
    return write_config(folder, "corrector", model=settings, data=data, optimizer="adamw", **changes)


def task_of(file, *overrides):
    return CorrectorTask(load_config(file, list(overrides)))


def test_from_ones_own_pictures_to_a_corrector(model, pictures, tmp_path, capsys):
    file = config_file(tmp_path, model, pictures)
    done = inside(capsys, "--config", file)
    assert done.code == 0, done.err
    assert "eval_loss" in done.out and "fix_rate" not in done.out
    assert "4 of 4 texts fill all 12 tokens and may have been cut: see model.text_length" in done.out
    out = tmp_path / "corrector"
    entry = json.loads((out / "log.jsonl").read_text().splitlines()[0])
    assert list(entry) == ["step", "eval_loss", *(f"eval_loss_{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9))]
    sheet = Image.open(out / "samples" / "0000006.png")
    assert sheet.size == (2 * 2 * (SIZE + 2), 2 * 3 * (SIZE + 2))
    generator = FluxCorrector.from_folder(model, lora=out / "result", **OPTIONS)
    request = Request("a dragon", 0, SIZE, SIZE, 2, context=(Pair("more teeth", picture=Image.new("RGB", (50, 20))),))
    assert generator.draw([request])[0].picture.size == (SIZE, SIZE)


def test_training_sees_what_drawing_will_see(model, pictures, tmp_path):
    """Texts, condition tokens, position ids and velocities are those of the generator."""
    task, length = task_of(config_file(tmp_path, model, pictures)), 12
    for up in task.lora.up.values():
        torch.nn.init.normal_(up, generator=torch.Generator().manual_seed(1))
    generator, bank = task.generator(), task.held_bank
    for row, triplet in enumerate(task.held_out):
        request = Request(triplet.prompt, 3, SIZE, SIZE, 1, 1.0,
                          (Pair(triplet.reflection, picture=Image.fromarray(triplet.flawed)),))
        clip, t5 = generator.options.texts(request)
        assert (clip, t5) == (triplet.prompt, triplet.told)
        tokens = generator.conditions.tokens(Image.fromarray(triplet.flawed), torch.Generator())
        assert torch.allclose(tokens, bank["flawed"][row : row + 1].float(), atol=5e-3)
        ids = condition_ids(generator.options, generator.patch)
        assert torch.equal(ids, task.ids[2])
        assert ids[:, 2].max() == -1 and len(ids) == (CONDITION // 8) ** 2
        assert len(task.ids[0]) == (SIZE // 8) ** 2 and len(task.ids[1]) == length

        # One step from noise at time 1 and guidance 1: latents = noise - velocity.
        drawn = generator.draw_latents([request])[0]
        noise = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(3))
        from reflect_core.generators.flux_corrector.latents import pack
        texts = task._texts(bank["clip"][row : row + 1], bank["told"][row : row + 1])
        with torch.no_grad():
            velocity = task._forward(pack(noise), *texts, torch.ones(1), torch.ones(1), tokens)
        assert torch.allclose(pack(noise)[0] - velocity[0], drawn, atol=1e-5)


def test_training_lowers_the_evaluation_loss(model, pictures, tmp_path, capsys):
    """On the very pictures it is trained on, which a few steps can learn by heart."""
    file = config_file(tmp_path, model, pictures, steps=60, lr=0.02, ema=0.5, sample_every=60, save_every=60,
                       data={"eval": {"kind": "folder", "path": str(pictures)}})
    assert inside(capsys, "--config", file).code == 0
    entries = map(json.loads, (tmp_path / "corrector" / "log.jsonl").read_text().splitlines())
    losses = [entry["eval_loss"] for entry in entries if "eval_loss" in entry]
    assert losses[-1] < losses[0] - 0.02, losses


def test_a_large_base_is_kept_small(model, pictures, tmp_path, capsys):
    """bf16 weights, blocks computed twice and small batches: the same loss, about."""
    file = config_file(tmp_path, model, pictures)
    plain = task_of(file).loss(0, step_generator(0, 0))
    checked = task_of(file, "model.checkpointing=true").loss(0, step_generator(0, 0))
    assert torch.equal(plain, checked)
    small = task_of(file, "model.weights=bf16", "model.checkpointing=true", "precision=bf16")
    assert small.transformer.dtype == torch.bfloat16
    assert {p.dtype for _, p in small.named_parameters()} == {torch.float32}
    assert abs(small.loss(0, step_generator(0, 0)).item() - plain.item()) < 0.05
    assert inside(capsys, "--config", file, "--set", "model.weights=bf16", "--set", "accumulate=2").code == 0
    provenance = json.loads((tmp_path / "corrector" / "result" / "provenance.json").read_text())
    assert provenance["samples"] == 6 * 4 * 2 and provenance["base"] == model.name
    assert provenance["sources"] == [pictures.name] and "/tmp" not in json.dumps(provenance)


def test_blocks_computed_twice_give_the_same_gradients_and_the_same_corrector(model, pictures, tmp_path, capsys):
    """The second time is in the backward pass, which must take the kernels of the first."""
    found = []
    for folder, checkpointing in (("a", False), ("b", True)):
        file = config_file(tmp_path / folder, model, pictures, model={"checkpointing": checkpointing})
        run = _Run(load_config(file), task_of(file), "c1", lambda line: None)
        for up in run.task.lora.up.values():
            torch.nn.init.normal_(up, generator=torch.Generator().manual_seed(1))
        value = run.gradients()
        found.append((value, {name: p.grad for name, p in run.optimizers.named.items() if p.grad is not None}))
        assert inside(capsys, "--config", file).code == 0
    (plain, checked), (a, b) = zip(*found)
    assert plain == checked and plain[1] > 0
    assert len(a) > 20 and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    results = [tmp_path / run / "corrector" / "result" / "pytorch_lora_weights.safetensors" for run in "ab"]
    assert tensors(results[0]) == tensors(results[1])


def test_start_from_weights_that_are_there(model, pictures, tmp_path, capsys):
    assert inside(capsys, "--config", config_file(tmp_path / "a", model, pictures)).code == 0
    first = tmp_path / "a" / "corrector" / "result" / "pytorch_lora_weights.safetensors"
    file = config_file(tmp_path / "b", model, pictures, lr=0.0, model={"lora": str(first.parent)})
    assert inside(capsys, "--config", file).code == 0
    second = tmp_path / "b" / "corrector" / "result" / first.name
    assert tensors(first) == tensors(second)


def test_held_out_triplets(model, pictures, tmp_path):
    def sources(size=SIZE, **data):
        data = CorrectorData(**{"sources": [{"kind": "folder", "path": str(pictures)}], "held_out": 2, **data})
        return Sources(data, 0, size)

    def prompts(found):
        return [int(t.prompt.split()[3].rstrip(",")) for t in found]

    def trained(s):
        return prompts(t for _, t in s.triplets())

    assert (trained(sources()), prompts(sources().held_out())) == ([0, 1, 2, 3], [4, 5])
    everything = sources(held_out=0)
    assert (trained(everything), everything.held_out()) == ([0, 1, 2, 3, 4, 5], [])
    some = sources(sources=[{"kind": "folder", "path": str(pictures), "count": 4}])
    assert (trained(some), prompts(some.held_out())) == ([0, 1], [2, 3])
    apart = sources(eval={"kind": "folder", "path": str(pictures), "count": 1})
    assert (trained(apart), prompts(apart.held_out())) == ([0, 1, 2, 3, 4, 5], [0])
    with pytest.raises(UserError, match="expected 64 where the shapes world"):
        sources(sources=[{"kind": "corrupted", "count": 3}])
    shapes = sources(64, sources=[{"kind": "corrupted", "count": 3}], sample_prompts=2)
    held = {t.prompt + t.reflection for t in shapes.held_out()}
    assert len(held) == 2 and not held & {t.prompt + t.reflection for _, t in shapes.triplets()}
    with pytest.raises(UserError, match="has 6 triplets, of which data.held_out = 6 are kept back"):
        sources(held_out=6)


def test_nothing_held_out_is_no_error(model, pictures, tmp_path, capsys):
    assert inside(capsys, "--config", config_file(tmp_path, model, pictures, data={"held_out": 0})).code == 0
    assert not list((tmp_path / "corrector").glob("samples/*"))


def test_repeat_draws_from_a_source_more_often(model, pictures, tmp_path):
    other = write_pictures(tmp_path / "other", count=3, seed=1)
    task = task_of(config_file(tmp_path, model, pictures, data={"held_out": 0, "sources": [
        {"kind": "folder", "path": str(pictures)}, {"kind": "folder", "path": str(other), "repeat": 3}]}))
    assert len(task.bank["good"]) == 9 and sorted(task.rows.tolist()) == sorted([*range(9), *[6, 7, 8] * 2])


def test_the_same_square_is_cut_out_of_both_pictures(tmp_path):
    """The flawed picture comes to the good one's size; the shorter side to `size`; the middle is kept."""
    good = np.zeros((60, 120, 3), np.uint8)
    good[:, :20] = 255  # left of the middle square
    good[:, 45:75] = (255, 0, 0)
    flawed = np.asarray(Image.fromarray(good).resize((80, 20)))  # another size and shape
    rotated = Image.fromarray(good).rotate(90, expand=True)
    exif = rotated.getexif()
    exif[0x0112] = 6  # a phone's picture that lies on its side
    rotated.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(flawed).save(tmp_path / "flawed.png")
    Image.fromarray(good).save(tmp_path / "good.png")
    line = {"prompt": "p", "reflection": "r", "flawed": "flawed.png"}
    write_lines(tmp_path, [{**line, "good": "good.png"}, {**line, "good": "turned.png"}])
    first, second = (entry.read(30) for entry in read_lines(tmp_path))
    assert first.good.shape == first.flawed.shape == (30, 30, 3)
    assert (first.good[:, 10:20, 0] == 255).all() and (first.good[:, [0, 29]] == 0).all()
    assert np.abs(first.good.astype(int) - first.flawed).mean() < 12
    assert np.array_equal(first.good, second.good)
    assert read_lines(tmp_path)[0].read(60).good.shape == (60, 60, 3)


def test_a_reflection_of_nothing_leaves_the_marker_out():
    triplet = next(iter(corrupted_triplets(0, 1)))
    assert triplet.told == f"{triplet.prompt} [Reflexion] {triplet.reflection}"
    assert dataclasses.replace(triplet, reflection=" ").told == triplet.prompt


@pytest.mark.parametrize("line, said", [
    ("not json", "line 7: is not JSON"), ("[1]", "line 7: is [1]; expected one JSON object a line"),
    ('{"prompt": "p"}', "line 7: reflection is None; expected text"),
    ('{"prompt": 3, "reflection": "", "flawed": "a", "good": "b"}', "line 7: prompt is 3; expected text"),
    ('{"prompt": "p", "reflection": "", "flawed": "none.png", "good": "good-0.png"}', "none.png: No such file"),
    ('{"prompt": "p", "reflection": "", "flawed": "cut.png", "good": "good-0.png"}', "cut.png: "),
    ('{"prompt": "p", "reflection": "", "flawed": "cut.jpg", "good": "good-0.png"}', "cut.jpg: image file is trunc"),
    ('{"prompt": "p", "reflection": "", "flawed": "triplets.jsonl", "good": "good-0.png"}', "cannot identify image"),
])
def test_a_line_or_picture_that_is_broken_is_named(line, said, model, pictures, tmp_path, capsys):
    for name, source in (("cut.png", "good-0.png"), ("cut.jpg", "good-1.jpg")):
        (pictures / name).write_bytes((pictures / source).read_bytes()[:-200])
    with (pictures / "triplets.jsonl").open("a") as file:
        file.write(line + "\n")
    error = inside(capsys, "--config", config_file(tmp_path, model, pictures, data={"held_out": 0})).error
    assert "triplets.jsonl, line 7" in error and said in error


def test_folders_without_triplets(model, tmp_path, capsys):
    folder = tmp_path / "empty"
    file = config_file(tmp_path, model, folder)
    assert "cannot read" in inside(capsys, "--config", file).error
    folder.mkdir()
    assert "triplets.jsonl: No such file" in inside(capsys, "--config", file).error
    (folder / "triplets.jsonl").write_text("\n \n")
    assert "holds no triplets" in inside(capsys, "--config", file).error
    (folder / "triplets.jsonl").write_bytes("{é}".encode("latin-1"))
    assert "is not UTF-8" in inside(capsys, "--config", file).error


def test_changed_pictures_are_encoded_anew_and_never_mixed_into_a_run(model, pictures, tmp_path, capsys):
    file, out = config_file(tmp_path, model, pictures), tmp_path / "corrector"
    first = task_of(file)
    assert len(list(out.glob("bank-*"))) == 1
    moved = shutil.copytree(pictures, tmp_path / "moved")
    again = task_of(file, f"data.sources=[{{kind: folder, path: {moved}}}]")
    assert again.data == first.data  # the same pictures elsewhere are the same
    assert inside(capsys, "--config", file).code == 0
    before = contents(out)
    Image.new("RGB", (20, 20)).save(pictures / "good-0.png")
    assert "was trained on other data" in inside(capsys, "--config", file).error
    after = contents(out)
    assert all(after[name] == before[name] for name in before if name != ".lock")
    assert len(list(out.glob("bank-*"))) == 2


def test_what_changes_no_step_may_change_on_the_way(model, pictures, tmp_path, capsys):
    """Another place of the same pictures and the same model, another grid, blocks computed twice: the same result."""
    whole = config_file(tmp_path / "whole", model, pictures)
    assert inside(capsys, "--config", whole).code == 0
    file = config_file(tmp_path / "cut", model, pictures)
    loss = CorrectorTask.loss

    def cut(self, step, generator):
        if step == 3:
            raise KeyboardInterrupt
        return loss(self, step, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CorrectorTask, "loss", cut)
        assert inside(capsys, "--config", file).code == 130
    moved, model = shutil.copytree(pictures, tmp_path / "moved"), shutil.copytree(model, tmp_path / "model")
    changes = ["model.checkpointing=true", "data.grid=1", "model.sample_steps=2", f"model.base={model}",
               f"data.sources.0.path={moved}"]
    done = inside(capsys, "--config", file, *(word for change in changes for word in ("--set", change)))
    assert done.code == 0 and "resumed at step 3" in done.out
    a, b = (tmp_path / run / "corrector" / "result" / "pytorch_lora_weights.safetensors" for run in ("whole", "cut"))
    assert tensors(a) == tensors(b)


def test_a_damaged_bank_is_named(model, pictures, tmp_path, capsys):
    file = config_file(tmp_path, model, pictures)
    task_of(file)
    bank = next((tmp_path / "corrector").glob("bank-*"))
    bank.write_bytes(bank.read_bytes()[:-3])
    error = inside(capsys, "--config", file).error
    assert str(bank) in error and "Delete it, and it is made again" in error


def test_figures_of_corrections():
    """A correction that shows the target is right and keeps all; the flawed picture is neither fixed nor changed."""
    triplets = list(corrupted_triplets(7, 40))
    perfect = correction_figures(triplets, [t.good for t in triplets])
    nothing = correction_figures(triplets, [t.flawed for t in triplets])
    blank = correction_figures(triplets, [np.full((64, 64, 3), 240, np.uint8)] * len(triplets))
    assert perfect["kept"] > 0.97 and perfect["fix_rate"] > 0.8  # the rest has more flaws than are told at once
    assert nothing["fix_rate"] == 0 and nothing["kept"] > 0.97
    assert blank == {"fix_rate": 0, "kept": 0}


def test_fresh_drawings_are_judged_once_in_a_run(tmp_path, model, monkeypatch):
    """With the base alone, of the same prompts: whatever the LoRA has become, and again where anything changed."""
    file = write_config(tmp_path, "corrector", model={"base": str(model), "text_length": 12, "sample_steps": 1}, data={
        "sources": [{"kind": "corrupted", "count": 4}], "sample_prompts": 4})
    task, asked = task_of(file), []
    draw = CorrectorTask.draw

    def watched(self, triplets, told=True):
        asked.append(told)
        pictures = draw(self, triplets, told)
        return pictures if told else [triplets[0].good, *pictures[1:]]  # one of four is right
    monkeypatch.setattr(CorrectorTask, "draw", watched)
    first = task.sample(tmp_path / "a.png", 0)
    assert first["fresh_rate"] == 0.25 and list(first)[:3] == ["fix_rate", "kept", "fresh_rate"]
    assert is_right(task.held_out[0].good, task.held_out[0].prompt)
    again = task_of(file).sample(tmp_path / "b.png", 1)
    assert again["fresh_rate"] == 0.25 and asked == [True, False, True]
    task_of(file, "model.sample_steps=2").sample(tmp_path / "c.png", 1)
    assert asked[3:] == [True, False]
    monkeypatch.undo()
    plain = task.draw(task.held_out, told=False)
    for up in task.lora.up.values():
        torch.nn.init.normal_(up, generator=torch.Generator().manual_seed(1))
    assert all(map(np.array_equal, plain, task.draw(task.held_out, told=False)))
    assert not all(map(np.array_equal, plain, task.draw(task.held_out)))


def test_sheets_of_large_pictures_are_reduced(tmp_path):
    rows = [[np.zeros((300, 300, 3), np.uint8)] * 3, [np.zeros((64, 64, 3), np.uint8)]]
    save_sheet(tmp_path / "sheet.png", rows)
    assert Image.open(tmp_path / "sheet.png").size == (3 * 258, 2 * 258)


class OneDevice(TorchFunctionMode):
    """Fails where tensors of two devices meet, other than to be moved."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = [a for a in _pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor) and a.ndim]
        moving = function in (torch.Tensor.to, torch.Tensor.copy_)
        assert moving or len({a.device.type for a in found}) < 2, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ["vae", "text", "base", "corrector"])
def test_every_tensor_of_a_step_is_on_the_device(task, model, pictures, tmp_path):
    """As far as it can be seen without an accelerator: a device that computes shapes only."""
    if task == "base":
        assert main(["--config", str(write_config(tmp_path, "text"))]) == 0
    files = {"vae": lambda: write_config(tmp_path, "vae"),
             "text": lambda: write_config(tmp_path, "text"),
             "base": lambda: write_config(tmp_path, "base", model={
                 "vae": str(model / "vae"), "text": str(tmp_path / "text" / "result"), "text_length": 12, "heads": 2,
                 "head_dim": 16}),
             "corrector": lambda: config_file(tmp_path, model, pictures, model={"checkpointing": True})}
    kinds = {"vae": VaeTask, "text": TextTask, "base": BaseTask, "corrector": CorrectorTask}
    made = kinds[task](load_config(files[task]()))
    made.config = dataclasses.replace(made.config, device="meta")
    if task == "vae":
        parts = [made.vae]
    elif task == "text":
        parts = [made.trained]
    else:
        parts = [made.parts[k] for k in ("transformer", "text_encoder", "text_encoder_2")]
    for part in [*parts, *([made.lora] if task == "corrector" else [])]:
        part.to("meta")
    if task in ("base", "corrector"):
        made.ids = tuple(ids.to("meta") for ids in made.ids)
    with OneDevice():
        for step in (0, made.config.steps - 1):
            loss = made.loss(step, step_generator(0, step))
            assert loss.device.type == "meta" and loss.requires_grad
            loss.backward()
