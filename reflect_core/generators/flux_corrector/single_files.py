"""FLUX.1's components from single files, as people have them for ComfyUI.

A transformer, autoencoder, CLIP-L or T5 in a file of its own, or several in one checkpoint; bf16, fp16 or fp32,
fp8 with or without scales, or GGUF. Nothing is looked up anywhere: what a config.json would say is read from the
tensors' shapes (`configs.py`). diffusers and transformers do the loading where they can; a plain transformer goes
tensor by tensor into an outline without weights, so that it is in memory once.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...presets.architectures import FLUX
from ...types import UserError
from ...weight_file import WeightFile, lacked, lacking
from ..loading import check_info, class_of, dtype_word, wrapped
from ..quantise import WHILE_LOADING, cast_storage, even, loading_config, packed, quantised
from .architecture import missing_said, parts_in
from .configs import DEV_SCHEDULER, SCHNELL_SCHEDULER, clip_config, t5_config, transformer_config, vae_config
from .original_names import Piece, shapes_of

_CONFIGS = {"transformer": transformer_config, "vae": vae_config, "text_encoder": clip_config,
            "text_encoder_2": t5_config}


@dataclass(frozen=True)
class FilePart:
    """One component in a file."""

    name: str
    file: WeightFile
    pieces: dict[str, Piece]
    config: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def is_packed(self) -> bool:
        """Whether some of its matrices can be kept as GGUF packed them."""
        return any(self.file.is_packed(piece.key) for piece in self.pieces.values())

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        piece = self.pieces[name]
        return self.file.read(piece.key, dtype, piece.rows)


def file_parts(path: str | Path) -> dict[str, FilePart]:
    """Component -> what there is of it in a file. Reads the header; UserError for a file that is none of FLUX.1's."""
    file = WeightFile(path)
    parts = {}
    for name, pieces in parts_in(file).items():
        shapes = shapes_of(pieces, file.shapes)
        try:
            parts[name] = FilePart(name, file, pieces, _CONFIGS[name](shapes))
        except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
            raise UserError(f"{path}: its {name} cannot be understood ({type(error).__name__}: {error}); expected one "
                            "of FLUX.1, whole; try to download it again, or another release of it") from error
        _check_packed(parts[name])
    return parts


def outline(part: FilePart) -> nn.Module:
    """A transformer or autoencoder without weights (meta device), checked against what the file has.

    UserError for a file that lacks a tensor, has one too many or one of another shape.
    """
    with torch.device("meta"):
        model = _class(part).from_config(part.config)
    if part.name != "transformer":
        return model
    have, wanted = shapes_of(part.pieces, part.file.shapes), model.state_dict()
    said = missing_said(part.path, sorted(set(wanted) - set(have)), sorted(set(have) - set(wanted)))
    if said is not None:
        raise UserError(said)
    for name, tensor in wanted.items():
        if tuple(tensor.shape) != have[name]:
            raise UserError(f"{part.path}: {part.pieces[name].key} makes {name} of shape {have[name]}; expected "
                            f"{tuple(tensor.shape)} as in FLUX.1; try to download it again")
    return model


def load_file_part(part: FilePart, dtype: torch.dtype, device: str | torch.device, quantise: str = "none") -> nn.Module:
    """A component in evaluation mode and frozen, on its device.

    Args:
        quantise: of `generators.quantise.WAYS`, for transformer and T5; the rest is loaded whole.
    """
    if part.name in ("vae", "text_encoder"):
        quantise = "none"
    if part.name.startswith("text_encoder"):
        model = _text_encoder(part, dtype, device, quantise)
    elif part.name == "vae":
        state = {name: part.tensor(name, dtype) for name in part.pieces}
        model = _from_single_file(part, state, dtype)
    elif part.is_packed:
        model = _packed_transformer(part, dtype, device)
    else:
        model = _plain_transformer(part, dtype, device, quantise)
    unread = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if unread:
        raise UserError(missing_said(part.path, unread, []))
    if quantise not in WHILE_LOADING:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def make_scheduler(transformer: dict[str, Any]) -> Any:
    """The scheduler that FLUX.1-dev has, or FLUX.1-schnell's for a transformer without guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**(DEV_SCHEDULER if transformer["guidance_embeds"] else SCHNELL_SCHEDULER))


def _plain_transformer(part: FilePart, dtype: torch.dtype, device: str | torch.device, quantise: str) -> nn.Module:
    model = nn.Module.to(outline(part), dtype)  # diffusers' own `to` has advice about modules to keep in fp32
    if quantise == "fp8":
        # Before the weights: the outline then says of each in which dtype it is to lie.
        cast_storage(model, dtype)
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    # By way of `dtype`, as it goes from a folder: rounding twice is not the same as rounding once.
    model.load_state_dict({name: part.tensor(name, dtype).to(kinds[name]) for name in part.pieces}, assign=True)
    return model if quantise == "fp8" else packed(model, quantise, dtype, device)


def _packed_transformer(part: FilePart, dtype: torch.dtype, device: str | torch.device) -> nn.Module:
    """A transformer whose matrices stay as GGUF packed them, and are unpacked as they are used."""
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.gguf.utils import GGUFParameter  # what the config's loader looks for; needs gguf

    config = wrapped(part.path, lambda: GGUFQuantizationConfig(compute_dtype=dtype))
    state: dict[str, Tensor] = {}
    for name, piece in part.pieces.items():
        if part.file.is_packed(piece.key):
            data, kind = part.file.packed(piece.key, piece.rows)
            state[name] = GGUFParameter(data, quant_type=kind)
        else:
            state[name] = part.tensor(name, dtype)
    return _from_single_file(part, state, dtype, quantization_config=config, device=str(device))


def _check_packed(part: FilePart) -> None:
    """UserError for a transformer in GGUF that diffusers, as it is here, cannot compute with, and for a text encoder
    that cannot be unpacked."""
    packed = {part.file.kinds[piece.key]: piece.key for piece in part.pieces.values()
              if part.file.is_packed(piece.key)}
    if part.name != "transformer":
        for key in packed.values():
            part.file.check_unpacks(key)
        return
    if not packed:
        return
    if missing := lacked("gguf", "accelerate"):
        raise UserError(f"{part.path}: is a transformer in GGUF; {lacking(missing)}")
    import diffusers

    if tuple(int(n) for n in diffusers.__version__.split(".")[:2]) < (0, 35):
        raise UserError(f"{part.path}: a transformer in GGUF needs diffusers 0.35 or newer, and "
                        f"{diffusers.__version__} is installed; try 'pip install -U diffusers', or a .safetensors file "
                        "of the model")
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    known = {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}
    for kind, key in packed.items():
        if kind not in known:
            raise UserError(f"{part.path}: {key} is packed as {kind}, which diffusers cannot unpack; expected one of "
                            f"{', '.join(sorted(known - {'BF16'}))}; try such a release of the model")


def _class(part: FilePart) -> Any:
    return class_of([FLUX[part.name].library, FLUX[part.name].kind])


def _from_single_file(part: FilePart, state: dict[str, Tensor], dtype: torch.dtype, **how: Any) -> nn.Module:
    """diffusers' own loader, with a config on this disk, so that it asks nobody."""
    cls = _class(part)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({"_class_name": cls.__name__, **part.config}))
        return wrapped(part.path, lambda: cls.from_single_file(state, config=folder, torch_dtype=dtype,
                                                               local_files_only=True, **how))


def _text_encoder(part: FilePart, dtype: torch.dtype, device: str | torch.device, quantise: str) -> nn.Module:
    import transformers

    state = {name: part.tensor(name, dtype) for name in part.pieces}
    config = {"text_encoder": transformers.CLIPTextConfig, "text_encoder_2": transformers.T5Config}[part.name]
    how = loading_config(quantise, "transformers", dtype, device)
    model, info = wrapped(part.path, lambda: _class(part).from_pretrained(
        None, config=config(**part.config), state_dict=state, output_loading_info=True, **{dtype_word(True): dtype},
        **how))
    check_info(part.path, "transformers", model, info)
    return even(model, dtype) if how else quantised(model, quantise, dtype)
