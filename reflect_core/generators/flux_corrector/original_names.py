"""FLUX.1's transformer by the names that its authors gave, and what diffusers calls the same.

Files for ComfyUI have the authors' names, such as `double_blocks.0.img_attn.qkv.weight`. There query, key and
value of a block are one matrix, in a single block with the MLP's below them, and the last modulation has
shift before scale where diffusers has scale before shift. What a file has is described in pieces, rows of its
tensors, so that a tensor is read when it is wanted and tens of gigabytes are never held twice.

diffusers has such a table of its own in `from_single_file`. It is written for the width of 3072 alone and copies
every matrix; the tests hold this one against it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

_TOP = {"time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
        "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
        "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
        "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
        "txt_in": "context_embedder", "img_in": "x_embedder", "final_layer.linear": "proj_out"}
_DOUBLE = {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
           "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
           "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
           "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
           "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
           "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k"}
_SINGLE = {"modulation.lin": "norm.linear", "linear2": "proj_out",
           "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k"}
_FUSED = {"img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
          "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
          "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}
_LAST = "final_layer.adaLN_modulation.1"
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Piece:
    """Rows of a file's tensor, in this order."""

    key: str
    rows: tuple[tuple[int, int], ...] = ()
    """Ranges of rows to join; () for all."""


def pieces(shapes: Shapes, prefix: str = "") -> dict[str, Piece]:
    """diffusers' names -> where each lies, for a file in either layout whose keys start with `prefix`.

    Keys that are neither's are left out; the caller says whether anything is missing.
    """
    found: dict[str, Piece] = {}
    width = shapes.get(f"{prefix}img_in.weight", (0,))[0]
    for key, shape in shapes.items():
        if key.startswith(prefix):
            found |= _of(key[len(prefix):], key, shape, width)
    return found


def shapes_of(found: Mapping[str, Piece], shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes that pieces come to."""
    return {name: shapes[piece.key] if not piece.rows else
            (sum(end - start for start, end in piece.rows), *shapes[piece.key][1:]) for name, piece in found.items()}


def _of(name: str, key: str, shape: tuple[int, ...], width: int) -> dict[str, Piece]:
    """What diffusers makes of one tensor of the authors'."""
    stem, _, ending = name.rpartition(".")
    if not width:  # diffusers' own layout: `img_in` is `x_embedder` there
        return {name: Piece(key)}
    ending = {"scale": "weight"}.get(ending, ending)
    if ending not in ("weight", "bias"):
        return {}
    if stem in _TOP:
        return {f"{_TOP[stem]}.{ending}": Piece(key)}
    if stem == _LAST:
        half = shape[0] // 2
        return {f"norm_out.linear.{ending}": Piece(key, ((half, 2 * half), (0, half)))}
    match = _BLOCK.fullmatch(stem)
    if match is None:
        return {}
    stack = "transformer_blocks" if match[1] == "double" else "single_transformer_blocks"
    path, layer = f"{stack}.{match[2]}", match[3]
    if layer in _FUSED:
        edges = [min(width * i, shape[0]) for i in range(4)] + [shape[0]]
        return {f"{path}.{part}.{ending}": Piece(key, ((edges[i], edges[i + 1]),))
                for i, part in enumerate(_FUSED[layer])}
    names = _DOUBLE if match[1] == "double" else _SINGLE
    return {f"{path}.{names[layer]}.{ending}": Piece(key)} if layer in names else {}
