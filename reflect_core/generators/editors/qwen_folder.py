"""A Qwen-Image-Edit model as a folder in diffusers' layout, read without network: complete, or not at all.

`model_index.json` names one of two pipelines: QwenImageEditPipeline (the first release) or QwenImageEditPlusPipeline
(2509 and 2511), which differ in how the text encoder is shown the picture. Of `processor/` only the pictures' part is
read: the part for videos wants torchvision, and there are none.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from ...model_files import read_json
from ...types import UserError
from ..loading import class_of, load_part, quiet, wrapped
from ..memory import enough_memory
from ..part_folder import check_index
from ..quantise import load_packed

_CLASSES = {
    "transformer": (("diffusers", "QwenImageTransformer2DModel"),),
    "vae": (("diffusers", "AutoencoderKLQwenImage"),),
    "text_encoder": (("transformers", "Qwen2_5_VLForConditionalGeneration"),),
    "tokenizer": tuple(("transformers", kind) for kind in ("Qwen2Tokenizer", "Qwen2TokenizerFast",
                                                           "PreTrainedTokenizerFast")),
    "processor": tuple(("transformers", kind) for kind in ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")),
    "scheduler": (("diffusers", "FlowMatchEulerDiscreteScheduler"),),
}
MODELS = ("transformer", "vae", "text_encoder")
PACKED = ("transformer", "text_encoder")
"""Components whose weights may be kept in fewer bits."""
PLUS = "QwenImageEditPlusPipeline"


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The model index of a folder that has every file and only classes of this family, all of which are installed.

    Reads configs and the headers of weights. Raises UserError, naming the file.
    """
    folder = Path(folder)
    index = check_index(folder, _CLASSES, _CLASSES, "this editor is of the Qwen-Image family")
    _check_diffusers(folder, index)
    return index


def load_components(folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    encoder_device: str | torch.device | None = None, quantise: str = "none",
                    pack_on: str | torch.device | None = None) -> dict[str, Any]:
    """Every component by its name, models in evaluation mode and frozen; of the processor the pictures' part, as
    `image_processor`, and the pipeline's templates as `pipeline`. Raises UserError, naming the file.

    Args:
        encoder_device: where the text encoder goes; None: `device`, like the rest.
        quantise: how the weights of transformer and text encoder are kept, see `generators/quantise.py`.
        pack_on: where bitsandbytes packs them, before they go to their `device`; None: there.
    """
    import transformers

    folder = Path(folder)
    index = check_folder(folder)
    parts: dict[str, Any] = {"pipeline": index["_class_name"]}
    with quiet(), enough_memory():
        for name in _CLASSES:
            if name == "processor":
                parts["image_processor"] = wrapped(folder / name, lambda: (
                    transformers.Qwen2VLImageProcessor.from_pretrained(folder / "processor", local_files_only=True)))
                continue
            where = encoder_device if encoder_device is not None and name == "text_encoder" else device
            way = quantise if name in PACKED else "none"
            parts[name] = (load_packed(folder, name, index[name], dtype, where, way, pack_on) if name in MODELS else
                           load_part(folder, name, index[name], dtype))
    return parts


def _check_diffusers(folder: Path, index: dict[str, Any]) -> None:
    """UserError if the diffusers that is installed is older than the model."""
    import diffusers

    older = f"diffusers {diffusers.__version__} is older than this model; try pip install --upgrade diffusers"
    for kind in (index["_class_name"], index["transformer"][1], index["vae"][1]):
        if not hasattr(diffusers, kind):
            raise UserError(f"{folder / 'model_index.json'}: names {kind}, which is not installed: {older}; expected "
                            "0.35 or newer, for 2509 and 2511 0.36")
    config = read_json(folder / "transformer" / "config.json", "")
    known = inspect.signature(class_of(index["transformer"]).__init__).parameters
    # An older class leaves out what it does not know, and draws something else.
    if config.get("zero_cond_t") and "zero_cond_t" not in known:
        raise UserError(f"{folder / 'transformer' / 'config.json'}: has zero_cond_t, as of 2511, which {older}")
