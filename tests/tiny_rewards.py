"""Small random reward models in the layouts that are published: CLIP, SigLIP and aesthetic heads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from reflect_core.shapes.tokenizer import write_word_tokenizer

WORDS = "a photo depicts red circle left of blue star and green square"
SIDE = 32
BOTH = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**BOTH, "image_size": SIDE, "patch_size": 8}
HEADS = {"layers": (0, 2, 4, 6, 7), "scoring_head": (0, 2, 4, 6, 8)}
"""Numbers of the linear layers of LAION's head and of V2.5's."""
WIDTHS = (1024, 128, 64, 16, 1)


def write_tiny_clip(folder: Path, seed: int = 0, scale: float = 4.6052, letters: bool = False) -> Path:
    """Files and keys as in openai/clip-vit-large-patch14.

    `letters`: a tokenizer of single letters in its two oldest files, and the published config's wrong numbers of the
    special tokens, by which transformers knows an old CLIP and looks for a text's end at the largest number.
    """
    if letters:
        tokens, special = _write_letters(folder), {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    else:
        tokens = len(write_word_tokenizer(folder, [WORDS], "clip", 77))
        special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(seed)
    text = {**BOTH, "vocab_size": tokens, "max_position_embeddings": 77, **special}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    with torch.no_grad():
        model.logit_scale.fill_(scale)
    model.save_pretrained(folder)
    _preprocessor(folder, {"crop_size": SIDE, "do_center_crop": True, "do_normalize": True, "do_resize": True,
                           "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": SIDE,
                           "image_mean": [0.48145466, 0.4578275, 0.40821073],
                           "image_std": [0.26862954, 0.26130258, 0.27577711]})
    return folder


def _write_letters(folder: Path) -> int:
    """CLIP's own tokenizer, without tokenizer.json; returns how many tokens it has."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True,
         "bos_token": "<|startoftext|>",
         **dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")}))
    return len(tokens)


def write_tiny_siglip(folder: Path, seed: int = 0) -> Path:
    """Files and keys as in google/siglip-so400m-patch14-384."""
    vocabulary = write_word_tokenizer(folder, [WORDS], "t5", 64)
    torch.manual_seed(seed)
    text = {**BOTH, "vocab_size": len(vocabulary), "max_position_embeddings": 16, "pad_token_id": 0, "eos_token_id": 1,
            "bos_token_id": None}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-1.5)
    model.save_pretrained(folder)
    _preprocessor(folder, {"do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
                           "image_processor_type": "SiglipImageProcessor", "rescale_factor": 0.00392156862745098,
                           "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}})
    return folder


def write_head(file: Path, width: int, name: str = "layers", seed: int = 0, spread: float = 0.3) -> Path:
    """An aesthetic head as the recipe makes it of the published .pth."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, (before, after) in zip(HEADS[name], zip((width, *WIDTHS), WIDTHS)):
        tensors[f"{name}.{number}.weight"] = torch.randn(after, before, generator=generator) * spread / before**0.5
        tensors[f"{name}.{number}.bias"] = torch.randn(after, generator=generator)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return file


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Some noise, smooth enough that resizing it keeps something."""
    noise = torch.randint(0, 256, (4, 6, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy()).resize(size, Image.Resampling.BICUBIC)


def _preprocessor(folder: Path, settings: dict) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
