"""The corrector's LoRA as a file: the published layout, what it must refuse, and that peft reads the same."""

import json

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file
from tiny_flux import FLUX_DEV, tiny_lora, tiny_transformer

from reflect_core.generators.flux_corrector.lora import LORA_FILE, ConditionLora, adapted_layers
from reflect_core.generators.flux_corrector.transformer import flux_forward
from reflect_core.types import UserError


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


def plain_inputs() -> dict:
    return dict(hidden_states=torch.randn(2, 4, 16), encoder_hidden_states=torch.randn(2, 3, 32),
                pooled_projections=torch.randn(2, 32), timestep=torch.rand(2), guidance=torch.ones(2),
                img_ids=torch.zeros(4, 3), txt_ids=torch.zeros(3, 3))


def test_published_size_on_the_true_config():
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        flux = FluxTransformer2DModel(**FLUX_DEV)
    lora = ConditionLora.fresh(flux, 32)
    assert len(adapted_layers(flux)) == len(lora.paths) == 343
    assert len(list(lora.parameters())) == 686
    assert sum(p.numel() for p in lora.parameters()) == 115_902_464


def test_fresh_lora_changes_nothing_and_repeats_by_seed(model):
    first, second = (ConditionLora.fresh(model, 8, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert all(p.abs().max() == 0 for p in first.up.values())
    assert all(torch.equal(first.down[k], second.down[k]) for k in first.down)
    a = torch.cat([p.flatten() for p in first.down.values()])
    assert a.dtype == torch.float32 and abs(a.std() - 1 / 8) < 0.01
    with pytest.raises(UserError, match="rank is 0"):
        ConditionLora.fresh(model, 0)


def test_round_trip_has_exactly_the_published_keys(model, tmp_path):
    lora = tiny_lora(model)
    file = lora.save(tmp_path)
    assert file == tmp_path / LORA_FILE
    stored = load_file(str(file))
    assert set(stored) == {f"transformer.{p}.lora_{m}.weight" for p in adapted_layers(model) for m in "AB"}
    for key in ("transformer.x_embedder.lora_A.weight",
                "transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight",
                "transformer.transformer_blocks.0.norm1.linear.lora_A.weight",
                "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight"):
        assert key in stored
    again = ConditionLora.load(tmp_path, model)
    assert again.scales == dict.fromkeys(again.paths, 1.0)
    assert all(torch.equal(again.down[k], lora.down[k]) and torch.equal(again.up[k],
                                                                        lora.up[k]) for k in lora.down)
    assert again.save(tmp_path / "b.safetensors").read_bytes() == file.read_bytes()


def test_alpha_survives_and_scales(model, tmp_path):
    lora = tiny_lora(model, rank=4, alpha=2.0)
    again = ConditionLora.load(lora.save(tmp_path), model)
    assert again.scales == lora.scales == dict.fromkeys(lora.paths, 0.5)
    whole = tiny_lora(model, rank=4)
    assert torch.equal(again.delta("x_embedder").up, whole.delta("x_embedder").up * 0.5)


def test_alpha_from_adapter_metadata(model, tmp_path):
    tensors = tiny_lora(model, rank=4).published_state_dict()
    adapter = {"transformer.r": 4, "transformer.lora_alpha": 8,
               "transformer.alpha_pattern": {"x_embedder": 4}}
    file = tmp_path / "a.safetensors"
    save_file(tensors, str(file), metadata={"format": "pt", "lora_adapter_metadata": json.dumps(adapter)})
    lora = ConditionLora.load(file, model)
    assert lora.scales["x_embedder"] == 1.0
    assert lora.scales["transformer_blocks.0.attn.to_q"] == 2.0


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_peft_and_diffusers_read_the_same(model, tmp_path, alpha):
    """With the LoRA on all tokens and no condition, ours is what diffusers makes of the file with peft."""
    lora = tiny_lora(model, alpha=alpha)
    file = lora.save(tmp_path)
    stock = tiny_transformer()
    none = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    FluxPipeline(transformer=stock, **none).load_lora_weights(tmp_path)
    made = plain_inputs()
    with torch.no_grad():
        ours = flux_forward(model, ConditionLora.load(file, model), **made, latent_lora=True)
        assert (stock(**made, return_dict=False)[0] - ours).abs().max() < 1e-5


def test_a_lora_for_another_architecture_names_the_key_and_both_shapes(model, tmp_path):
    wide = tiny_lora(tiny_transformer(num_attention_heads=4))
    with pytest.raises(UserError) as error:
        ConditionLora.load(wide.save(tmp_path / "wide"), model)
    key = "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight"
    assert key in str(error.value) and "(4, 64)" in str(error.value) and "(4, 32)" in str(error.value)
    deep = tiny_lora(tiny_transformer(num_layers=3))
    with pytest.raises(UserError, match=r"transformer_blocks\.2\.attn.*no such layer"):
        ConditionLora.load(deep.save(tmp_path / "deep"), model)
    shallow = tiny_lora(tiny_transformer(num_layers=1))
    with pytest.raises(UserError, match=r"no transformer_blocks\.1\.norm1\.linear\.lora_A.*\(4, 32\).*shallower"):
        ConditionLora.load(shallow.save(tmp_path / "shallow"), model)


def test_peft_saves_and_ours_draws_the_same(model, tmp_path):
    """A folder as `PeftModel.save_pretrained` leaves it: its own keys, and alpha only in adapter_config.json."""
    from peft import LoraConfig, get_peft_model

    for name, settings in {"plain": {}, "pattern": {"alpha_pattern": {r"attn\.to_[qk]": 1, "x_embedder": 16}},
                           "ranks": {"rank_pattern": {"x_embedder": 2}}, "stable": {"use_rslora": True}}.items():
        config = LoraConfig(r=4, lora_alpha=8, target_modules=list(adapted_layers(model)), init_lora_weights=False,
                            **settings)
        theirs = get_peft_model(tiny_transformer(), config).eval()
        theirs.save_pretrained(tmp_path / name)
        lora = ConditionLora.load(tmp_path / name, model)
        made = plain_inputs()
        with torch.no_grad():
            ours = flux_forward(model, lora, **made, latent_lora=True)
            assert (theirs(**made, return_dict=False)[0] - ours).abs().max() < 1e-5, name
            again = ConditionLora.load(lora.save(tmp_path / f"{name}-ours"), model)
            assert (flux_forward(model, again, **made, latent_lora=True) - ours).abs().max() < 1e-6

    file = tmp_path / "plain" / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, word in (({"use_dora": True}, "DoRA"), ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
                         ({"lora_alpha": None}, None), ({"alpha_pattern": [1]}, "alpha_pattern is"),
                         ({"alpha_pattern": {"(": 1}}, "no pattern")):
        file.write_text(json.dumps(config | change))
        if word:
            with pytest.raises(UserError, match=word):
                ConditionLora.load(tmp_path / "plain", model)
    file.unlink()
    with pytest.raises(UserError, match="adapter_config.json"):
        ConditionLora.load(tmp_path / "plain", model)


def test_tensors_that_would_draw_something_else_silently(model, tmp_path):
    key, file = "transformer.x_embedder", tmp_path / "a.safetensors"
    down = {f"{key}.lora_A.weight": torch.zeros(4, 16)}
    changes = [({f"{key}.alpha": torch.ones(3)}, r"x_embedder\.alpha has shape \(3,\)"),
               ({f"{key}.alpha": torch.tensor(torch.nan)}, "alpha is nan"),
               ({"transformer.proj_out.alpha": torch.ones(())}, r"proj_out\.alpha .* no lora_A"),
               ({f"{key}.lora_A.weight": torch.full((4, 16), torch.nan)}, "x_embedder.lora_A.* not finite"),
               ({f"{key}.lora_A.weight": torch.zeros(4, 16, dtype=torch.int8)}, "dtype int8"),
               ({"lora_unet_x.lora_down.weight": torch.zeros(2, 3)}, r"lora_unet_x.*\(2, 3\)"),
               ({"transformer.x_embedder.lora_magnitude_vector": torch.zeros(4)}, "magnitude_vector")]
    for change, word in changes:
        save_file(tiny_lora(model).published_state_dict() | change, str(file))
        with pytest.raises(UserError, match=word):
            ConditionLora.load(file, model)
    for gutted in (down | {f"{key}.lora_B.weight": torch.zeros(32, 4)}, {}):
        save_file(gutted, str(file))
        with pytest.raises(UserError, match="nor anything else of that block|no LoRA tensors"):
            ConditionLora.load(file, model)
    for adapter, word in (("[1]", "lora_adapter_metadata"), ("{", "lora_adapter_metadata"),
                          ('{"transformer.lora_alpha": "x"}', "lora_alpha is 'x'"),
                          ('{"transformer.alpha_pattern": [1]}', "alpha_pattern is"),
                          ('{"transformer.use_dora": true}', "DoRA")):
        save_file(tiny_lora(model).published_state_dict(), str(file), metadata={"lora_adapter_metadata": adapter})
        with pytest.raises(UserError, match=word):
            ConditionLora.load(file, model)


def test_files_that_are_not_a_lora(model, tmp_path):
    whole = tiny_lora(model).save(tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    torch.save({"a": torch.zeros(1)}, tmp_path / "p.bin")
    torch.save({"a": torch.zeros(1)}, tmp_path / "disguised.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 1)}, str(tmp_path / "kohya.safetensors"))
    save_file({"transformer.x_embedder.lora_A.weight": torch.zeros(4, 16)},
              str(tmp_path / "half.safetensors"))
    for name, word in (("cut.safetensors", "not a whole"), ("p.bin", "pickle"),
                       ("none.safetensors", "no such file"),
                       ("disguised.safetensors", "not a whole"), ("kohya.safetensors", "lora_unet_x"),
                       ("half.safetensors", "no partner"), (".", "no such file")):
        with pytest.raises(UserError, match=word) as error:
            ConditionLora.load(tmp_path / name, model)
        assert str(tmp_path) in str(error.value)
