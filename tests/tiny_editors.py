"""Tiny random editors in diffusers' layouts: FLUX.1 Kontext and Qwen-Image-Edit (first release and 2509/2511)."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from tiny_flux import write_tiny_flux
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
            "<|image_pad|>", "<|video_pad|>")
FIRST = 256
"""The first special token: before them comes each byte."""


def write_tiny_kontext(folder: str | Path, settings: dict | None = None) -> Path:
    """As tiny FLUX, whose parts are Kontext's: 4 latent channels, 4 pixels to a latent side, 8 to a token."""
    settings = {"defaults": {"width": 32, "height": 32, "steps": 2},
                "options": {"max_sequence_length": 12}} if settings is None else settings
    folder = write_tiny_flux(folder, lora=False, settings=settings)
    return _renamed(folder, "FluxKontextPipeline")


def write_tiny_qwen(folder: str | Path, plus: bool = True, settings: dict | None = None, **changes) -> Path:
    """4 latent channels, 8 pixels to a latent side, 16 to a token; a byte is a token of the text."""
    folder = Path(folder)
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(**dict(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6)) | changes)
    vae = AutoencoderKLQwenImage(base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                                 temperal_downsample=[False, True, True], latents_mean=[0.1, -0.2, 0.3, 0.0],
                                 latents_std=[1.5, 0.8, 1.2, 1.0])
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config=dict(hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, vocab_size=FIRST + len(SPECIALS), max_position_embeddings=4096,
                         rope_scaling={"type": "default", "rope_type": "default", "mrope_section": [2, 3, 3]},
                         rope_theta=1000000.0, bos_token_id=256, eos_token_id=258, pad_token_id=256),
        vision_config=dict(depth=2, hidden_size=32, intermediate_size=37, num_heads=2, out_hidden_size=32,
                           fullatt_block_indexes=[1]),
        image_token_id=262, video_token_id=263, vision_start_token_id=259, vision_end_token_id=260))
    for part in (transformer, encoder):  # a fresh model's last layers are near nothing
        for parameter in part.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift=1.0, shift_terminal=0.02,
        use_dynamic_shifting=True)
    for name, part in (("transformer", transformer), ("vae", vae), ("text_encoder", encoder),
                       ("scheduler", scheduler)):
        part.save_pretrained(folder / name)
    for name in ("tokenizer", "processor"):
        _write_tokenizer(folder / name)
    (folder / "processor" / "preprocessor_config.json").write_text(json.dumps({
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "resample": 3,
        "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2,
        "rescale_factor": 1 / 255, "size": {"longest_edge": 12845056, "shortest_edge": 3136}}))
    kind = "QwenImageEditPlusPipeline" if plus else "QwenImageEditPipeline"
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": kind, "_diffusers_version": "0.36.0", "processor": ["transformers", "Qwen2VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"], "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKLQwenImage"]}))
    settings = {"defaults": {"width": 64, "height": 64, "steps": 2}} if settings is None else settings
    (folder / "reflect.json").write_text(json.dumps(settings))
    return folder


def _renamed(folder: Path, kind: str) -> Path:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": kind}))
    return folder


def _write_tokenizer(folder: Path) -> None:
    """Qwen2's files, as published: a vocabulary of the 256 bytes, no merges, and the special tokens behind."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shown = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in shown]
    shown |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    (folder / "vocab.json").write_text(json.dumps({shown[byte]: byte for byte in range(256)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    added = {str(FIRST + k): {"content": token, "lstrip": False, "normalized": False, "rstrip": False,
                              "single_word": False, "special": True} for k, token in enumerate(SPECIALS)}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|endoftext|>", "eos_token": "<|im_end|>",
        "bos_token": None, "unk_token": None, "model_max_length": 131072, "errors": "replace",
        "add_prefix_space": False, "split_special_tokens": False, "clean_up_tokenization_spaces": False,
        "additional_special_tokens": list(SPECIALS[1:]), "added_tokens_decoder": added}))
