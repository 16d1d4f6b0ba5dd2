"""Tiny random language models that see pictures, in the published layouts: Qwen-VL, LLaVA, Gemma 3."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
                 "<|video_pad|>"]
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
WORDS = ["yes", "Yes", "YES", " yes", " Yes", "no", "No", " no", " No"]


def write_tiny_qwen(folder: Path, kind: str = "qwen2_5_vl", seed: int = 0, shards: bool = False,
                    answers: bool = False, wide: bool = False, **changes) -> Path:
    """A `Qwen2_5_VLForConditionalGeneration` or `Qwen3VLForConditionalGeneration` with its processor.

    `answers`: its first token is nearly always a spelling of yes or no, by chance. `wide`, of the first: every linear
    layer takes a multiple of 64 and makes one of 32, as bitsandbytes wants it on a CPU.
    """
    folder = Path(folder)
    write_tokenizer(folder, QWEN_SPECIALS, QWEN_TEMPLATE)
    ids = {name: id for id, name in enumerate(QWEN_SPECIALS)}
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]) + len(QWEN_SPECIALS)
    text = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
            "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "tie_word_embeddings": False}
    tokens = {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
              "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
              "tie_word_embeddings": False}
    torch.manual_seed(seed)
    if kind == "qwen2_5_vl":
        text["rope_scaling"] = {"type": "mrope", "mrope_section": [2, 2, 4] if wide else [1, 1, 2]}
        vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                  "patch_size": 14, "spatial_merge_size": 2, "window_size": 56, "fullatt_block_indexes": [1]}
        if wide:
            text |= {"hidden_size": 64, "intermediate_size": 64}
            vision |= {"hidden_size": 64, "out_hidden_size": 64, "intermediate_size": 64}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens, **changes)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        processor = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2,
                     "processor_class": "Qwen2_5_VLProcessor", "min_pixels": 56 * 56, "max_pixels": 112 * 112}
    else:
        text |= {"head_dim": 8, "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1],
                                                 "mrope_interleaved": True}}
        vision = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                  "patch_size": 16, "spatial_merge_size": 2, "num_position_embeddings": 64,
                  "deepstack_visual_indexes": [0]}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens, **changes)
        model = transformers.Qwen3VLForConditionalGeneration(config)
        processor = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 16, "merge_size": 2,
                     "processor_class": "Qwen3VLProcessor",
                     "size": {"shortest_edge": 64 * 64, "longest_edge": 128 * 128}}
    model.generation_config.eos_token_id = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    model.generation_config.repetition_penalty = 1.05
    _loud(model)
    if answers:
        _answer(model, folder)
    model.save_pretrained(folder, max_shard_size="40KB" if shards else "5GB")
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_tiny_llava(folder: Path, seed: int = 0) -> Path:
    """A `LlavaForConditionalGeneration`: CLIP's eyes, Llama's words, a processor of its own."""
    folder = Path(folder)
    specials = ["<pad>", "<|im_end|>", "<image>"]
    template = ("{% for message in messages %}{{ message['role'] | upper }}: {% for content in message['content'] %}"
                "{% if content['type'] == 'image' %}<image>\n{% else %}{{ content['text'] }}{% endif %}{% endfor %} "
                "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}")
    write_tokenizer(folder, specials, template, "<image>", "<pad>")
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(seed)
    config = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48, "image_size": 56,
                       "patch_size": 14, "num_hidden_layers": 3, "num_attention_heads": 2, "projection_dim": 32},
        text_config={"model_type": "llama", "vocab_size": size, "hidden_size": 32, "intermediate_size": 48,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                     "max_position_embeddings": 512, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0},
        image_token_index=2, image_seq_length=16)
    model = transformers.LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 1
    _loud(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
        "size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "resample": 3}))
    (folder / "processor_config.json").write_text(json.dumps({
        "processor_class": "LlavaProcessor", "patch_size": 14, "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default", "image_token": "<image>"}))
    return folder


def write_tiny_gemma(folder: Path, seed: int = 0) -> Path:
    """A `Gemma3ForConditionalGeneration`, whose picture's tokens see one another both ways, with a sliding window."""
    folder = Path(folder)
    specials = ["<pad>", "<|im_end|>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    template = ("{% for message in messages %}<start>{{ message['role'] }}\n{% for content in message['content'] %}"
                "{% if content['type'] == 'image' %}<start_of_image>{% else %}{{ content['text'] }}{% endif %}"
                "{% endfor %}<end>\n{% endfor %}{% if add_generation_prompt %}<start>model\n{% endif %}")
    write_tokenizer(folder, specials, template, "<image_soft_token>", "<pad>",
                    boi_token="<start_of_image>", eoi_token="<end_of_image>")
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    torch.manual_seed(seed)
    config = transformers.Gemma3Config(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "image_size": 56, "patch_size": 14,
                       "num_hidden_layers": 2, "num_attention_heads": 2},
        text_config={"vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
                     "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
                     "sliding_window": 24, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 0,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        boi_token_index=2, eoi_token_index=3, image_token_index=4, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(std=0.02)  # made as zeros
    model.generation_config.eos_token_id = 1
    _loud(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "Gemma3ImageProcessor", "processor_class": "Gemma3Processor", "image_seq_length": 4,
        "size": {"height": 56, "width": 56}}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma3Processor",
                                                              "image_seq_length": 4}))
    return folder


def _answer(model, folder: Path) -> None:
    """One channel is the same for every token, and only yes and no listen to it."""
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    chosen = [id for token, id in vocab.items() if token.strip("\u0120").lower() in ("yes", "no")]
    model.get_input_embeddings().weight.data[:, 0] = 12
    head = model.get_output_embeddings().weight.data
    head[:, 0] = 0
    head[chosen, 0] = 6


def _loud(model) -> None:
    """Random weights of the usual size say nearly the same of everything: larger ones, so that a wrong token shows."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)


def write_tokenizer(folder: Path, specials: list[str], template: str, image: str = "<|image_pad|>",
                    pad: str = "<|endoftext|>", **named: str) -> None:
    """Byte-level, so that it reads any text, with the answers' spellings as tokens of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: id + len(specials) for id, token in enumerate(alphabet)}
    merges = []
    for word in WORDS:
        symbols = list(word.replace(" ", "\u0120"))
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            if pair not in merges:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab) + len(specials))
            symbols[:2] = ["".join(pair)]
    tokenizer = Tokenizer(models.BPE(vocab={**{s: i for i, s in enumerate(specials)}, **vocab}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"image_token": image, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": pad,
        "model_max_length": 4096, "chat_template": template, **named, "extra_special_tokens": named}))
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
