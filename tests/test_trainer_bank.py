"""Encoded data is used again for the very same data only, and encoding that was cut goes on where it ended."""

import json
import shutil

import pytest
import torch
from command import contents
from tiny_flux import write_tiny_flux
from tiny_training import inside, write_config
from torch import nn

import trainer.shapes
import trainer.tasks.corrector
import trainer.tasks.text
import trainer.tasks.vae
from reflect_core.shapes import sample
from reflect_core.types import UserError
from trainer.bank import cached_in_parts
from trainer.config import load_config
from trainer.identity import digest, fingerprint
from trainer.tasks.base import BaseTask
from trainer.tasks.corrector import CorrectorTask
from trainer.train import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder, and in it the run of text encoders that know the shapes world's words."""
    folder = write_tiny_flux(tmp_path_factory.mktemp("model") / "flux", lora=False)
    assert main(["--config", str(write_config(folder, "text"))]) == 0
    return folder


def base_key(folder, model, *overrides):
    data = {"bank": 24, "sample_prompts": 1, "triplets": 12}
    file = write_config(folder, "base", data=data, model={
        "vae": str(model / "vae"), "text": str(model / "text" / "result"), "text_length": 12, "heads": 2,
        "head_dim": 16, "edits": 0.5})
    return BaseTask(load_config(file, list(overrides))).data["bank"]


def corrector_key(folder, model, *overrides):
    data = {"sources": [{"kind": "corrupted", "count": 40}], "sample_prompts": 1}
    file = write_config(folder, "corrector", model={"base": str(model), "text_length": 12}, data=data)
    return CorrectorTask(load_config(file, list(overrides))).data["bank"]


def other_objects(patch):
    """Other numbers of objects in prompts, as when COMPOSE_COUNTS changed."""
    patch.setattr(sample.sample_prompt, "__defaults__", (False, sample.SEEN_PAIRS, ((2, 3),)))


def other_words(patch):
    patch.setattr(trainer.shapes, "words", lambda *args: "do better")


def other_pictures(patch):
    render = trainer.shapes.render_array
    patch.setattr(trainer.shapes, "render_array", lambda scene: render(scene) // 2)


CHANGES = [other_objects, other_words, other_pictures]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("key", [base_key, corrector_key])
def test_a_bank_of_what_the_code_no_longer_gives_is_not_used(key, change, model, tmp_path, monkeypatch):
    before = key(tmp_path, model)
    assert key(tmp_path, model) == before
    with monkeypatch.context() as patch:
        change(patch)
        assert key(tmp_path, model) != before
    assert key(tmp_path, model) == before


def test_a_bank_of_another_vocabulary_is_not_used(model, tmp_path, monkeypatch):
    before = base_key(tmp_path, model)
    monkeypatch.setattr(trainer.tasks.text, "WORDS", trainer.tasks.text.WORDS | {"zzz"})  # behind all others
    assert main(["--config", str(write_config(tmp_path, "text"))]) == 0
    assert base_key(tmp_path, model, f"model.text={tmp_path / 'text' / 'result'}") != before


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_a_bank_of_another_tokenizer_is_not_used(name, model, tmp_path):
    before = corrector_key(tmp_path, model)
    other = shutil.copytree(model, tmp_path / "other")
    assert corrector_key(tmp_path, other) == before  # the same elsewhere
    file = other / name / "tokenizer.json"
    known = json.loads(file.read_text())
    known["model"]["vocab"]["dragon"] = known["model"]["vocab"].pop("make")
    file.write_text(json.dumps(known))
    assert corrector_key(tmp_path, other) != before


def test_what_decides_a_bank(model, tmp_path):
    before = base_key(tmp_path, model)
    assert base_key(tmp_path, model, "data.sample_prompts=3") == before
    different = [base_key(tmp_path, model, change) for change in
                 ("data.bank=25", "data.tasks={position: 2}", "seed=9", "model.text_length=13")]
    other = shutil.copytree(model, tmp_path / "other")
    config = json.loads((other / "vae" / "config.json").read_text())
    (other / "vae" / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    different.append(base_key(tmp_path, other))
    assert len({before, *different}) == 6


def test_a_fingerprint_sees_every_number():
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(9)))
    seen = {fingerprint(module)}
    for parameter in module.parameters():
        with torch.no_grad():
            parameter.view(-1)[-1] += 1e-6
        seen.add(fingerprint(module))
    assert len(seen) == 1 + 18
    assert fingerprint(module, module) != fingerprint(module) == fingerprint(module)
    assert fingerprint(module.half()) not in seen


def test_a_digest_tells_shapes_types_and_order_apart():
    flat = torch.arange(4)
    assert len({digest(flat), digest(flat.view(2, 2)), digest(flat.float()), digest(flat, "a"), digest("a", flat),
                digest("a"), digest(["a"]), digest(flat.flip(0))}) == 8


def parts(size, cut_at=None):
    """An `encode` of twenty rows in parts, which is cut before a row, and the starts that it was asked for."""
    starts = []

    def encode(start):
        starts.append(start)
        for at in range(start, 20, size):
            if cut_at is not None and at >= cut_at:
                raise KeyboardInterrupt
            rows = torch.arange(at, min(at + size, 20))
            yield {"a": rows.half()[:, None].expand(-1, 3).contiguous(), "b": rows.int()}
    return encode, starts


@pytest.mark.parametrize("size, cuts, goes_on_at", [(1, (0, 7, 13), 13), (6, (0, 7, 13), 18), (50, (0, 0), 0)])
def test_encoding_goes_on_behind_the_last_part(size, cuts, goes_on_at, tmp_path):
    for cut_at in cuts:
        with pytest.raises(KeyboardInterrupt):
            cached_in_parts(tmp_path, {"x": size}, parts(size, cut_at)[0])
    folder = next(tmp_path.glob("bank-*.parts"))
    (folder / "20-26.partial").write_bytes(b"half")
    encode, starts = parts(size)
    bank = cached_in_parts(tmp_path, {"x": size}, encode)
    assert starts == [goes_on_at]
    assert torch.equal(bank["b"], torch.arange(20).int())
    assert torch.equal(bank["a"], torch.arange(20).half()[:, None].expand(-1, 3))
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]
    again = cached_in_parts(tmp_path, {"x": size}, lambda start: pytest.fail("encoded again"))
    assert torch.equal(again["a"], bank["a"])


def test_a_damaged_part_is_named(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached_in_parts(tmp_path, {}, parts(6, 13)[0])
    file = next(tmp_path.glob("bank-*.parts/6-12.safetensors"))
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"bank-\w+.parts is damaged .* Delete it, and it is made again"):
        cached_in_parts(tmp_path, {}, parts(6)[0])


def test_a_correctors_encoding_goes_on_behind_the_last_part(model, tmp_path, monkeypatch):
    """Triplets of several sources, and none is read or made twice but to count them."""
    monkeypatch.setattr(trainer.tasks.corrector, "at_once", lambda *size: 1)  # eight triplets in a part
    sources = [{"kind": "corrupted", "count": 11}, {"kind": "corrupted", "count": 9, "tasks": {"position": 3}}]
    config = load_config(write_config(tmp_path / "a", "corrector", model={"base": str(model), "text_length": 12},
                                      data={"sources": sources, "sample_prompts": 1}))
    whole = CorrectorTask(config).bank
    encode, asked = CorrectorTask._encode, []

    def cut(self, triplets):
        asked.append(len(triplets))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, triplets)

    other = load_config(tmp_path / "a" / "corrector.yaml", [f"out={tmp_path / 'b'}"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CorrectorTask, "_encode", cut)
        CorrectorTask(other)
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(CorrectorTask, "_encode", lambda self, triplets: (asked.append(len(triplets)),
                                                                        encode(self, triplets))[1])
        resumed = CorrectorTask(other).bank
    assert asked == [4, 1]  # the rest, and what is held out
    assert whole["source"].tolist() == [0] * 11 + [1] * 9
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_scenes_that_changed_are_not_mixed_into_an_autoencoder(tmp_path, capsys, monkeypatch):
    file = write_config(tmp_path, "vae")
    assert inside(capsys, "--config", file, "--set", "steps=3").code == 0
    original = trainer.tasks.vae.random_pictures
    monkeypatch.setattr(trainer.tasks.vae, "random_pictures", lambda *args: original(*args) // 2)
    assert "was trained on other data" in inside(capsys, "--config", file).error


def test_prompts_that_changed_are_not_mixed_into_a_harvest(model, tmp_path, capsys, monkeypatch):
    file = write_config(tmp_path, "harvest", model={"base": str(model), "text_length": 12, "sample_steps": 1})
    assert inside(capsys, "--config", file, "--set", "steps=1").code == 0
    before = contents(tmp_path / "harvest")
    monkeypatch.setattr(sample.sample_prompt, "__defaults__", (True, sample.SEEN_PAIRS, ((2, 3),)))
    assert "are of other prompts than the shapes world gives now" in inside(capsys, "--config", file).error
    assert {k: v for k, v in contents(tmp_path / "harvest").items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"}
