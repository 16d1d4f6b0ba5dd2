"""Our forward over diffusers' modules: plain FLUX without a condition, and what a condition may change."""

import math

import pytest
import torch
from tiny_flux import tiny_lora, tiny_transformer

from reflect_core.generators.flux_corrector import blocks
from reflect_core.generators.flux_corrector.latents import grid_ids, pack, unpack
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.timing import step_ratio
from reflect_core.generators.flux_corrector.transformer import (
    Condition,
    LoraDeltas,
    Prepared,
    denoise,
    flux_forward,
    prepare,
    with_texts,
)


@pytest.fixture(scope="module")
def model():
    return tiny_transformer()


@pytest.fixture(scope="module")
def lora(model):
    return tiny_lora(model)


def inputs(batch: int = 2, seed: int = 0, condition: bool = True) -> dict:
    random = torch.Generator().manual_seed(seed)
    made = dict(hidden_states=torch.randn(batch, 16, 16, generator=random),
                encoder_hidden_states=torch.randn(batch, 5, 32, generator=random),
                pooled_projections=torch.randn(batch, 32, generator=random),
                timestep=torch.rand(batch, generator=random), guidance=torch.full((batch,), 3.5),
                img_ids=grid_ids(4, 4), txt_ids=torch.zeros(5, 3))
    if condition:
        made |= dict(condition_tokens=torch.randn(batch, 4, 16, generator=random),
                     condition_ids=grid_ids(2, 2, (0, -2)))
    return made


def row(made: dict, index: int) -> dict:
    return {k: v if k.endswith("ids") else v[index:index + 1] for k, v in made.items()}


def prepared_of(model, lora, made: dict, **flags) -> Prepared:
    names = ("encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    return prepare(model, lora, *(made[name] for name in names),
                   Condition(made["condition_tokens"], made["condition_ids"]), **flags)


@torch.no_grad()
@pytest.mark.parametrize("guided", [True, False])
def test_without_condition_it_is_the_plain_transformer(lora, guided):
    model = tiny_transformer(guidance_embeds=guided)
    made = inputs(condition=False)
    plain = model(**made if guided else made | {"guidance": None}, return_dict=False)[0]
    assert (flux_forward(model, lora, **made) - plain).abs().max() < 1e-5
    assert (flux_forward(model, None, **made) - plain).abs().max() < 1e-5


@torch.no_grad()
def test_condition_and_lora_change_the_output(model, lora):
    made = inputs()
    without = flux_forward(model, lora, **inputs(condition=False))
    bare = flux_forward(model, None, **made)
    full = flux_forward(model, lora, **made)
    assert (bare - without).abs().max() > 1e-3
    assert (full - bare).abs().max() > 1e-3


@torch.no_grad()
def test_batch_rows_equal_singles(model, lora):
    made = inputs(batch=3)
    together = flux_forward(model, lora, **made)
    for index in range(3):
        assert (flux_forward(model, lora, **row(made, index)) - together[index]).abs().max() < 1e-5


@torch.no_grad()
def test_cut_attention_makes_the_output_independent_of_the_condition(model, lora):
    made = inputs()
    other = made | {"condition_tokens": made["condition_tokens"] + 5}
    same = [flux_forward(model, lora, **m, union_cond_attn=False) for m in (made, other)]
    assert torch.equal(*same)
    plain = flux_forward(model, lora, **inputs(condition=False))
    assert (same[0] - plain).abs().max() < 1e-5


@torch.no_grad()
def test_prepared_once_serves_every_step(model, lora):
    made = inputs()
    prepared = prepared_of(model, lora, made)
    for seed in (3, 4):
        step = made | {k: inputs(seed=seed)[k] for k in ("hidden_states", "timestep")}
        ours = denoise(model, prepared, step["hidden_states"], step["timestep"], step["guidance"])
        assert torch.equal(ours, flux_forward(model, lora, **step))


@torch.no_grad()
def test_pruning_leaves_out_only_what_is_thrown_away(model, lora):
    made = inputs()
    prepared = prepared_of(model, lora, made)
    step = [made[k] for k in ("hidden_states", "timestep", "guidance")]
    assert (denoise(model, prepared, *step) - denoise(model, prepared, *step, prune=False)).abs().max() < 1e-5
    seen = []
    hook = model.single_transformer_blocks[-1].attn.to_q.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[1]))
    for prune in (True, False):
        denoise(model, prepared, *step, prune=prune)
    hook.remove()
    assert seen == [16, 16 + 5 + 4]


@torch.no_grad()
@pytest.mark.parametrize("latent_lora", [False, True])
def test_other_texts_in_the_same_batch(model, lora, latent_lora):
    """`with_texts` does only what depends on them, with deltas made once, and equals a fresh `prepare`."""
    made, deltas = inputs(), LoraDeltas.of(lora, model)
    other = made | {k: inputs(seed=9)[k] for k in ("encoder_hidden_states", "pooled_projections")}
    first = prepared_of(model, deltas, made, latent_lora=latent_lora)
    second = with_texts(model, first, other["encoder_hidden_states"], other["pooled_projections"])
    assert second.joint is first.joint and second.condition is first.condition
    for texts, prepared in ((made, first), (other, second)):
        ours = denoise(model, prepared, made["hidden_states"], made["timestep"], made["guidance"])
        assert torch.equal(ours, flux_forward(model, lora, **texts, latent_lora=latent_lora))


@torch.no_grad()
def test_condition_key_is_step_invariant_in_block_0_only(model, lora):
    seen = {}

    def watch(name):
        return lambda module, args, output: seen.setdefault(name, []).append(output[:, -4:])

    hooks = [b.attn.norm_k.register_forward_hook(watch(i)) for i, b in enumerate(model.transformer_blocks)]
    made = inputs()
    for seed in (3, 4):
        flux_forward(model, lora, **made | {"hidden_states": inputs(seed=seed)["hidden_states"]})
    for hook in hooks:
        hook.remove()
    assert torch.equal(*seen[0])
    assert (seen[1][0] - seen[1][1]).abs().max() > 1e-4


@torch.no_grad()
def test_condition_scale_is_a_log_bias_on_both_quadrants(model, lora):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 5, 1, 4, generator=random) for _ in range(3))
    tables = torch.ones(1, 5, 1, 4), torch.zeros(1, 5, 1, 4)
    bias = torch.zeros(5, 5)
    bias[:3, 3:] = bias[3:, :3] = math.log(0.5)
    weights = (q[0, :, 0] @ k[0, :, 0].T / 2).exp()
    weights[:3, 3:] *= 0.5
    weights[3:, :3] *= 0.5
    expected = weights / weights.sum(-1, keepdim=True) @ v[0, :, 0]
    ours = blocks.Joint(3, *tables, bias=bias).attend(q, k, v)
    assert torch.allclose(ours[0], expected, atol=1e-6)

    made = inputs()
    full, weak = (flux_forward(model, lora, **made, condition_scale=s) for s in (1.0, 1e-9))
    cut = flux_forward(model, lora, **made, union_cond_attn=False)
    assert (full - cut).abs().max() > 1e-3
    assert (weak - cut).abs().max() < 1e-4


def test_gradients_reach_the_lora_and_only_it(model):
    lora = ConditionLora.fresh(model, 4, generator=torch.Generator().manual_seed(0))
    made = inputs()
    grads = []
    for checkpointing in (False, True):
        lora.zero_grad()
        flux_forward(model, lora, **made, checkpointing=checkpointing).square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in lora.named_parameters() if p.grad is not None})
    assert all(p.grad is None for p in model.parameters())
    assert grads[0]["up.transformer_blocks/0/attn/to_q"].abs().max() > 0
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][n], grads[1][n], atol=1e-7) for n in grads[0])


def test_one_step_along_the_gradient_lowers_the_loss(model):
    lora = ConditionLora.fresh(model, 4, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(lora.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        loss = (flux_forward(model, lora, **inputs()) - 0.5).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_it_compiles_without_a_graph_break(model):
    lora = ConditionLora.fresh(model, 4)
    compiled = torch.compile(lambda m: flux_forward(model, lora, **m), backend="eager", fullgraph=True)
    made = inputs()
    assert (compiled(made) - flux_forward(model, lora, **made)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_full(model, lora, dtype):
    made = inputs()
    half = tiny_transformer().to(dtype)
    out = flux_forward(half, lora, **{k: v if k.endswith("ids") else v.to(dtype) for k, v in made.items()})
    full = flux_forward(model, lora, **made)
    assert out.dtype == dtype
    assert (out.float() - full).norm() / full.norm() < 0.05


@pytest.mark.parametrize("biased", [False, True])
def test_attention_written_out_is_the_same(biased):
    random = torch.Generator().manual_seed(0)
    bias = torch.randn(7, 9, generator=random) if biased else None
    q, k, v = (torch.randn(2, 3, n, 8, generator=random, requires_grad=True) for n in (7, 9, 9))
    wanted = torch.randn(2, 3, 7, 8, generator=random)

    def grads(out):
        return [out, *torch.autograd.grad((out * wanted).sum(), (q, k, v))]

    for ours, theirs in zip(grads(blocks.attention(q, k, v, bias)),
                            grads(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias))):
        assert (ours - theirs).abs().max() < 1e-5


def test_attention_is_written_out_for_short_training_only(monkeypatch):
    fused = torch.nn.functional.scaled_dot_product_attention
    calls = []
    monkeypatch.setattr(blocks.F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k))
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    blocks.attention(q, q, q)
    assert not calls
    with torch.no_grad():
        blocks.attention(q, q, q)
    blocks.attention(q.detach(), q.detach(), q.detach())
    monkeypatch.setattr(blocks, "WRITTEN_OUT", 3)
    blocks.attention(q, q, q)
    assert len(calls) == 3


def test_pack_and_unpack():
    latents = torch.randn(2, 4, 6, 8)
    tokens = pack(latents)
    assert tokens.shape == (2, 12, 16)
    assert torch.equal(unpack(tokens, 3, 4), latents)
    assert torch.equal(tokens[0, 5].view(4, 2, 2), latents[0, :, 2:4, 2:4])
    assert grid_ids(2, 2, (0, -2)).tolist() == [[0, 0, -2], [0, 0, -1], [0, 1, -2], [0, 1, -1]]


def test_step_ratio_reports_its_numbers():
    got = step_ratio({"image": 16, "condition": 4, "text": 4}, heads=2, head_width=16, double_blocks=1,
                     single_blocks=1, rank=2, repeats=3)
    assert got["total_tokens"] == 24
    assert all(got[name] > 0 for name in ("ratio", "ratio_without_pruning", "corrector_seconds", "plain_seconds"))
