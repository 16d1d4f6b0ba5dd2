"""Reflect-DiT's transformer: golden vectors, the released size, and the cached forward against the plain one."""

import json
from pathlib import Path

import pytest
import torch
from check_golden import BOUND, check, read_golden
from tiny_sana import prepared

from reflect_core.generators.reflect_dit.cached import _lengths, denoise
from reflect_core.generators.reflect_dit.checkpoint import build
from reflect_core.generators.reflect_dit.context import Pairs, rotary, rows_of
from reflect_core.generators.reflect_dit.transformer import reflect_forward
from reflect_core.types import UserError

GOLDEN = Path(__file__).parent / "golden" / "reflect_dit_transformer.safetensors"
RELEASED = {
    "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
    "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
    "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32, "patch_size": 1, "reflection": True,
    "vision_feature_dim": 1024, "num_reflection_transformer_layers": 2, "reflection_mode": "vanilla",
    "context_qk_norm": None, "_class_name": "SanaTransformer2DModelWithContext"}


@pytest.fixture(scope="module")
def golden():
    return read_golden(GOLDEN)


@pytest.fixture(scope="module")
def model(golden):
    metadata, weights, _, _ = golden
    return build(metadata["config"], weights)


def test_every_golden_case(golden):
    found = check(GOLDEN)
    assert set(found) == set(golden[3]) and max(found.values()) < BOUND, found


def test_the_released_size():
    with torch.device("meta"):
        transformer, context = build(RELEASED)
    count = {part: sum(p.numel() for p in part.parameters()) for part in (transformer, context)}
    assert count[context] == 132_941_760 and sum(count.values()) == 1_737_404_512
    assert (len(context.state_dict()), len(transformer.state_dict())) == (29, 396)
    assert context.state_dict()["reflection_transformer.1.ff.up_proj.weight"].shape == (5600, 2240)


def test_a_new_context_says_nothing_at_first(model, golden):
    _, fresh = build(golden[0]["config"])
    assert not fresh.reflection_norm.weight.any()


def test_the_rotary_frequencies_are_llamas_and_can_be_rounded():
    angles = torch.atan2(rotary(2, 112, False)[1], rotary(2, 112, False)[0])[1]
    assert torch.allclose(angles[:4], torch.tensor([1, 0.7911, 0.6258, 0.4951]), atol=1e-4)
    assert torch.equal(angles[:56], angles[56:])
    exact, rounded = (rotary(241, 112, bf16)[0][240] for bf16 in (False, True))
    assert (exact - rounded).abs().max() > 0.1


def sample(seed, count=5, image_tokens=16, length=14):
    """Random pairs with feedback of 3 to `length` tokens, two prompts, and latents."""
    random = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=random)

    lengths = torch.randint(3, length + 1, (count,), generator=random)
    mask = (torch.arange(length) < lengths[:, None]).long()
    prompts = [(noise(1, 10, 24), (torch.arange(10) < size).long()[None]) for size in (7, 10)]
    return noise(count, image_tokens, 20), noise(count, length, 24), mask, prompts, noise(2, 4, 8, 8)


@pytest.mark.parametrize("switches", [{}, {"mask_last": False}, {"rotary_bf16": False}, {"pad_context": False}])
@pytest.mark.parametrize("contexts", [((0, 1, 2), (3,)), ((4,), (1, 0)), (None, (2,)), (None, None)])
def test_cached_equals_plain_one_prompt_at_a_time(model, contexts, switches):
    """Two prompts with guidance in one call, over three time steps, as four rows: each as the official call of one."""
    transformer, context = model
    plainly = {k.replace("pad_context", "mask_context"): v != (k == "pad_context") for k, v in switches.items()}
    images, texts, mask, prompts, latents = sample(3)
    nothing = (torch.zeros(1, 10, 24) + 0.1, (torch.arange(10) < 1).long()[None])
    steps = torch.tensor([999.0, 749.0, 136.0])
    rows = [(nothing, None), (nothing, None), *zip(prompts, contexts)]
    pairs = Pairs(images, texts, mask, tuple(row for _, row in rows))
    states, masks = (torch.cat([prompt[k] for prompt, _ in rows]) for k in (0, 1))
    with torch.no_grad():
        made = prepared(transformer, context, steps, states, masks, pairs, [2, 3, 0, 1], **switches)
        for number, t in enumerate(steps):
            cached = denoise(transformer, made, torch.cat([latents, latents]), number)
            for prompt in (0, 1):
                pair = Pairs(images, texts, mask, (None, contexts[prompt]))
                plain = reflect_forward(transformer, context, latents[prompt].expand(2, -1, -1, -1),
                                        torch.cat([nothing[0], prompts[prompt][0]]), t.expand(2),
                                        torch.cat([nothing[1], prompts[prompt][1]]), pair, **plainly)
                assert (cached[[prompt, prompt + 2]] - plain).abs().max() < 1e-5


def test_cached_plain_sana_is_diffusers_own(model):
    transformer, _ = model
    _, _, _, prompts, latents = sample(5)
    states, masks = (torch.cat([prompt[k] for prompt in prompts]) for k in (0, 1))
    with torch.no_grad():
        made = prepared(transformer, None, torch.tensor([500.0]), states, masks)
        own = transformer(latents, states, torch.tensor([500.0, 500.0]), encoder_attention_mask=masks).sample
        assert (denoise(transformer, made, latents, 0) - own).abs().max() < 1e-5


def test_padding_in_the_context_can_be_left_out(model):
    """The official way lets a short row see the padding that a longer one brings; masked, it does not."""
    transformer, context = model
    images, texts, mask, prompts, latents = sample(7)
    states, masks = (torch.cat([prompt[k] for prompt in prompts]) for k in (0, 1))
    t = torch.tensor([500.0, 500.0])
    with torch.no_grad():
        alone = reflect_forward(transformer, context, latents[:1], states[:1], t[:1], masks[:1],
                                Pairs(images, texts, mask, ((0,),)), mask_last=False)
        for masked in (True, False):
            both = reflect_forward(transformer, context, latents, states, t, masks,
                                   Pairs(images, texts, mask, ((0,), (1, 2, 3))), mask_last=False, mask_context=masked)
            assert ((both[:1] - alone).abs().max() < 1e-5) == masked


def test_what_is_attended_to_in_the_published_size(model):
    """Section 1.7: three pairs of 64 picture tokens and 11, 9 and 14 of feedback are 226; a dropped row has 68. The
    last one of the longer row is masked."""
    both = [226, 68]
    assert [(row.own, row.both, row.seen) for row in _lengths(both, [1, 0], True)] == [(226, 226, 225), (68, 226, 68)]
    assert [row.seen for row in _lengths([68, 68], [1, 0], True)] == [67, 67]
    assert [row.seen for row in _lengths(both, [1, 0], False)] == both


def test_more_pictures_than_texts_are_no_pairs():
    images, texts, mask, _, _ = sample(3, count=3)
    with pytest.raises(UserError, match="3 pictures, 2 feedback texts"):
        Pairs(images, texts[:2], mask[:2], ((0, 1, 2),))


def test_rows_of_an_index():
    assert rows_of([0, 0, 1, 2, 2, 2], 3, [1, 0, 1]) == ((0, 1), None, (3, 4, 5))


@pytest.mark.parametrize("change, said", [
    ({"reflection": None}, "plain SANA"), ({"vision_feature_dim": None}, "vision_feature_dim"),
    ({"num_reflection_transformer_layers": 0}, "num_reflection_transformer_layers"),
    ({"context_qk_norm": "rms"}, "context_qk_norm"), ({"reflection_mode": "other"}, "reflection_mode")])
def test_a_config_of_another_model(golden, change, said):
    with pytest.raises(UserError, match=said):
        build({**golden[0]["config"], **change})


@pytest.mark.parametrize("change, said", [
    (lambda w: w.pop("clip_norm.weight"), "clip_norm.weight is missing"),
    (lambda w: w.update(more=torch.zeros(2)), "more is of the shape"),
    (lambda w: w.update({"proj_out.bias": torch.zeros(9)}),
     r"proj_out.bias is of the shape \(9,\); expected the shape \(4,\)")])
def test_weights_of_another_model(golden, change, said):
    metadata, weights, _, _ = golden
    weights = dict(weights)
    change(weights)
    with pytest.raises(UserError, match=said):
        build(json.loads(json.dumps(metadata["config"])), weights)
