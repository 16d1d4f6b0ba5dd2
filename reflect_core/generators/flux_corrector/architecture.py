"""What a single file of weights is of: which components of FLUX.1 it holds, or what other model it belongs to.

Told from the names and shapes in its header, before any weight is read. An all-in-one checkpoint holds several
components, each below a prefix of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from pathlib import Path

from ...types import UserError
from ...weight_file import FLOATS, SCALES, WeightFile
from .original_names import Piece, pieces, shapes_of

PREFIXES = {
    "transformer": ("", "model.diffusion_model.", "diffusion_model.", "transformer."),
    "vae": ("", "vae.", "first_stage_model."),
    "text_encoder": ("", "text_encoders.clip_l.transformer.", "text_encoder.", "clip_l.transformer."),
    "text_encoder_2": ("", "text_encoders.t5xxl.transformer.", "text_encoder_2.", "t5xxl.transformer.")}
"""What may stand before a component's names: nothing in a file of its own, else what ComfyUI puts there."""
_MARKS = {
    "transformer": ("img_in.weight", "x_embedder.weight"),
    "vae": ("decoder.mid.block_1.norm1.weight", "decoder.mid_block.resnets.0.norm1.weight"),
    "text_encoder": ("text_model.embeddings.token_embedding.weight",),
    "text_encoder_2": ("encoder.block.0.layer.0.SelfAttention.q.weight", "enc.blk.0.attn_q.weight")}
_NEEDED = ("transformer_blocks.0.attn.add_q_proj.weight", "transformer_blocks.0.attn.norm_q.weight",
           "single_transformer_blocks.0.proj_mlp.weight", "x_embedder.weight", "context_embedder.weight",
           "time_text_embed.text_embedder.linear_1.weight", "proj_out.weight")
"""What FLUX.1's transformer has, by diffusers' names, and none of those below has all of."""

_STRANGERS = (
    (r"(lora_unet_|lora_te|.*\.lora_(A|B|down|up)\.|.*\.(lokr|hada)_w\d)", "a LoRA",
     "try it with --lora, and a whole model here"),
    (r"(.*\.)?controlnet_(blocks|x_embedder)\.", "a ControlNet", "try flux1-dev.safetensors"),
    (r".*(double_stream_modulation_img|single_stream_modulation)\.", "a transformer of FLUX.2",
     "try flux1-dev.safetensors; there is no corrector for FLUX.2"),
    (r".*distilled_guidance_layer\.", "a transformer of Chroma", "try flux1-dev.safetensors"),
    (r".*(joint_blocks\.0\.|pos_embed\.proj\.weight)", "a transformer of Stable Diffusion 3",
     "try flux1-dev.safetensors"),
    (r".*(input_blocks\.0\.0\.|down_blocks\.0\.(resnets|attentions)\.0\.|conditioner\.embedders\.)",
     "a model of the Stable Diffusion 1, 2 or SDXL kind", "try flux1-dev.safetensors"),
    (r".*blocks\.0\.(self_attn\.q|cross_attn\.q|attn1\.to_q)\.", "a transformer of Wan or another video model",
     "try flux1-dev.safetensors"),
    (r".*transformer_blocks\.0\.(img_mod\.1|txt_mod\.1)\.", "a transformer of Qwen-Image",
     "try flux1-dev.safetensors"),
    (r".*(caption_projection\.|attention_y_norm|transformer_blocks\.0\.attn2\.to_q)", "a transformer of SANA",
     "try Reflect-DiT's preset, which takes a folder in diffusers layout"),
    (r".*\.(qweight|wscales|smooth_factor)$", "a model that was quantised for Nunchaku",
     "try the same model in bf16, fp8 or GGUF"),
    (r".*\.(quant_state\.bitsandbytes__|absmax$|quant_map$)", "a model that bitsandbytes has quantised",
     "try the model in bf16 with --option quantise=nf4, which gives the same"),
    (r"(.*(transformer\.resblocks\.|model\.layers\.0\.self_attn\.q_proj)|blk\.0\.)", "a text encoder of another model",
     "try clip_l.safetensors and t5xxl_fp16.safetensors"))
"""(names in it, what it then is, what to try)."""


def parts_in(file: WeightFile) -> dict[str, dict[str, Piece]]:
    """Component -> its tensors by the names of diffusers or transformers (an autoencoder's may be its authors').

    Raises UserError for a file of another model, or of one that only its maker's own program can read.
    """
    found: dict[str, dict[str, Piece]] = {}
    for name, prefixes in PREFIXES.items():
        prefix = next((p for p in prefixes if any(p + mark in file.shapes for mark in _MARKS[name])), None)
        if prefix is not None:
            taken = _taken(name, file, prefix)
            if name != "transformer" or all(key in taken for key in _NEEDED):
                found[name] = taken
    if "transformer" not in found:
        for pattern, what, cure in _STRANGERS:
            if any(re.match(pattern, key) for key in file.shapes):
                raise UserError(f"{file.path}: is {what}; expected a file of FLUX.1; {cure}")
    if not found:
        first = ", ".join(sorted(file.shapes)[:3]) or "(it is empty)"
        raise UserError(f"{file.path}: holds no component of FLUX.1, but {first}; expected a transformer with "
                        "double_blocks, an autoencoder, CLIP-L or T5; try flux1-dev.safetensors, ae.safetensors, "
                        "clip_l.safetensors or t5xxl_fp16.safetensors")
    for name, taken in found.items():
        _check(name, file, taken)
    return found


def what_lora(keys: Iterable[str]) -> tuple[str, str] | None:
    """(key that tells, what kind of LoRA a file with these keys is), for somebody who expects a corrector's; None if
    no key tells."""
    keys = list(keys)
    for pattern, said in (
            (r".*(to_qkv_mlp_proj|double_stream_modulation|single_stream_modulation|ff\.linear_in)", "is of FLUX.2"),
            (r".*(down_blocks|up_blocks|input_blocks|output_blocks|mid_block)[._]", "is of Stable Diffusion or SDXL"),
            (r".*(joint_blocks)[._]", "is of Stable Diffusion 3"),
            (r"(lora_unet_|lora_te)", "was made by Kohya's scripts"),
            (r".*(blocks\.\d+\.(self_attn|cross_attn)\.)", "is of Wan or another video model"),
            (r"(diffusion_model\.|.*double_blocks\.)", "has the names of FLUX's authors"),
            (r".*transformer_blocks\.\d+\.attn2\.", "is of SANA or PixArt")):
        for key in keys:
            if re.match(pattern, key):
                return key, said
    return None


def _taken(name: str, file: WeightFile, prefix: str) -> dict[str, Piece]:
    if name == "transformer":
        return {key: piece for key, piece in pieces(file.shapes, prefix).items() if not _beside(key)}
    mine = {key[len(prefix):]: Piece(key) for key in file.shapes if key.startswith(prefix)}
    if name == "text_encoder_2" and "enc.blk.0.attn_q.weight" in mine:
        mine = {_from_llama(key): piece for key, piece in mine.items()}
    stems = {"vae": ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "bn."),
             "text_encoder": ("text_model.",), "text_encoder_2": ("encoder.", "shared.")}[name]
    return {key: piece for key, piece in mine.items()
            if key.startswith(stems) and not _beside(key) and not key.endswith("position_ids")}


def _beside(key: str) -> bool:
    """What newer files carry besides weights: scales, and how they were quantised."""
    return key.endswith((".scale_weight", ".weight_scale", ".scale_input", ".input_scale", ".comfy_quant"))


def _check(name: str, file: WeightFile, taken: dict[str, Piece]) -> None:
    """UserError for tensors that cannot be read as numbers, and for a near relative of a component of FLUX.1."""
    scales = [key for key in file.shapes if "scale" in key.rpartition(".")[2] and not _beside(key)]
    for key, piece in taken.items():
        if file.kinds[piece.key] not in FLOATS and not file.is_packed(piece.key):
            raise UserError(f"{file.path}: {piece.key} is {file.kinds[piece.key]}, quantised in a way of ComfyUI's or "
                            "another program's own; expected numbers in fp32, fp16, bf16, fp8 or GGUF; try such a "
                            f"release of it, or --option quantise ({key} is meant)")
        scale, rows = file.scale_of(piece.key), file.shapes[piece.key][:1]
        stem = piece.key.removesuffix("weight")
        if stem != piece.key and file.kinds[piece.key].startswith("F8_"):
            scale = next((other for other in scales if other.startswith(stem)), scale)
        if scale is not None and (scale in scales or prod(file.shapes[scale]) not in (1, *rows)):
            raise UserError(f"{file.path}: {piece.key} is fp8 in blocks or by another program, with {scale} of "
                            f"{file.shapes[scale]}; expected one scale for all of it or one for each row, called "
                            f"{' or '.join(SCALES)}; try a release in fp8 scaled, bf16 or GGUF")
    shapes = shapes_of(taken, file.shapes)
    said = None
    if name == "transformer" and shapes["x_embedder.weight"][1] != shapes["proj_out.weight"][0]:
        said = (f"takes {shapes['x_embedder.weight'][1]} channels and gives {shapes['proj_out.weight'][0]}, as FLUX.1 "
                "Fill, Canny and Depth do", "try FLUX.1-dev's: flux1-dev.safetensors")
    elif name == "vae" and any(key.startswith(("quant_conv", "post_quant_conv", "bn.")) for key in shapes):
        said = "is an autoencoder of another model", "try FLUX.1's: ae.safetensors"
    elif name == "text_encoder_2":
        table = "SelfAttention.relative_attention_bias.weight"
        if f"encoder.block.1.layer.0.{table}" in shapes:
            said = "is a UMT5, of Wan or another model", "try FLUX.1's: t5xxl_fp16.safetensors"
        elif not {"shared.weight", f"encoder.block.0.layer.0.{table}",
                  "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"} <= set(shapes):
            said = "is a T5 of an older kind, or half of one", "try FLUX.1's: t5xxl_fp16.safetensors"
    if said is not None:
        raise UserError(f"{file.path}: {said[0]}; expected one of FLUX.1; {said[1]}")


_LLAMA = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm",
          "attn_q": "0.SelfAttention.q", "attn_k": "0.SelfAttention.k", "attn_v": "0.SelfAttention.v",
          "attn_o": "0.SelfAttention.o", "attn_rel_b": "0.SelfAttention.relative_attention_bias",
          "attn_norm": "0.layer_norm", "ffn_gate": "1.DenseReluDense.wi_0", "ffn_up": "1.DenseReluDense.wi_1",
          "ffn_down": "1.DenseReluDense.wo", "ffn_norm": "1.layer_norm"}


def _from_llama(key: str) -> str:
    """The name that transformers gives what llama.cpp, and with it every T5 in GGUF, calls so."""
    stem = key.removesuffix(".weight")
    match = re.fullmatch(r"enc\.blk\.(\d+)\.(\w+)", stem)
    if match and match[2] in _LLAMA:
        return f"encoder.block.{match[1]}.layer.{_LLAMA[match[2]]}.weight"
    return f"{_LLAMA[stem]}.weight" if stem in _LLAMA else key


def missing_said(path: Path, missing: list[str], surplus: list[str]) -> str | None:
    """What to say of a file that lacks tensors or has too many; None if all is well."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return f"{path}: has no {missing[0]}{more}; expected all of one component; try to download it again"
    if surplus:
        more = f" and {len(surplus) - 1} more" if len(surplus) > 1 else ""
        return (f"{path}: has {surplus[0]}{more}, for which FLUX.1 has no place; expected a file of FLUX.1; try "
                "another release of it")
    return None
