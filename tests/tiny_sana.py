"""A small random SANA model in diffusers' layout, with or without Reflect-DiT's weights and a picture encoder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler
from safetensors.torch import save_file
from transformers import Gemma2Config, Gemma2Model, SiglipVisionConfig, SiglipVisionModel

from reflect_core.generators.reflect_dit.cached import Prepared, keys_values, prepare
from reflect_core.generators.reflect_dit.checkpoint import build
from reflect_core.generators.reflect_dit.context import DROPPED_TEXT
from reflect_core.shapes.tokenizer import write_word_tokenizer

WORDS = ("a two red blue green circle square star add one left of . given user prompt enhanced simple "
         "make it the more")
SANA = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 2,
        "num_cross_attention_heads": 2, "cross_attention_head_dim": 16, "cross_attention_dim": 32,
        "caption_channels": 24, "mlp_ratio": 2.5, "sample_size": 8, "patch_size": 1}
REFLECT = {"reflection": True, "vision_feature_dim": 20, "num_reflection_transformer_layers": 2,
           "reflection_mode": "vanilla", "context_qk_norm": None}


def write_tiny_sana(folder: Path, reflect: bool = True, seed: int = 0, settings: dict | None = None,
                    wide: bool = False) -> Path:
    """`wide`: every linear layer of transformer and Gemma takes a multiple of 64 and makes one of 32, as bitsandbytes
    wants it on a CPU."""
    latents, hidden, middle, head, width = (32, 64, 64, 32, 32) if wide else (4, 24, 32, 12, 8)
    config = {**SANA, **REFLECT, "in_channels": latents, "out_channels": latents, "caption_channels": hidden}
    if wide:
        config |= {"num_attention_heads": 8, "cross_attention_head_dim": 32, "cross_attention_dim": 64}
    torch.manual_seed(seed)
    vae = AutoencoderDC(in_channels=3, latent_channels=latents, attention_head_dim=2, encoder_block_types="ResBlock",
                        decoder_block_types="ResBlock", encoder_block_out_channels=(width,) * 3,
                        decoder_block_out_channels=(width,) * 3, encoder_layers_per_block=(1, 1, 1),
                        decoder_layers_per_block=(1, 1, 1), encoder_qkv_multiscales=((), (), ()),
                        decoder_qkv_multiscales=((), (), ()), scaling_factor=0.41407)
    vocabulary = write_word_tokenizer(folder / "tokenizer", [WORDS], "t5", 400)
    text_encoder = Gemma2Model(Gemma2Config(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=middle, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=head, max_position_embeddings=512, pad_token_id=0,
        bos_token_id=None, eos_token_id=1))
    scheduler = DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2, use_flow_sigmas=True,
                                            prediction_type="flow_prediction", flow_shift=3.0)
    transformer, context = build(config)
    for part in (transformer, context):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.15)
    for name, part in (("vae", vae), ("text_encoder", text_encoder), ("scheduler", scheduler),
                       ("transformer", transformer)):
        part.save_pretrained(folder / name)
    index = {"_class_name": "SanaPipeline", "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
             "text_encoder": ["transformers", "Gemma2Model"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
             "transformer": ["diffusers", "SanaTransformer2DModel"], "vae": ["diffusers", "AutoencoderDC"]}
    if reflect:
        SiglipVisionModel(SiglipVisionConfig(hidden_size=20, intermediate_size=32, num_hidden_layers=2,
                                             num_attention_heads=2, image_size=48, patch_size=4)
                          ).save_pretrained(folder / "image_encoder")
        index["image_encoder"] = ["transformers", "SiglipVisionModel"]
        save_file({**transformer.state_dict(), **context.state_dict()},
                  folder / "transformer" / "diffusion_pytorch_model.safetensors")
        (folder / "transformer" / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "reflect.json").write_text(json.dumps(settings or {
        "defaults": {"width": 32, "height": 32, "steps": 4, "guidance": 4.5}, "options": {"image_tokens": 16}}))
    return folder


def prepared(transformer, context, timesteps, states, masks, pairs=None, beside=None, **switches) -> Prepared:
    """`prepare` of what `reflect_forward` takes: padded states (B, L, D) with masks (B, L), and pairs."""
    prompts = [keys_values(transformer, row[: int(mask.sum())]) for row, mask in zip(states, masks)]
    if pairs is None:
        return prepare(transformer, context, timesteps, prompts)
    contexts = [None if row is None else context.tokens(replace(pairs, rows=(row,)))[0][0] for row in pairs.rows]
    return prepare(transformer, context, timesteps, prompts, contexts, beside,
                   dropped=pairs.images.shape[1] + DROPPED_TEXT, **switches)
