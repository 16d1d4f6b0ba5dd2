"""A tiny random member of the FLUX family in diffusers layout, for tests: milliseconds a step."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reflect_core.generators.flux_corrector.folder import write_folder
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.shapes.tokenizer import write_word_tokenizer

WORDS = ("a an the one two three red green blue yellow circle square triangle left right of above below and "
         "add remove make it move there is no should be")
TEXT_LENGTH = 12
CONDITION_SIZE = 16

# FLUX.1-dev as its config.json describes it, for tests on the meta device.
FLUX_DEV = dict(in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
                num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768,
                guidance_embeds=True, axes_dims_rope=(16, 56, 56))


def tiny_transformer(seed: int = 0, **changes) -> FluxTransformer2DModel:
    """A random FLUX transformer: 16 channels, 2 heads of 16, 2 double and 2 single blocks."""
    torch.manual_seed(seed)
    config = dict(in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16,
                  num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32,
                  guidance_embeds=True, axes_dims_rope=(4, 6, 6))
    return FluxTransformer2DModel(**(config | changes)).eval().requires_grad_(False)


def tiny_lora(transformer: FluxTransformer2DModel, rank: int = 4, seed: int = 1, scale: float = 0.2,
              alpha: float | None = None) -> ConditionLora:
    """A LoRA that does something: a fresh one has B zero."""
    random = torch.Generator().manual_seed(seed)
    lora = ConditionLora.fresh(transformer, rank, alpha, generator=random).requires_grad_(False)
    for up in lora.up.values():
        up.copy_(torch.randn(up.shape, generator=random) * scale)
    return lora


def write_tiny_flux(folder: str | Path, lora: bool = True, settings: dict | None = None, **changes) -> Path:
    """Write a whole tiny model: 4 latent channels, 4 pixels to a latent side, 8 to a token."""
    folder = Path(folder)
    transformer = tiny_transformer(**changes)
    words = write_word_tokenizer(folder / "tokenizer", [WORDS], "clip", max_length=TEXT_LENGTH)
    words_2 = write_word_tokenizer(folder / "tokenizer_2", [WORDS], "t5", max_length=TEXT_LENGTH)
    torch.manual_seed(7)
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=37, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=TEXT_LENGTH, projection_dim=32, bos_token_id=2,
        eos_token_id=3, pad_token_id=0))
    t5 = T5EncoderModel(T5Config(vocab_size=len(words_2), d_model=32, d_kv=16, d_ff=37, num_layers=2,
                                 num_heads=2, feed_forward_proj="gated-gelu"))
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    if settings is None:
        settings = {"defaults": {"width": 32, "height": 32, "steps": 3},
                    "options": {"condition_size": CONDITION_SIZE, "max_sequence_length": TEXT_LENGTH}}
    return write_folder(folder, transformer=transformer, vae=vae, text_encoder=clip, text_encoder_2=t5,
                        scheduler=scheduler, lora=tiny_lora(transformer) if lora else None, settings=settings)
