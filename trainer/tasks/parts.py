"""The parts of a small FLUX-family model before it is trained: diffusers' and transformers' own classes, small."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reflect_core.shapes.prompt import WORDS
from reflect_core.shapes.repair import REFLECTION_WORDS
from reflect_core.shapes.tokenizer import write_word_tokenizer

from ..settings import BaseModel
from .common import CLIP_LENGTH

BUCKETS = 16
"""Of distances in one direction, for T5's attention; the first half of them are exact."""
NEIGHBOURS = ((-1,), (-2, -3), (1, 2, 3), ())
"""Where each of T5's heads looks at first: the word before, those before it, the words behind, everywhere."""
FOCUS = 5.0
"""How much more, in logits: four fifths of the weight among forty tokens."""


def build_components(m: BaseModel, vae: AutoencoderKL, folder: Path) -> dict:
    """All parts of a FluxPipeline, random but for the VAE; tokenizers are written to `folder`."""
    text = m.text_width
    known = sorted(WORDS | set(REFLECTION_WORDS))
    clip_words = write_word_tokenizer(folder / "tokenizer", known, "clip", CLIP_LENGTH)
    t5_words = write_word_tokenizer(folder / "tokenizer_2", known, "t5", m.text_length)
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(clip_words), hidden_size=text, intermediate_size=2 * text, projection_dim=text,
        num_hidden_layers=m.text_layers, num_attention_heads=4, max_position_embeddings=CLIP_LENGTH,
        bos_token_id=2, eos_token_id=3, pad_token_id=0))
    t5 = T5EncoderModel(T5Config(
        vocab_size=len(t5_words), d_model=text, d_kv=text // 4, d_ff=2 * text, num_layers=m.text_layers,
        num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
        relative_attention_num_buckets=2 * BUCKETS, relative_attention_max_distance=64))
    look_around(t5)
    third = m.head_dim // 8 * 3
    transformer = FluxTransformer2DModel(
        in_channels=4 * vae.config.latent_channels, num_layers=m.double_blocks,
        num_single_layers=m.single_blocks, attention_head_dim=m.head_dim, num_attention_heads=m.heads,
        joint_attention_dim=text, pooled_projection_dim=text, guidance_embeds=True,
        axes_dims_rope=(m.head_dim - 2 * third, third, third))
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for name, module in block.named_modules():
            if name in ("norm1.linear", "norm1_context.linear", "norm.linear"):
                torch.nn.init.zeros_(module.weight)  # adaLN-zero: every block starts as the identity
    torch.nn.init.zeros_(transformer.proj_out.weight)
    return {"transformer": transformer, "vae": vae, "text_encoder": clip, "text_encoder_2": t5,
            "tokenizer": AutoTokenizer.from_pretrained(folder / "tokenizer"),
            "tokenizer_2": AutoTokenizer.from_pretrained(folder / "tokenizer_2"),
            "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=m.shift)}


@torch.no_grad()
def look_around(t5: T5EncoderModel) -> None:
    """Have T5's heads look at neighbouring words from the start, as those of a trained encoder do.

    At random a word looks at all places alike, most of them padding, and training does not get away from there: after
    half a million pictures 'red' made no difference yet to the 'circle' behind it. FLUX gives text no places of its own,
    so such a base knows which words there are, and neither what belongs together nor what is left of what.
    """
    table = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight  # (2 * BUCKETS, heads)
    for head, offsets in enumerate(NEIGHBOURS):
        for offset in offsets:
            table[-offset if offset < 0 else BUCKETS + offset, head] += FOCUS
