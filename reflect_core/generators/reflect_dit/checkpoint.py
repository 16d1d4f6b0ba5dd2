"""Reflect-DiT's checkpoint: SANA's 396 tensors under diffusers' names and 29 of its own, with one config.json (2.1, 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import SanaTransformer2DModel
from torch import Tensor

from ...types import UserError
from .context import ContextEncoder

OWN = ("clip_projection.", "clip_norm.", "reflection_")
"""What the names of the added tensors begin with."""
NEEDED = {"vision_feature_dim": int, "num_reflection_transformer_layers": int}
IGNORED = ("reflection", "reflection_mode", "context_qk_norm")


def build(config: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
          ) -> tuple[SanaTransformer2DModel, ContextEncoder]:
    """The two modules that a config.json describes, with `weights` in them if there are any.

    UserError for a config of plain SANA, or another kind of Reflect-DiT than the released one, and for missing,
    unexpected or misshapen tensors.
    """
    check_config(config)
    own = {k: v for k, v in config.items() if not k.startswith("_") and k not in (*NEEDED, *IGNORED)}
    transformer = SanaTransformer2DModel(**own).eval()
    made = transformer.config
    context = ContextEncoder(made.num_attention_heads * made.attention_head_dim, config["vision_feature_dim"],
                             made.caption_channels, made.num_cross_attention_heads, made.cross_attention_head_dim,
                             config["num_reflection_transformer_layers"], made.mlp_ratio).eval()
    if weights is not None:
        expected = {**transformer.state_dict(), **context.state_dict()}
        check_names(expected, weights)
        transformer.load_state_dict({k: v for k, v in weights.items() if not k.startswith(OWN)})
        context.load_state_dict({k: v for k, v in weights.items() if k.startswith(OWN)})
    return transformer, context


def check_config(config: Mapping[str, Any]) -> None:
    if not config.get("reflection"):
        raise UserError("the config says nothing of reflection: it is of plain SANA; expected Reflect-DiT's, with "
                        f"'reflection', {', '.join(map(repr, NEEDED))}; try the model's own folder")
    for name, kind in NEEDED.items():
        value = config.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name} in the config is {value!r}; expected a whole number of 1 or more")
    for name, known in (("reflection_mode", (None, "vanilla")), ("context_qk_norm", (None,))):
        if config.get(name) not in known:
            raise UserError(f"{name} in the config is {config[name]!r}; expected {known[-1]!r}, as in the released model")


def check_names(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """UserError that names the first tensor that is missing, too many, or of another shape."""
    for name in sorted({**expected, **weights}):
        have, want = weights.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            got = "missing" if have is None else f"of the shape {tuple(have.shape)}"
            should = "no such tensor" if want is None else f"the shape {tuple(want.shape)}"
            raise UserError(f"{name} is {got}; expected {should}, as the config makes it; try a checkpoint and a config "
                            "that belong together")
