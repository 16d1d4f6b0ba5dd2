"""The activation of compiled training is FLUX's, and what is trained with it is an ordinary transformer."""

import copy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from tiny_flux import tiny_transformer

from reflect_core.generators.flux_corrector.latents import grid_ids
from reflect_core.generators.flux_corrector.transformer import flux_forward
from trainer.tasks import gelu
from trainer.tasks.gelu import TanhGelu, quicken


def test_it_is_gelu_compiled_or_not():
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).float().requires_grad_()
    expected = F.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(expected.sum(), x)
    for function in (TanhGelu(), torch.compile(TanhGelu())):
        found = function(x)
        assert (found - expected).abs().max() < 2e-6
        assert (torch.autograd.grad(found.sum(), x)[0] - slope).abs().max() < 1e-5


def test_the_transformer_computes_the_same_with_it(monkeypatch):
    plain = tiny_transformer()
    quick = copy.deepcopy(plain)
    quicken(quick)
    assert set(quick.state_dict()) == set(plain.state_dict())
    calls = []
    monkeypatch.setattr(gelu, "F", SimpleNamespace(gelu=lambda x, **how: calls.append(1) or F.gelu(x, **how)))
    for block in quick.transformer_blocks:
        assert block.ff.net[0].gelu is block.ff_context.net[0].gelu is gelu.tanh_gelu
    random = torch.Generator().manual_seed(0)
    made = (torch.randn(2, 16, 16, generator=random), torch.randn(2, 5, 32, generator=random),
            torch.randn(2, 32, generator=random), torch.rand(2, generator=random), torch.full((2,), 3.5),
            grid_ids(4, 4), torch.zeros(5, 3))
    assert torch.equal(flux_forward(quick, None, *made), flux_forward(plain, None, *made))
    # The last single block is computed apart, and with it.
    assert len(calls) == len(plain.single_transformer_blocks) + 2 * len(plain.transformer_blocks)
    compiled = torch.compile(flux_forward)(quick, None, *made)
    assert (compiled - flux_forward(plain, None, *made)).abs().max() < 1e-4
