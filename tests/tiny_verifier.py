"""A small random Qwen2.5-VL, and Image-Verifier checkpoints over it in the published layouts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from reflect_core.shapes.tokenizer import write_word_tokenizer
from reflect_core.verifiers.rewards.image_verifier import TEMPLATE

WIDTH, TOKEN = 32, "<|VQ_reward|>"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
SECTIONS = {
    "data_config": {"meta_data": "x.json", "data_dir": "x", "max_pixels": 112 * 112},
    "training_args": {"learning_rate": 1e-5},
    "model_config": {"model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct", "output_dim": 1, "use_special_tokens": True},
    "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
    "inference_config": {"VQ_mean": 0.3, "VQ_std": 0.5},
}
FULL = {"data_config", "training_args", "model_config"}


def write_tiny_qwen(folder: Path, tied: bool = False) -> Path:
    """Files as in Qwen/Qwen2.5-VL-7B-Instruct, weights with its published names."""
    words = [TEMPLATE.replace(TOKEN, ""), "user assistant red blue circle a"]
    vocabulary = write_word_tokenizer(folder, words, "t5", 512)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    ids = {name: tokenizer.token_to_id(name) for name in SPECIAL}
    torch.manual_seed(1)
    # More rows than tokens, as in the published ones.
    config = Qwen2_5_VLConfig(
        text_config={"hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "vocab_size": len(vocabulary) + len(SPECIAL) + 5,
                     "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "max_position_embeddings": 512,
                     "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": 0,
                     "tie_word_embeddings": tied},
        vision_config={"depth": 2, "hidden_size": 32, "out_hidden_size": WIDTH, "num_heads": 2, "intermediate_size": 32,
                       "window_size": 56, "fullatt_block_indexes": [1], "patch_size": 14},
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=tied)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(
        {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
         "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
         "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}))
    return folder


def write_checkpoint(folder: Path, base: Path, layout: str, *, old: bool = True, peft: bool = False, step: int = 7,
                     sections: dict | None = None, seed: int = 3) -> Path:
    """A trained Image-Verifier over `base`: `layout` 'full' or 'adapter', in safetensors, as the recipe makes them.

    `old`: names of transformers 4.51, which the published one was trained with. `peft`: a whole state dict of a model
    under peft, LoRA not merged. Adapters have LoRA on two attention layers, a trained embedding and a head.
    """
    place = folder / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(SECTIONS if sections is None else sections))
    weights, lora, trained = trained_tensors(base, seed)
    rename = (lambda name: name) if not old else lambda name: name.replace("model.visual.", "visual.").replace(
        "model.language_model.", "model.")
    under = "base_model.model."
    if layout == "full" and not peft:
        tensors = {rename(name): tensor.clone() for name, tensor in {**merged(weights, lora), **trained}.items()}
        save_file(tensors, place / "model.safetensors")
    elif layout == "full":
        tensors = {}
        for name, tensor in {**weights, **trained}.items():
            path = name.removesuffix(".weight")
            if path in lora:
                name = f"{path}.base_layer.weight"
                for which, matrix in zip("AB", lora[path]):
                    tensors[f"{under}{rename(path)}.lora_{which}.default.weight"] = matrix
            if name == "rm_head.weight":  # as peft's modules_to_save names it
                tensors[f"{under}rm_head.original_module.weight"] = torch.zeros_like(tensor)
                name = "rm_head.modules_to_save.default.weight"
            tensors[under + rename(name)] = tensor.clone()
        save_file(tensors, place / "model.safetensors")
    else:
        save_file({f"{under}{rename(path)}.lora_{which}.weight": matrix for path, pair in lora.items()
                   for which, matrix in zip("AB", pair)}, place / "adapter_model.safetensors")
        save_file({under + rename(name): tensor for name, tensor in trained.items()},
                  place / "non_lora_state_dict.safetensors")
    return folder


def trained_tensors(base: Path, seed: int):
    """(the base's weights, LoRA pairs by path, what else was trained), in today's names."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator) * 0.3
    lora = {}
    for name in ("q_proj", "o_proj"):
        path = f"model.language_model.layers.1.self_attn.{name}"
        out, into = weights[f"{path}.weight"].shape
        lora[path] = noise(4, into), noise(out, 4)
    tokens = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
    # The official trainer cuts the embedding to the tokenizer's tokens and the one that it adds.
    embedding = weights["model.language_model.embed_tokens.weight"][:tokens].clone()
    trained = {"model.language_model.embed_tokens.weight": torch.cat([embedding, noise(1, WIDTH)]),
               "rm_head.weight": noise(1, WIDTH)}
    return weights, lora, trained


def merged(weights: dict, lora: dict, scale: float = 8 / 4) -> dict:
    out = dict(weights)
    for path, (a, b) in lora.items():
        out[f"{path}.weight"] = out[f"{path}.weight"] + scale * b @ a
    return out
