"""What FLUX.1's components are like, where a single file brings no config.json.

Sizes are read from the shapes of the tensors. What no shape tells is FLUX.1-dev's own, as `architectures.FLUX` has it:
the groups of the autoencoder's norms, its scale and shift, the activation of CLIP. How the rotary axes divide a head
goes by the head's width.
"""

from __future__ import annotations

from typing import Any

from ...presets.architectures import FLUX
from ...types import UserError
from .original_names import Shapes

CLIP_HEAD = 64
"""Width of a head in every CLIP."""
DEV_SCHEDULER = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5,
                 "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
SCHNELL_SCHEDULER = {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False}


def transformer_config(shapes: Shapes) -> dict[str, Any]:
    """A `FluxTransformer2DModel`'s config from the shapes of its tensors, by diffusers' names."""
    width, channels = shapes["x_embedder.weight"]
    head = shapes["transformer_blocks.0.attn.norm_q.weight"][0]
    # FLUX.1 divides its 128 into 16 for what is always 0, and 56 each for rows and columns; an axis is even.
    axis = head * 7 // 32 * 2
    return FLUX["transformer"].config | {
        "in_channels": channels, "num_layers": _count(shapes, "transformer_blocks."),
        "num_single_layers": _count(shapes, "single_transformer_blocks."), "attention_head_dim": head,
        "num_attention_heads": width // head, "joint_attention_dim": shapes["context_embedder.weight"][1],
        "pooled_projection_dim": shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        "guidance_embeds": "time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        "axes_dims_rope": [head - 2 * axis, axis, axis]}


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """An `AutoencoderKL`'s config from the shapes of its tensors, by the authors' names or by diffusers'."""
    blocks, block = ("encoder.down.", "block") if "encoder.down.0.block.0.conv1.weight" in shapes else (
        "encoder.down_blocks.", "resnets")
    number = _count(shapes, blocks)
    return FLUX["vae"].config | {
        "in_channels": shapes["encoder.conv_in.weight"][1], "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"{blocks}{i}.{block}.0.conv1.weight"][0] for i in range(number)],
        "layers_per_block": _count(shapes, f"{blocks}0.{block}."),
        "down_block_types": ["DownEncoderBlock2D"] * number, "up_block_types": ["UpDecoderBlock2D"] * number}


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """A `CLIPTextModel`'s config from the shapes of its tensors.

    CLIP's end mark is its last word, for which transformers has the number 2 stand, whatever the vocabulary.
    """
    vocabulary, width = shapes["text_model.embeddings.token_embedding.weight"]
    return FLUX["text_encoder"].config | {
        "vocab_size": vocabulary, "hidden_size": width, "projection_dim": width,
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers."),
        "num_attention_heads": max(1, width // CLIP_HEAD),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0]}


def t5_config(shapes: Shapes) -> dict[str, Any]:
    """A `T5EncoderModel`'s config from the shapes of its tensors."""
    first = "encoder.block.0.layer"
    vocabulary, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
    return FLUX["text_encoder_2"].config | {
        "vocab_size": vocabulary, "d_model": width, "num_heads": heads,
        "d_kv": shapes[f"{first}.0.SelfAttention.q.weight"][0] // heads,
        "d_ff": shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0],
        "num_layers": _count(shapes, "encoder.block."), "relative_attention_num_buckets": buckets}


def check_together(configs: dict[str, dict[str, Any]], named: dict[str, str]) -> None:
    """UserError unless the parts take what the others make; before any weight is read.

    Args: configs, of the parts by name; named, what an error calls each.
    """
    transformer = configs["transformer"]
    pairs = (("text_encoder", "hidden_size", "pooled_projection_dim", 1, "FLUX.1's is CLIP-L"),
             ("text_encoder_2", "d_model", "joint_attention_dim", 1, "FLUX.1's is T5 v1.1 XXL"),
             ("vae", "latent_channels", "in_channels", 4, "FLUX.1's is ae.safetensors"))
    for part, makes, takes, times, right in pairs:
        made, taken = configs[part].get(makes), transformer.get(takes)
        if made is not None and taken is not None and made * times != taken:
            raise UserError(f"{named[part]}: its {makes} is {made}, with which a transformer's {takes} is "
                            f"{made * times}; {named['transformer']} has {taken}; expected parts of one model; try the "
                            f"{part} that belongs to it: {right}")


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbered things there are below a prefix."""
    numbers = {key[len(prefix):].split(".", 1)[0] for key in shapes if key.startswith(prefix)}
    return len({n for n in numbers if n.isdigit()})
