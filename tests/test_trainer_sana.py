"""The SANA family's tasks, as the README uses them: from rendered scenes to a Reflect-DiT folder that draws."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_sana import prepared
from tiny_training import inside, tensors, tiny_configs, train, write_config

from reflect_core.generators.reflect_dit.cached import denoise
from reflect_core.generators.reflect_dit.context import ContextEncoder, Pairs
from reflect_core.generators.reflect_dit.pipeline import ReflectDiT
from reflect_core.generators.reflect_dit.transformer import reflect_forward
from reflect_core.presets.load import load_generator
from reflect_core.shapes.scene import BACKGROUND
from reflect_core.types import Pair, Request
from trainer.config import load_config
from trainer.tasks.sana.context import guided_forward, laid, tuned_forward
from trainer.tasks.sana.guide import own_places
from trainer.tasks.sana.lora import add_lora, merge_lora
from trainer.tasks.sana.parts import as_convolutions, as_matrices, build_transformer
from trainer.tasks.sana.reflect import ReflectTask, differing
from trainer.tasks.sana.text import before
from trainer.tasks.sana.vae import load_autoencoder

TASKS = ("sana_vae", "sana_text", "sana_vision", "sana_base", "reflect")


def blank(folder, to):
    """A copy of a SANA folder that draws the empty background, so that the harvest has something to add."""
    shutil.copytree(folder, to)
    file = to / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["decoder.conv_out.conv.weight"].zero_()
    weights["decoder.conv_out.conv.bias"].copy_((torch.tensor(BACKGROUND) / 127.5 - 1).repeat_interleave(4))
    save_file(weights, file, {"format": "pt"})


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder in which all tasks ran, one after the other, and what they printed."""
    folder, printed = tmp_path_factory.mktemp("sana"), {}
    for task in TASKS:
        done = train("--config", write_config(folder, task))
        assert done.returncode == 0, (task, done.stdout, done.stderr)
        printed[task] = done.stdout
    return folder, printed


def bundled(folder, capsys, **model):
    made = {"base": str(folder / "sana_base" / "result"), "checkpoint": str(folder / "reflect" / "result"),
            "vision": str(folder / "sana_vision" / "result"), **model}
    data = {"allow_dirty": True, "defaults": {"width": 64, "height": 64, "steps": 2, "guidance": 2.0}}
    file = write_config(folder, "bundle", model=made, data=data)
    return inside(capsys, "--config", file)


def test_every_task_says_how_far_it_is_and_what_came_out(chain):
    _, printed = chain
    for task, figure in (("sana_vae", "held_out_l1_of_255"), ("sana_text", "before"), ("sana_vision", "above_twin"),
                         ("sana_base", "overall"), ("reflect", "shuffled_fix_rate")):
        assert "step 2/6 loss" in printed[task] and f"{figure} " in printed[task]


def test_the_bundle_draws_with_flawed_pictures_in_view(chain, capsys):
    folder, _ = chain
    assert bundled(folder, capsys).code == 0
    generator = load_generator(folder / "bundle")
    assert isinstance(generator, ReflectDiT) and generator.max_context == 3 and generator.defaults["steps"] == 2
    pairs = tuple(Pair(words, picture=Image.new("RGB", (64, 64), colour)) for words, colour in (
        ("add a red circle", "white"), ("remove the blue star", "blue")))
    drawn = generator.draw([Request("a red circle", 1, steps=2), Request("a red circle", 1, steps=2, context=pairs)])
    first, second = (one.picture for one in drawn)
    assert first.size == (64, 64) and first.tobytes() != second.tobytes()


def test_provenance_tells_of_every_part(chain, capsys):
    folder, _ = chain
    assert bundled(folder, capsys).code == 0
    found = json.loads((folder / "bundle" / "provenance.json").read_text())
    assert set(found) == {"base", "checkpoint", "vision", "bundle"}
    assert found["checkpoint"]["data"]["triplets"] == 16 and found["base"]["vae"]["seed"] == 11
    assert str(folder) not in json.dumps(found)


def test_the_result_is_read_as_a_checkpoint_beside_its_base(chain):
    folder, _ = chain
    base = folder / "sana_base" / "result"
    with_vision = shutil.copytree(folder / "reflect" / "result", folder / "beside")
    shutil.copytree(folder / "sana_vision" / "result" / "image_encoder", with_vision / "image_encoder")
    # SANA's own folder says nothing of options, and the checkpoint has its own.
    real = shutil.copytree(base, folder / "real")
    (real / "reflect.json").unlink()
    (with_vision / "reflect.json").write_text(json.dumps({"options": {
        "max_context": 2, "image_tokens": 16, "prompt_instruction": "", "max_sequence_length": 48}}))
    generator = ReflectDiT.from_folder(real, lora=with_vision)
    assert generator.max_context == 2 and generator.options.image_tokens == 16 and generator.inputs.instruction == ""
    assert ReflectDiT.from_folder(real, lora=with_vision, max_context=1).max_context == 1


@pytest.mark.parametrize("changes", [{}, {"sft": True}, {"rank": 2}], ids=["whole", "sft", "lora"])
def test_a_run_that_was_cut_ends_with_the_same_bits(chain, changes, tmp_path, capsys):
    folder, _ = chain
    made = tiny_configs(folder)["reflect"]
    made = {**made, "model": {**made["model"], **changes}}
    whole, cut = (write_config(tmp_path / name, "reflect", **made) for name in ("whole", "cut"))
    assert inside(capsys, "--config", whole).code == 0
    assert inside(capsys, "--config", cut, "--set", "steps=4").code == 0
    # A schedule of four steps differs from one of six, so that the cut is made behind the third by its checkpoint.
    run = tmp_path / "cut" / "reflect"
    for file in run.glob("step-*.safetensors"):
        file.unlink()
    source = tmp_path / "whole" / "reflect" / "step-4.safetensors"
    (run / "step-4.safetensors").write_bytes(source.read_bytes())
    assert inside(capsys, "--config", cut).code == 0
    results = [tensors(tmp_path / name / "reflect" / "result" / "diffusion_pytorch_model.safetensors")
               for name in ("whole", "cut")]
    assert results[0] == results[1]
    own = {name for name in results[0] if "reflection" in name or "clip_" in name}
    assert bool(own) != changes.get("sft", False)


def test_pictures_of_the_base_are_harvested_several_of_each_prompt(chain, capsys):
    folder, _ = chain
    blank(folder / "sana_base" / "result", folder / "sana_blank")
    file = write_config(folder, "harvest", batch=6, model={
        "base": str(folder / "sana_blank"), "text_length": 48, "sample_steps": 2, "tries": 3})
    assert inside(capsys, "--config", file).code == 0
    lines = [json.loads(line) for line in (folder / "harvest" / "triplets.jsonl").read_text().splitlines()]
    assert len(lines) == 18 and len({line["prompt"] for line in lines}) == 6
    made = tiny_configs(folder)["reflect"]
    source = {"kind": "folder", "path": str(folder / "harvest")}
    task = ReflectTask(load_config(write_config(folder, "reflect", out=str(folder / "own"), model=made["model"], data={
        "sample_prompts": 2, "sources": [source]})))
    assert all(len(group) == 3 for group in task.others)
    generator = torch.Generator().manual_seed(0)
    for row in range(18):
        pairs = task._pairs(row, 3, generator)
        assert pairs[-1] == row and sorted(pairs) == sorted(task.others[row])


def test_tuning_goes_on_from_a_checkpoint(chain, tmp_path, capsys):
    """From the trainer's own, whose picture encoder lies elsewhere; and what does not go together is told early."""
    folder, _ = chain
    made, start = tiny_configs(folder)["reflect"], str(folder / "reflect" / "result")
    done = inside(capsys, "--config", write_config(tmp_path / "on", "reflect", **{
        **made, "model": {**made["model"], "checkpoint": start}}))
    assert done.code == 0
    found = json.loads((tmp_path / "on" / "reflect" / "result" / "provenance.json").read_text())
    assert found["checkpoint"]["seed"] == 16
    for changes, said in (({"context_layers": 1}, "expected 2, as in the checkpoint"),
                          ({"image_tokens": 25}, "expected a divisor of the picture encoder's 8"),
                          ({"image_tokens": 24}, "expected a square number"),
                          ({"weights": "bf16"}, "expected fp32 where all of SANA is trained"),
                          ({"weights": "bf16", "rank": 2}, "expected bf16 for both"),
                          ({"edit_weight": 0.5}, "expected a number from 1 on"),
                          ({"guide": -1}, "expected a number from 0 on"),
                          ({"guide_steps": 0}, "expected at least 1"),
                          ({"gain_lr": 0}, "expected a number above 0"),
                          ({"size": 128}, "expected 64 where the shapes world")):
        error = inside(capsys, "--config", write_config(tmp_path / "no", "reflect", **{
            **made, "model": {**made["model"], "checkpoint": start, **changes}})).error
        assert said in error, error


def own_folder(folder, prompts=("a cat", "a cat", "a dog"), side=48):
    folder.mkdir(parents=True)
    lines = []
    for k, prompt in enumerate(prompts):
        for name in ("flawed", "good"):
            Image.new("RGB", (side + 8 * k, side), (60 * k, 90, 20 if name == "good" else 200)).save(
                folder / f"{k}-{name}.png")
        lines.append({"prompt": prompt, "reflection": "" if k == 1 else "add one star", "flawed": f"{k}-flawed.png",
                      "good": f"{k}-good.png"})
    (folder / "triplets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


@pytest.mark.parametrize("held_out", [0, 1])
def test_a_users_own_pictures_with_low_rank_in_bf16(chain, tmp_path, capsys, held_out):
    """As `my-reflect-dit.yaml` has it: pictures of any size, a prompt with one flawed picture, feedback of no words."""
    folder, _ = chain
    made, source = tiny_configs(folder)["reflect"], {"kind": "folder", "path": own_folder(tmp_path / "mine")}
    model = {**made["model"], "weights": "bf16", "rank": 2, "size": 128, "mend": 0.0, "plain": 0.0, "image_tokens": 16}
    done = inside(capsys, "--config", write_config(tmp_path, "reflect", **{
        **made, "precision": "bf16", "batch": 2, "model": model, "data": {"sources": [source], "held_out": held_out}}))
    assert done.code == 0, done.err
    sheets = list((tmp_path / "reflect" / "samples").iterdir()) if held_out else []
    assert len(sheets) == 3 * held_out
    weights = load_file(tmp_path / "reflect" / "result" / "diffusion_pytorch_model.safetensors")
    before_ = load_file(folder / "sana_base" / "result" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert not any(n.endswith((".down", ".up")) for n in weights)
    changed = {n for n, value in before_.items() if not torch.equal(weights[n].float(), value.float())}
    assert all(".attn" in n for n in changed)


def test_prompts_that_are_kept_back_are_not_trained_on(chain, tmp_path, capsys):
    folder, _ = chain
    made = tiny_configs(folder)["reflect"]
    source = {"kind": "folder", "path": own_folder(tmp_path / "mine", ("a cat", "a dog", "a cat"), 64)}
    task = ReflectTask(load_config(write_config(tmp_path, "reflect", model=made["model"], data={
        "sources": [source], "held_out": 1})))
    assert len(task.bank["good"]) == 1 and task.held_out[0].prompt == "a cat"
    alone = {"kind": "folder", "path": own_folder(tmp_path / "alone", ("a cat", "a cat"))}
    error = inside(capsys, "--config", write_config(tmp_path / "x", "reflect", model=made["model"], data={
        "sources": [alone], "held_out": 1})).error
    assert "expected others too" in error


def test_the_last_gain_starts_at_zero_and_may_learn_faster(chain, tmp_path, capsys):
    folder, _ = chain
    made, gains = tiny_configs(folder)["reflect"], []
    for times in (1, 5):
        assert inside(capsys, "--config", write_config(tmp_path / str(times), "reflect", **{
            **made, "steps": 1, "ema": 0, "model": {**made["model"], "plain": 0.0, "gain_lr": times}})).code == 0
        weights = load_file(tmp_path / str(times) / "reflect" / "result" / "diffusion_pytorch_model.safetensors")
        gains.append(weights["reflection_norm.weight"].float().abs())
    assert gains[0].mean() > 0 and torch.allclose(gains[1], 5 * gains[0], rtol=0.02)


def test_the_papers_control_is_a_model_of_plain_sana(chain, tmp_path, capsys):
    folder, _ = chain
    made = tiny_configs(folder)["reflect"]
    assert inside(capsys, "--config", write_config(tmp_path, "reflect", **{
        **made, "model": {**made["model"], "sft": True}})).code == 0
    result = str(tmp_path / "reflect" / "result")
    done = bundled(folder, capsys, checkpoint=result, vision=None)
    assert done.code == 0, done.err
    generator = load_generator(folder / "bundle")
    assert generator.max_context == 0 and generator.defaults["steps"] == 2
    drawn, base = (model.draw([Request("a red circle", 1, steps=2)])[0].picture.tobytes() for model in (
        generator, load_generator(folder / "sana_base" / "result")))
    assert drawn != base
    assert "is of plain SANA" in bundled(folder, capsys, checkpoint=result).error


def test_picture_encoders_have_the_published_names(chain, capsys):
    """transformers 5 writes them without their prefix, which transformers 4 would not find."""
    folder, _ = chain
    assert bundled(folder, capsys).code == 0
    for place in (folder / "sana_vision" / "result", folder / "bundle"):
        names = load_file(place / "image_encoder" / "model.safetensors")
        assert names and all(name.startswith("vision_model.") for name in names)


@pytest.mark.parametrize("model, said", [
    ({"lora": "x"}, "is of the SANA family"), ({"vision": None}, "expected the picture encoder of the checkpoint"),
    ({"checkpoint": None}, "expected model.checkpoint too"), ({"base": "nowhere"}, "no such file")])
def test_bundles_that_do_not_go_together(chain, model, said, capsys):
    folder, _ = chain
    done = bundled(folder, capsys, **model)
    assert done.code == 2 and said in done.error


def test_a_text_that_is_too_long_is_named(chain, capsys, tmp_path):
    folder, _ = chain
    made = tiny_configs(folder)["reflect"]
    file = write_config(tmp_path, "reflect", model={**made["model"], "text_length": 4}, data=made["data"])
    done = inside(capsys, "--config", file)
    assert done.code == 2 and "expected at most model.text_length = 4" in done.error


@pytest.fixture(scope="module")
def parts(chain):
    """A transformer whose blocks all do something, and a context."""
    folder, _ = chain
    torch.manual_seed(0)
    task = load_config(write_config(folder, "sana_base", out=str(folder / "unused"))).sections()[0]
    transformer = build_transformer(task, load_autoencoder(folder / "sana_vae" / "result"), 32)
    context = ContextEncoder(32, 12, 32, 2, 16, 2)
    for part in (transformer, context):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return transformer, context


@torch.no_grad()
def test_tuning_sees_each_row_as_it_is_drawn_alone(parts):
    """Rows of one, two and three pairs, one that is shorter than a dropped one, a dropped one, and prompts of several
    lengths, in one batch."""
    transformer, context = parts
    tokens, stride = 4, 6
    rows = [[5, 2], [5], [6, 1, 4], [1], [2, 2]]
    sees = ["both", "words", "pictures", "both", "nothing"]
    x, t = torch.randn(5, 4, 8, 8), torch.tensor([900.0, 500.0, 100.0, 300.0, 700.0])
    words, keep = torch.randn(5, 7, 32), torch.arange(7) < torch.tensor([[7], [2], [5], [1], [3]])
    images, texts = torch.randn(15, tokens, 12), torch.randn(15, stride, 32)
    places = laid(rows, sees, 3, tokens, stride)
    together = tuned_forward(transformer, context, x, words, keep, t, images, texts, *places)
    for n, lengths in enumerate(rows):
        mine = slice(3 * n, 3 * n + len(lengths))
        mask = (torch.arange(stride) < torch.tensor(lengths)[:, None]).long()
        # As guidance has it, a row with pairs beside one of nothing: the official forward, and what is drawn with.
        told = (None, tuple(range(len(lengths))))
        pairs = Pairs(images[mine], texts[mine], mask, told, sees[n].replace("nothing", "both"))
        which, both = int(sees[n] != "nothing"), [n, n]
        pair = reflect_forward(transformer, context, x[both], words[both], t[both], keep[both].long(), pairs)
        assert torch.allclose(together[n], pair[which], atol=2e-5), n
        drawn = prepared(transformer, context, t[n:n + 1], words[both], keep[both].long(), pairs, [1, 0])
        assert torch.allclose(together[n], denoise(transformer, drawn, x[both], 0)[which], atol=2e-5), n


def test_the_loss_counts_what_is_mended_and_where_the_picture_looks(chain, tmp_path):
    """With a model that predicts nothing and looks at its own places with a log share of -2."""
    folder, _ = chain
    made = tiny_configs(folder)["reflect"]
    task = ReflectTask(load_config(write_config(tmp_path, "reflect", **{**made, "model": {
        **made["model"], "mend": 1.0, "plain": 0.0, "partial": 0.0, "drop_context": 0.0, "guide": 0.0}})))
    task.forward = lambda transformer, context, x, *rest: torch.zeros_like(x)
    task.guided = lambda at, transformer, context, x, *rest: (torch.zeros_like(x), torch.full((len(x),), -2.0))
    given = task.m

    def loss(step=0, **changes):
        task.m = dataclasses.replace(given, **changes)
        return float(task.loss(step, torch.Generator().manual_seed(3)).detach())

    edits = task.bank["edit"]
    assert 0 < edits.float().mean() < 0.5
    halves = torch.zeros_like(edits)
    halves[:, :, ::2] = 1
    task.bank["edit"] = halves
    here = loss(edit_weight=1e6)
    task.bank["edit"] = 1 - halves
    there = loss(edit_weight=1e6)
    assert abs(here - there) > 1e-3 and loss(edit_weight=1) == pytest.approx((here + there) / 2, rel=1e-4)
    assert loss(edit_weight=1e6, drop_context=1.0) == pytest.approx(loss(edit_weight=1))
    assert loss(edit_weight=1e6, sft=True) != pytest.approx(there)
    free = loss(edit_weight=1)
    assert [loss(step, edit_weight=1, guide=0.5, guide_steps=4) - free for step in (0, 1, 4)] == pytest.approx(
        [1.0, 0.75, 0.0], abs=1e-4)


def test_where_two_pictures_differ():
    flawed = np.full((2, 16, 16, 3), 100, np.uint8)
    good = flawed.copy()
    good[0, 5, 9, 1], good[1, 0, 0], good[1, 15, 4] = 140, 120, 60
    assert differing(flawed, good, 4, 2).tolist() == [[[0, 0], [0, 1], [0, 0], [0, 0]],
                                                      [[0, 0], [0, 0], [0, 0], [1, 0]]]


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "qk_norm"])
def test_guided_attention_draws_each_place_to_its_own_and_is_the_same_forward(parts, normed):
    """Keys are the prompt's 7, then row by row the pairs' pictures of 2 x 2 and feedback: known by hand here."""
    torch.manual_seed(0)
    lengths = [[5, 2], [3]]
    at = own_places(lengths, 7, 4, 8, 8)
    assert at[0].view(8, 8)[0].tolist() == [7 + 4 + 5] * 4 + [7 + 4 + 5 + 1] * 4
    assert at[1].view(8, 8)[:, 0].tolist() == [7] * 4 + [7 + 2] * 4
    transformer, context = (copy.deepcopy(part) for part in parts)
    for block in transformer.transformer_blocks if normed else ():
        block.attn2.norm_q, block.attn2.norm_k = torch.nn.RMSNorm(32), torch.nn.RMSNorm(32)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 500.0])
    given = (x, torch.randn(2, 7, 32), torch.arange(7) < torch.tensor([[7], [2]]), t, torch.randn(4, 4, 12),
             torch.randn(4, 6, 32), *laid(lengths, ["both", "both"], 2, 4, 6))
    out, near = guided_forward(at, transformer, context, *given)
    assert torch.allclose(out, tuned_forward(transformer, context, *given), atol=2e-5)
    assert not any(hasattr(block.attn2.processor, "near") for block in transformer.transformer_blocks)
    optimizer = torch.optim.Adam([*transformer.parameters(), *context.parameters()], 0.01)
    for _ in range(40):
        _, looked = guided_forward(at, transformer, context, *given)
        optimizer.zero_grad()
        (-looked.mean()).backward()
        optimizer.step()
    assert looked.mean() > near.mean() + 0.5 and looked.max() <= 0


@torch.no_grad()
def test_convolutions_as_matrices_are_the_same_function(parts):
    transformer, _ = copy.deepcopy(parts)
    x, words, keep, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32), torch.ones(2, 3), torch.tensor([10.0, 700.0])
    before_ = reflect_forward(transformer, None, x, words, t, keep)
    names = {name: value.clone() for name, value in transformer.state_dict().items()}
    as_matrices(transformer)
    assert all(p.ndim == 2 for n, p in transformer.named_parameters() if "conv_point.weight" in n)
    assert torch.allclose(reflect_forward(transformer, None, x, words, t, keep), before_, atol=1e-5)
    again = as_convolutions(transformer).state_dict()
    assert {n: v.shape for n, v in again.items()} == {n: v.shape for n, v in names.items()}
    assert all(torch.equal(again[n], names[n]) for n in names)


def test_lora_changes_nothing_at_first_and_is_merged_as_it_acts(parts):
    transformer, _ = copy.deepcopy(parts)
    x, words, keep, t = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 32), torch.ones(2, 3), torch.tensor([10.0, 700.0])

    def drawn():
        with torch.no_grad():
            return reflect_forward(transformer, None, x, words, t, keep)

    first, names = drawn(), set(transformer.state_dict())
    add_lora(transformer, 2, torch.Generator().manual_seed(0))
    assert torch.equal(drawn(), first)
    trained = [p for p in transformer.parameters() if p.requires_grad]
    assert len(trained) == 2 * 8 * len(transformer.transformer_blocks)
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)
    changed = drawn()
    assert (changed - first).abs().max() > 1e-3
    merge_lora(transformer)
    assert set(transformer.state_dict()) == names and torch.allclose(drawn(), changed, atol=1e-5)


def test_what_stands_before_each_word():
    told = before(torch.tensor([[2, 7, 8, 9]]))
    assert told[0, 3, :4].tolist() == [8, 7, 2, 0] and told[0, 0].eq(0).all()
