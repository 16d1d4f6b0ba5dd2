"""The Image-Verifier's checkpoint as it is published (`diffusion-cot/Image-Verifier`), read without pickles.

    model_config.json              in the folder, or in the checkpoint's own: sections data_config, model_config,
                                   peft_lora_config and, where scores are normalised, inference_config (VQ_mean, VQ_std)
    checkpoint-<step>/model.safetensors                                              all weights ("full"), or
    checkpoint-<step>/adapter_model.safetensors + non_lora_state_dict.safetensors    what was trained ("adapter")

Published are `model.pth` and `non_lora_state_dict.pth`; the error that they get has the command that makes safetensors
of them, once. Besides, the Qwen2.5-VL that it was tuned from is needed, in a folder of its own: of it configs and
tokenizer with the full layout, and the weights too with an adapter.

Different from the official loader: a step that is not there is an error and not silently the highest one, and every
tensor is accounted for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...generators.checking import is_number
from ...generators.loading import load_part, quiet, wrapped
from ...generators.memory import is_out_of_memory
from ...model_files import check_safetensors, read_json, read_safetensors
from ...types import UserError
from .merging import EMBEDDING, HEAD, Lora, Scales, merge, sorted_out
from .weights import check_folder, refuse_pickle

CLASS = "Qwen2_5_VLForConditionalGeneration"
MOST_PIXELS = 240 * 320
"""The official default; a checkpoint's data_config may have another."""


@dataclass(frozen=True)
class Checkpoint:
    """What lies in a folder, before any weight is read."""

    folder: Path
    """The one with the weights."""
    layout: str
    """'full' or 'adapter'."""
    step: int | None
    """None where the weights lie in the folder itself."""
    steps: tuple[int, ...]
    """All that there are."""
    sections: Mapping[str, Any] = field(repr=False)
    """model_config.json."""

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of model_config.json; empty if there is none."""
        value = self.sections.get(name) or {}
        if not isinstance(value, Mapping):
            raise UserError(f"{self.folder}: {name} in model_config.json is {value!r}; expected an object")
        return value

    @property
    def normalisation(self) -> tuple[float, float] | None:
        """(mean, deviation) of raw scores, or None where none are given: the trainer does not write them."""
        config = self.section("inference_config")
        if not config:
            return None
        mean, deviation = config.get("VQ_mean"), config.get("VQ_std")
        if not (is_number(mean) and is_number(deviation) and deviation > 0):
            raise UserError(f"{self.folder}: VQ_mean and VQ_std in model_config.json are {mean!r} and {deviation!r}; "
                            "expected numbers, the second above 0; try to leave inference_config out, for raw scores")
        return float(mean), float(deviation)

    @property
    def most_pixels(self) -> int:
        data = self.section("data_config")
        value = data.get("max_pixels", data.get("max_frame_pixels", MOST_PIXELS))
        if not is_number(value) or value < 28 * 28:
            raise UserError(f"{self.folder}: max_pixels in model_config.json is {value!r}; expected a number of pixels")
        return int(value)

    @property
    def about(self) -> str:
        """Which weights were taken, in words."""
        where = self.folder.name if self.step is None else f"step {self.step}"
        others = [step for step in self.steps if step != self.step]
        return f"{self.layout}, {where}" + (f" (there are also {', '.join(map(str, others))})" if others else "")


def find_checkpoint(folder: str | Path, step: int | None = None) -> Checkpoint:
    """What is in a folder: the weights themselves, or checkpoint-<step> folders, of which the highest is taken unless
    `step` names another. UserError, naming the file, for what is missing or a pickle."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected the Image-Verifier's, with checkpoint-<step> in it; try "
                        "the path that it was downloaded to")
    steps = tuple(sorted(int(match[1]) for path in folder.iterdir()
                         if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))))
    if step is not None and step not in steps:
        there = f"one of the steps {', '.join(map(str, steps))}" if steps else "checkpoint-<step> folders in it"
        raise UserError(f"{folder}: has no checkpoint-{step}; expected {there}; try one of them, or no step for the "
                        "highest")
    taken = step if step is not None else steps[-1] if steps else None
    place = folder if taken is None else folder / f"checkpoint-{taken}"
    config = next((path for path in (folder, place, folder.parent) if (path / "model_config.json").is_file()), folder)
    sections = read_json(config / "model_config.json", "expected it there or beside the weights: it says how the "
                         "Image-Verifier was trained; try to download it from the checkpoint's repository")
    found = Checkpoint(place, _layout(place), taken, steps, sections)
    model = found.section("model_config")
    if model.get("output_dim", 1) != 1:
        raise UserError(f"{config / 'model_config.json'}: output_dim is {model['output_dim']!r}; expected 1, the score "
                        "'VQ'; try the Image-Verifier's own checkpoint")
    if not model.get("use_special_tokens", True) and model.get("reward_token") != "special":
        raise UserError(f"{config / 'model_config.json'}: the score is read at {model.get('reward_token')!r}; expected "
                        "'special', the added token; try the Image-Verifier's own checkpoint")
    return found


def _layout(place: Path) -> str:
    """'full' or 'adapter', by the files that there are, which are checked."""
    rest = place / "non_lora_state_dict"
    if (place / "adapter_model.safetensors").is_file():
        if not rest.with_suffix(".safetensors").is_file():
            if rest.with_suffix(".pth").is_file():
                raise refuse_pickle(rest.with_suffix(".pth"))
            raise UserError(f"{rest}.safetensors: no such file; expected the head and what else was trained besides "
                            "the LoRA; try to download the checkpoint again")
        for name in ("adapter_model", "non_lora_state_dict"):
            check_safetensors(place / f"{name}.safetensors")
        return "adapter"
    if list(place.glob("model*.safetensors")):
        check_folder(place, "the Image-Verifier")
        return "full"
    for pickle in (place / "model.pth", place / "adapter_model.bin"):
        if pickle.is_file():
            raise refuse_pickle(pickle)
    raise UserError(f"{place}: has no weights; expected model.safetensors, or adapter_model.safetensors with "
                    "non_lora_state_dict.safetensors; try the checkpoint's own folder, or to download it again")


def load(found: Checkpoint, base: Path, dtype: torch.dtype) -> tuple[nn.Module, nn.Linear]:
    """(the Qwen2.5-VL model without its language head, the reward head in fp32), on the CPU, frozen.

    UserError, naming the tensor, unless checkpoint and base belong together and nothing is left over.
    """
    files = (sorted(found.folder.glob("model*.safetensors")) if found.layout == "full" else
             [found.folder / f"{name}.safetensors" for name in ("adapter_model", "non_lora_state_dict")])
    tensors = {name: tensor for file in files for name, tensor in read_safetensors(file)[0].items()}
    weights, loras = sorted_out(tensors, found.folder)
    # What the language head would say is never asked for.
    weights.pop("lm_head.weight", None)
    loras = [lora for lora in loras if lora.path != "lm_head"]
    if HEAD not in weights:
        raise UserError(f"{found.folder}: its weights lack {HEAD}; expected the reward head, which is always trained; "
                        "try to download the checkpoint again")
    rows = _embedding_rows(weights, loras, found)
    scales = Scales.of_adapter(found.folder, found.section("peft_lora_config"))
    if found.layout == "full":
        merge(weights, loras, scales, found.folder)
        head = weights.pop(HEAD)
        model = _from_tensors(base, weights, rows, dtype, found.folder)
    else:
        head = weights.pop(HEAD)
        check_folder(base, "the base, a Qwen2.5-VL")
        with quiet():
            model = load_part(base.parent, base.name, ["transformers", CLASS], dtype)
            model.resize_token_embeddings(rows, mean_resizing=False)
        own = {name: parameter.data for name, parameter in model.named_parameters()}
        for name, tensor in weights.items():
            if name not in own or own[name].shape != tensor.shape:
                raise _strange(found.folder, name, tensor, own.get(name))
            own[name].copy_(tensor)
        merge(own, loras, scales, found.folder)
    width = model.config.get_text_config().hidden_size
    if head.shape != (1, width):
        raise UserError(f"{found.folder}: {HEAD} has the shape {tuple(head.shape)}; expected (1, {width}), by the "
                        f"base in {base}; try the base that model_config.json names")
    linear = nn.Linear(width, 1, bias=False, device="meta")
    linear.load_state_dict({"weight": head.to(torch.float32)}, assign=True)
    return model.model.eval().requires_grad_(False), linear.eval().requires_grad_(False)


def _embedding_rows(weights: Mapping[str, Tensor], loras: list[Lora], found: Checkpoint) -> int:
    """Rows of the checkpoint's embedding, which it must have: the reward token's own was trained."""
    if EMBEDDING in weights:
        return weights[EMBEDDING].shape[0]
    for lora in loras:
        if lora.embedding and lora.weight == EMBEDDING:
            return lora.a.shape[1]
    raise UserError(f"{found.folder}: its weights lack {EMBEDDING}; expected the embedding with the reward token's "
                    "row in it, which no base has; try to download the checkpoint again")


def _from_tensors(base: Path, weights: dict[str, Tensor], rows: int, dtype: torch.dtype, where: Path) -> nn.Module:
    """The model that a base's config.json describes, with these weights."""
    import transformers

    read_json(base / "config.json", "expected the folder of the Qwen2.5-VL that the checkpoint was tuned from")
    cls = getattr(transformers, CLASS)
    with quiet():
        config = wrapped(base, lambda: cls.config_class.from_pretrained(base, local_files_only=True))
        config.get_text_config().vocab_size = rows
        try:
            model, info = cls.from_pretrained(None, config=config, state_dict=weights, dtype=dtype,
                                              output_loading_info=True)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            said = " ".join(str(error).split())[:200]
            raise UserError(f"{where}: does not fit the config in {base} ({said}); expected the base that it was tuned "
                            "from; try the one that model_config.json names") from error
    wrong = sorted(key for key in (*info["missing_keys"], *info["unexpected_keys"]) if key != "lm_head.weight")
    mismatched = sorted(str(key[0] if isinstance(key, (tuple, list)) else key) for key in info["mismatched_keys"])
    if wrong or mismatched:
        names = [*wrong, *mismatched]
        raise UserError(f"{where}: {names[0]} is missing, too many, or of another shape than the config in {base} says"
                        f"{f', and {len(names) - 1} more' if len(names) > 1 else ''}; expected the base that it was "
                        "tuned from; try the one that model_config.json names")
    return model


def _strange(where: Path, name: str, tensor: Tensor, own: Tensor | None) -> UserError:
    has = "has no such tensor" if own is None else f"has it in the shape {tuple(own.shape)}"
    return UserError(f"{where}: has {name} in the shape {tuple(tensor.shape)}, and the base {has}; expected the base "
                     "that it was tuned from; try the one that model_config.json names")
