"""Reflect-DiT's checkpoint: SANA's 396 tensors under diffusers' names and 29 of its own, one config.json (2.1, 2.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from ...model_files import check_safetensors, read_json, read_safetensors
from ...types import UserError
from .context import ContextEncoder

STEM = "diffusion_pytorch_model"
OWN = ("clip_projection.", "clip_norm.", "reflection_")
"""What the names of the added tensors begin with."""
NEEDED = {"vision_feature_dim": int, "num_reflection_transformer_layers": int}
IGNORED = ("reflection", "reflection_mode", "context_qk_norm")


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None, where: str | Path = "a checkpoint"
          ) -> tuple[SanaTransformer2DModel, ContextEncoder]:
    """The two modules that a config.json describes, with `weights` in them if there are any.

    UserError, naming `where`, for a config of plain SANA, or another kind of Reflect-DiT than the released one, and for
    missing, unexpected or misshapen tensors.
    """
    check_config(config, where)
    own = {k: v for k, v in config.items() if not k.startswith("_") and k not in (*NEEDED, *IGNORED)}
    transformer = SanaTransformer2DModel(**own).eval()
    made = transformer.config
    context = ContextEncoder(made.num_attention_heads * made.attention_head_dim, config["vision_feature_dim"],
                             made.caption_channels, made.num_cross_attention_heads, made.cross_attention_head_dim,
                             config["num_reflection_transformer_layers"], made.mlp_ratio).eval()
    if weights is not None:
        expected = {**transformer.state_dict(), **context.state_dict()}
        check_names(expected, weights, where)
        transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith(OWN)})
        context.load_state_dict({k: v for k, v in weights.items() if k.startswith(OWN)})
    return transformer, context


def load(folder: str | Path, dtype: torch.dtype = torch.float32) -> tuple[SanaTransformer2DModel, ContextEncoder]:
    """The two modules of a checkpoint: `config.json` beside its weights, whole or in shards, safetensors or `.bin`.

    A `.bin` is read by torch's weights-only loading, which runs no code; where both are there the safetensors are
    read. UserError, naming the file, for what cannot be read or does not fit.
    """
    folder = Path(folder)
    config = read_json(folder / "config.json", "expected the one of a Reflect-DiT checkpoint; try the folder above or "
                                               "below")
    with torch.device("meta"):
        transformer, context = build(config, where=folder)
    weights: dict[str, Tensor] = {}
    for file in weight_files(folder):
        weights |= {name: tensor.to(dtype) for name, tensor in _read(file).items()}
    check_names({**transformer.state_dict(), **context.state_dict()}, weights, folder)
    transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith(OWN)}, assign=True)
    context.load_state_dict({k: v for k, v in weights.items() if k.startswith(OWN)}, assign=True)
    if isinstance(transformer.patch_embed.pos_embed, Tensor):  # computed, so that no file has it; SANA has none
        transformer.patch_embed.pos_embed = build({**config, "num_layers": 0})[0].patch_embed.pos_embed
    return transformer.requires_grad_(False), context.requires_grad_(False)


def write_checkpoint(folder: str | Path, transformer: SanaTransformer2DModel, context: ContextEncoder) -> None:
    """Both in the released layout, into a folder that exists: one safetensors file and a config.json with its keys."""
    folder = Path(folder)
    own = {k: v for k, v in transformer.config.items() if not k.startswith("_")}
    config = {"_class_name": "SanaTransformer2DModelWithContext", **own, "reflection": True,
              "vision_feature_dim": context.clip_projection.linear_1.in_features,
              "num_reflection_transformer_layers": len(context.reflection_transformer),
              "reflection_mode": "vanilla", "context_qk_norm": None}
    save_file({**transformer.state_dict(), **context.state_dict()}, folder / f"{STEM}.safetensors",
              {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def weight_files(folder: Path) -> list[Path]:
    """The one file, or the shards that an index lists. UserError if there are none, or one of them is missing or cut
    short (of a `.bin` only reading tells). Reads headers only."""
    files = _listed(folder)
    for file in files:
        if file.suffix == ".safetensors":
            check_safetensors(file)
        elif not file.is_file() or not file.stat().st_size:
            raise UserError(f"{file}: no such file, or an empty one; expected a part of the checkpoint; try to copy or "
                            "download it again")
    return files


def _listed(folder: Path) -> list[Path]:
    for suffix in (".safetensors", ".bin"):
        index = folder / f"{STEM}{suffix}.index.json"
        if index.is_file():
            names = read_json(index, "").get("weight_map")
            if not isinstance(names, dict) or not all(
                    isinstance(name, str) and Path(name).name == name and name.endswith(suffix)
                    for name in names.values()):
                raise UserError(f"{index}: its weight_map is not of names of {suffix} files beside it; try to copy or "
                                "download it again")
            return [folder / name for name in sorted(set(names.values()))]
        if (folder / f"{STEM}{suffix}").is_file():
            return [folder / f"{STEM}{suffix}"]
    raise UserError(f"{folder}: has no weights; expected {STEM}.safetensors or {STEM}.bin, or an index of shards")


def _read(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return read_safetensors(file)[0]
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the unpickler met
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file}: cannot be read as weights alone ({said}); expected a file of tensors; try to "
                        "download it again, or a release in safetensors") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{file}: holds something besides tensors; expected a state dict")
    return weights


def check_config(config: Mapping[str, Any], where: str | Path) -> None:
    """UserError, naming `where`, unless it is of the released kind of Reflect-DiT."""
    if not config.get("reflection"):
        raise UserError(f"{where}: the config says nothing of reflection: it is of plain SANA; expected Reflect-DiT's, "
                        f"with 'reflection', {', '.join(map(repr, NEEDED))}; try its checkpoint, or plain SANA by "
                        "itself")
    for name, kind in NEEDED.items():
        value = config.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where}: {name} in the config is {value!r}; expected a whole number of 1 or more")
    for name, known in (("reflection_mode", (None, "vanilla")), ("context_qk_norm", (None,))):
        if config.get(name) not in known:
            raise UserError(f"{where}: {name} in the config is {config[name]!r}; expected {known[-1]!r}, as in the "
                            "released model")


def check_names(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: str | Path) -> None:
    """UserError that names `where` and the first tensor that is missing, too many, or of another shape."""
    for name in sorted({**expected, **weights}):
        have, want = weights.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            got = "missing" if have is None else f"of the shape {tuple(have.shape)}"
            should = "no such tensor" if want is None else f"the shape {tuple(want.shape)}"
            raise UserError(f"{where}: {name} is {got}; expected {should}, as the config makes it; try a checkpoint "
                            "and a config that belong together")
