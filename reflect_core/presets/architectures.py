"""What the parts of the published models are: classes and the numbers that make their size. No weights.

As their own config.json files have them, sources: ReflectionFlow, section 1.1, and Reflect-DiT, section 1.1, of the
papers' official code, and the configs of the repositories in `published.py`. What is left out is the class's default,
which of FLUX.1 is little: `flux_corrector/configs.py` takes from here what no shape in a single file tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Part:
    """One component: its class in diffusers or transformers, and its config."""

    library: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)


FLUX = {
    "text_encoder": Part("transformers", "CLIPTextModel", {
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768, "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}),
    "text_encoder_2": Part("transformers", "T5EncoderModel", {
        "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-06, "is_encoder_decoder": False,
        "use_cache": False, "pad_token_id": 0, "eos_token_id": 1}),
    "vae": Part("diffusers", "AutoencoderKL", {
        "in_channels": 3, "out_channels": 3, "latent_channels": 16, "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2, "norm_num_groups": 32, "act_fn": "silu", "mid_block_add_attention": True,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "use_quant_conv": False, "use_post_quant_conv": False, "sample_size": 1024, "scaling_factor": 0.3611,
        "shift_factor": 0.1159}),
    "transformer": Part("diffusers", "FluxTransformer2DModel", {
        "patch_size": 1, "in_channels": 64, "out_channels": None, "num_layers": 19, "num_single_layers": 38,
        "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
        "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56)}),
}
"""FLUX.1-dev."""
FLUX_RANK = 32
"""Of the corrector's LoRA."""

SANA = {
    "text_encoder": Part("transformers", "Gemma2Model", {
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256}),
    "image_encoder": Part("transformers", "SiglipVisionModel", {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 16}),
    "vae": Part("diffusers", "AutoencoderDC", {
        "latent_channels": 32, "attention_head_dim": 32, "encoder_block_types": ("ResBlock",) * 3 + (
            "EfficientViTBlock",) * 3, "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "encoder_layers_per_block": (2, 2, 2, 3, 3, 3), "decoder_layers_per_block": (3, 3, 3, 3, 3, 3),
        "encoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)),
        "decoder_qkv_multiscales": ((), (), (), (5,), (5,), (5,)), "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate", "scaling_factor": 0.41407}),
    "transformer": Part("diffusers", "SanaTransformer2DModel", {
        "in_channels": 32, "out_channels": 32, "num_attention_heads": 70, "attention_head_dim": 32, "num_layers": 20,
        "num_cross_attention_heads": 20, "cross_attention_head_dim": 112, "cross_attention_dim": 2240,
        "caption_channels": 2304, "mlp_ratio": 2.5, "sample_size": 32, "patch_size": 1,
        "interpolation_scale": None}),
}
"""SANA-1.0-1.6B, and SigLIP for Reflect-DiT's pictures."""
REFLECT = {"reflection": True, "vision_feature_dim": 1024, "num_reflection_transformer_layers": 2}
"""What the config of Reflect-DiT's checkpoint has besides SANA's."""
