"""Weights kept in fewer bits: chosen when a model is loaded, for the transformer and the large text encoder.

`nf4` and `int8` are bitsandbytes', through diffusers' and transformers' own configs; `torchao-int8` is torchao's;
`fp8` needs no package: weights lie in float8 (e4m3) and each layer is cast up while it computes, as diffusers does
it. All compute in the dtype of the model. The packages are optional, and imported only where they are used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..types import UserError
from .loading import load_part
from .offload import send_home

WAYS = ("none", "fp8", "int8", "nf4", "torchao-int8")
PACKAGES = {"int8": "bitsandbytes", "nf4": "bitsandbytes", "torchao-int8": "torchao"}
WHILE_LOADING = ("int8", "nf4")
"""These are given to the library that loads; the others follow when a part is loaded."""
UNMOVED = ("int8",)
"""Their scales do not move with them from device to device, so that they go with no offload."""
NEED_GPU = WHILE_LOADING
"""A name of its own, for the tests' sake: bitsandbytes itself computes on a CPU too."""
# T5's `wo` and what cuts pictures into patches are asked for their dtype before they are used, so they must not lie in
# fp8; embeddings are looked up, not applied, and a language model's head may be one tensor with them.
TEXT_WHOLE = ("norm", "wo", "shared", "embed_tokens", "relative_attention_bias", "patch_embed", "lm_head")


def check_quantise(quantise: str, device: str | torch.device = "cpu", offload: str = "none",
                   encoder_device: str | torch.device | None = None) -> None:
    """UserError, before anything is loaded, unless it is a way that can be gone on these devices."""
    if quantise not in WAYS:
        raise UserError(f"option quantise is {quantise!r}; expected one of {', '.join(WAYS)}")
    if quantise == "fp8" and torch.device(device).type == "mps":
        raise UserError("option quantise is 'fp8', which Apple's GPUs do not have; expected another way; try "
                        "offload=layers")
    package = PACKAGES.get(quantise)
    if package is None:
        return
    try:
        __import__(package)
        __import__("accelerate")
        if package == "torchao":
            from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: F401
    except Exception as error:  # a package that is there and was built for another torch raises what it likes
        name = "accelerate" if isinstance(error, ImportError) and error.name == "accelerate" else package
        missing = isinstance(error, ImportError) and error.name == name
        raise UserError(f"option quantise is {quantise!r}, for which the package {name!r} is needed and "
                        f"{'not installed' if missing else f'cannot be loaded ({error})'}; try 'pip install {name}', "
                        "or quantise=fp8, which needs none") from error
    if quantise in UNMOVED and offload != "none":
        raise UserError(f"option quantise is {quantise!r}, whose weights stay where they were packed, and option "
                        f"offload is {offload!r}; expected one of them; try quantise=nf4 or fp8 with it")
    if quantise in NEED_GPU and torch.device(device).type == "cpu":
        raise UserError(f"option quantise is {quantise!r}, which diffusers offers on a GPU only, and the device is "
                        "cpu; expected --device cuda; try quantise=torchao-int8 or quantise=fp8")
    if quantise in NEED_GPU and encoder_device is not None and torch.device(encoder_device).type == "cpu":
        raise UserError(f"option quantise is {quantise!r}, for the text encoder too, and option encoder_device is cpu, "
                        "where diffusers does not offer it; expected one of them; try offload=component in its place")


def loading_config(quantise: str, library: str, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """Arguments for `from_pretrained` of diffusers or transformers; {} for a way that follows the loading."""
    # diffusers up to 0.35 moves what it has loaded, which it forbids itself for int8 (`swapped` does not).
    if quantise not in WHILE_LOADING or quantise == "int8" and library == "diffusers":
        return {}
    import diffusers
    import transformers

    config = (diffusers if library == "diffusers" else transformers).BitsAndBytesConfig
    how = ({"load_in_8bit": True} if quantise == "int8" else
           {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype})
    # diffusers forbids to move such a part as a whole afterwards, so it is loaded where it is packed.
    return {"quantization_config": config(**how), "device_map": {"": torch.device(device)}}


def load_packed(folder: Path, name: str, entry: list[str], dtype: torch.dtype, device: str | torch.device,
                quantise: str = "none", pack_on: str | torch.device | None = None) -> nn.Module:
    """A model of a folder on its device, with its weights in fewer bits.

    Args:
        folder, name, entry: as `load_part` takes them.
        pack_on: where bitsandbytes packs it before it goes home to main memory; None: on `device`, where it stays.
    """
    where = device if pack_on is None else pack_on
    config = loading_config(quantise, entry[0], dtype, where)
    part = load_part(folder, name, entry, dtype, **config)
    part = even(part, dtype) if config else packed(part, quantise, dtype, where)
    return placed(part, quantise, device, pack_on)


def even(part: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A part that a library has packed, what it left whole in one dtype: transformers 4 keeps T5's `wo` in fp32, also
    where bf16 has room for its numbers, and that is 2 GB more of FLUX.1-dev's. In place."""
    for layer in part.modules():
        if dtype == torch.bfloat16 and type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
            layer.to(dtype)
    return part


def placed(part: nn.Module, quantise: str, device: str | torch.device, pack_on: str | torch.device | None = None
           ) -> nn.Module:
    """A part that was loaded, where it belongs. What bitsandbytes has packed lies where it was, and goes home if that
    was somewhere else than it is to stay."""
    if quantise not in WHILE_LOADING:
        return part.to(device)
    if pack_on is not None:
        send_home(part)
    return part


def packed(part: nn.Module, quantise: str, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A part that was loaded whole with its weights in fewer bits; bitsandbytes packs them on `device`. In place."""
    return swapped(part, quantise, dtype, device) if quantise in WHILE_LOADING else quantised(part, quantise, dtype)


def quantised(part: nn.Module, quantise: str, dtype: torch.dtype) -> nn.Module:
    """A loaded part with its weights in fewer bits, for the ways that follow the loading; in place."""
    if quantise == "fp8":
        cast_storage(part, dtype)
    elif quantise == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        quantize_(part, Int8WeightOnlyConfig())
    return part


def swapped(part: nn.Module, quantise: str, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A loaded part with bitsandbytes' layers in place of its linear ones, on a device; in place.

    For what does not come from a folder: the libraries' loaders of single files take only what is quantised already.
    """
    import bitsandbytes as bnb

    for name, layer in list(part.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        sizes = (layer.in_features, layer.out_features, layer.bias is not None)
        weight = layer.weight.data.cpu()
        if quantise == "nf4":
            new = bnb.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", device="meta")
            # Scales stay whole, as the two libraries leave them; bitsandbytes by itself would round them too.
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=False)
        else:
            new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=6.0, device="meta")
            new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.bias, new.training = layer.bias, layer.training
        part.set_submodule(name, new.to(device))
    return part.to(device)


def cast_storage(part: nn.Module, dtype: torch.dtype) -> None:
    """Keep a part's large layers in float8 and compute in `dtype`; works without weights (meta device) too."""
    from diffusers import ModelMixin
    from diffusers.hooks import apply_layerwise_casting

    if isinstance(part, ModelMixin):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
    else:
        apply_layerwise_casting(part, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype,
                                skip_modules_pattern=TEXT_WHOLE, skip_modules_classes=(nn.MultiheadAttention,))
