"""What a corrector step costs beside a plain FLUX step over as many tokens.

The condition's tokens are unavoidable work; everything beyond them (the LoRA, a second modulation,
splitting and joining) is overhead. So the comparison is at equal token count: `image + condition +
text` through `denoise` against `image + condition` image tokens and `text` through diffusers' own
forward of the same model. The official code was not timed here; ReflectionFlow, section 8.1, puts its LoRA at
0.96 TFLOP where the condition's tokens alone need 0.18, since it computes it on every token, and section 8.2
adds that it runs the condition's layers as calls of their own.

In the last single block we leave out what would be thrown away: the text's and the condition's queries, MLP
and output. FLUX has 57 blocks, so that this is nothing there, but of the few blocks of the model timed
here it is several per cent. So the ratio without it is given too: it is the one that carries over.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
from torch import Tensor

from ..clock import seconds_of
from .lora import ConditionLora
from .transformer import Condition, denoise, prepare

SMALL = {"image": 64, "condition": 64, "text": 16}
"""144 tokens, as in the shapes world with short prompts."""
LARGE = {"image": 1024, "condition": 256, "text": 128}
"""1,408 tokens: 512 x 512 with a condition of 256 x 256, on FLUX's grid of 16 pixels."""


def step_ratio(tokens: dict[str, int], *, heads: int = 4, head_width: int = 64, double_blocks: int = 2,
               single_blocks: int = 4, rank: int = 16, batch: int = 1, repeats: int = 15,
               dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
    """Medians of interleaved runs of a corrector step and a plain step with the same random model, in seconds.

    Args:
        tokens: counts of "image", "condition" and "text" tokens, e.g. `SMALL`. Image and condition
            counts are squares in practice but need not be.
        repeats: timed runs of each; they take turns, so that a busy machine slows all.

    Returns: `ratio` (corrector over plain, the median of the ratios of neighbouring runs),
    `ratio_without_pruning` (the same with the last block computed whole), `corrector_seconds`,
    `plain_seconds` (medians), and the settings.
    """
    from diffusers import FluxTransformer2DModel

    rotary = (head_width - 2 * (head_width * 3 // 8), head_width * 3 // 8, head_width * 3 // 8)
    random = torch.Generator().manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=64, num_layers=double_blocks, num_single_layers=single_blocks, num_attention_heads=heads,
        attention_head_dim=head_width, joint_attention_dim=128, pooled_projection_dim=64,
        guidance_embeds=True, axes_dims_rope=rotary).eval()
    model = model.to(device) if dtype == torch.float32 else model.to(device, dtype)
    lora = ConditionLora.fresh(model, rank, generator=random)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(device, dtype)

    n, m, length = tokens["image"], tokens["condition"], tokens["text"]
    latents, text, pooled = noise(batch, n + m, 64), noise(batch, length, 128), noise(batch, 64)
    when, guidance = torch.full((batch,), 0.5).to(device, dtype), torch.full((batch,), 3.5).to(device, dtype)
    image_ids, text_ids = torch.zeros(n + m, 3, device=device), torch.zeros(length, 3, device=device)

    with torch.inference_mode():
        condition = Condition(latents[:, n:].contiguous(), image_ids[n:])
        prepared = prepare(model, lora, text, pooled, image_ids[:n], text_ids, condition)
        image = latents[:, :n].contiguous()

        def corrector(prune: bool = True) -> None:
            denoise(model, prepared, image, when, guidance, prune=prune)

        def whole() -> None:
            corrector(prune=False)

        def plain() -> None:
            model(hidden_states=latents, encoder_hidden_states=text, pooled_projections=pooled, timestep=when,
                  guidance=guidance, img_ids=image_ids, txt_ids=text_ids, return_dict=False)

        for _ in range(3):
            corrector(), plain(), whole()
        rounds = [tuple(seconds_of(work, device) for work in (corrector, plain, whole)) for _ in range(repeats)]
    return {
        "ratio": statistics.median(ours / theirs for ours, theirs, _ in rounds),
        "ratio_without_pruning": statistics.median(ours / theirs for _, theirs, ours in rounds),
        "corrector_seconds": statistics.median(ours for ours, _, _ in rounds),
        "plain_seconds": statistics.median(theirs for _, theirs, _ in rounds),
        "tokens": dict(tokens), "total_tokens": n + m + length, "batch": batch, "rank": rank,
        "repeats": repeats,
        "width": heads * head_width, "double_blocks": double_blocks, "single_blocks": single_blocks,
        "dtype": str(dtype).removeprefix("torch."), "device": str(device),
    }
