"""Put a trained base and its corrector together as a model folder that the library and diffusers read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from reflect_core.generators.flux_corrector.folder import check_folder, load_components, lora_options, write_folder
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.generators.flux_corrector.options import CorrectorOptions
from reflect_core.generators.loading import load_part
from reflect_core.generators.reflect_dit import folder as sana
from reflect_core.generators.reflect_dit.checkpoint import load as load_checkpoint
from reflect_core.generators.reflect_dit.options import ReflectOptions
from reflect_core.generators.reflect_dit.sources import VISION
from reflect_core.presets.load import PICKLES, read_json, read_settings
from reflect_core.types import UserError

from ..config import TrainConfig
from ..settings import BundleModel
from .common import forget_places, read_provenance, uncommitted, write_provenance


def bundle(config: TrainConfig, provenance: dict, report: Callable[[str], None] = lambda line: None) -> Path:
    """Write `config.out` anew from `model.base` and what else is given; `data` becomes reflect.json, on top of the
    options that lie beside the corrector.

    Weights are stored in bf16, as the published ones are, the autoencoder's included. Whole or not at all.
    """
    (m, data), out = config.sections(), Path(config.out)
    if out.exists() and any(out.iterdir()) and "bundle" not in (read_provenance(out) or {}):
        raise UserError(f"{out} is in the way and is no model folder that this task wrote; expected one to replace, or "
                        "nothing. Choose another `out`")
    family = read_json(Path(m.base) / "model_index.json", "expected a model folder in diffusers' layout")
    flux = family.get("_class_name") != "SanaPipeline"
    unfit = ("checkpoint", "vision") if flux else ("lora",)
    for key in unfit:
        if getattr(m, key) is not None:
            raise UserError(f"model.{key} is {getattr(m, key)!r}; expected null, for {m.base} is of the "
                            f"{'FLUX' if flux else 'SANA'} family")
    given = {key: folder for key in ("base", "lora", "checkpoint", "vision") if (folder := getattr(m, key))}
    sources = {key: _provenance(folder, data.allow_dirty) for key, folder in given.items()}
    settings = {"about": data.about, "defaults": data.defaults, "options": data.options}
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (_write_flux if flux else _write_sana)(m, partial, settings)
        forget_places(partial)
        _, options = read_settings(partial)
        _check_options(CorrectorOptions if flux else ReflectOptions, options)
        write_provenance(partial, {**sources, "bundle": provenance})
        size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
        if size > m.most_megabytes * 2**20:
            raise UserError(f"the bundle has {size / 2**20:.1f} MB; expected at most {m.most_megabytes:g} "
                            "(model.most_megabytes). Train a smaller transformer or LoRA")
        shutil.rmtree(out, ignore_errors=True)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    report(f"{size / 2**20:.1f} MB")
    return out


def _write_flux(m: BundleModel, folder: Path, settings: dict) -> None:
    check_folder(m.base)
    parts = load_components(m.base, torch.bfloat16)
    lora = ConditionLora.load(m.lora, parts["transformer"]).to(torch.bfloat16) if m.lora else None
    written = {k: part for k, part in parts.items() if not k.startswith("tokenizer")}
    write_folder(folder, **written, tokenizers=_copy_tokenizers(Path(m.base), folder), lora=lora,
                 settings=_with_trained(settings, lora_options(m.lora) if m.lora else {}))


def _write_sana(m: BundleModel, folder: Path, settings: dict) -> None:
    """The base with a `reflect` run's result in the place of its transformer: of Reflect-DiT, with its picture encoder,
    or of plain SANA (`model.sft`)."""
    parts = sana.load_components(m.base, dtype=torch.bfloat16)
    defaults, trained = read_settings(m.base)
    if m.checkpoint is not None:
        config = read_json(Path(m.checkpoint) / "config.json", "expected the result folder of a reflect run")
        trained = read_settings(m.checkpoint)[1]
        if bool(config.get("reflection")) != (m.vision is not None):
            raise UserError(f"model.vision is {m.vision!r}; expected "
                            + ("the picture encoder of the checkpoint" if m.vision is None else
                               f"null, for {m.checkpoint} is of plain SANA"))
        if m.vision is None:
            place = Path(m.checkpoint)
            parts["transformer"] = load_part(place.parent, place.name, ["diffusers", "SanaTransformer2DModel"],
                                             torch.bfloat16)
        else:
            parts["transformer"], parts["context"] = load_checkpoint(m.checkpoint, torch.bfloat16)
            parts[VISION] = sana.load_vision(m.vision, torch.bfloat16)
    elif m.vision is not None:
        raise UserError(f"model.vision is {m.vision!r}; expected model.checkpoint too")
    parts["tokenizer"] = Path(m.base) / "tokenizer"
    settings = {**settings, "defaults": {**defaults, **settings["defaults"]}}
    sana.write_folder(folder, **parts, settings=_with_trained(settings, trained))


def _with_trained(settings: dict, options: dict) -> dict:
    """What becomes reflect.json: the config's options on top of those that the model was trained with."""
    settings = {**settings, "options": {**options, **settings["options"]}}
    return {key: value for key, value in settings.items() if value}


def _copy_tokenizers(base: Path, folder: Path) -> tuple[str, str]:
    """Copy both tokenizers as they are; returns their classes."""
    index = json.loads((base / "model_index.json").read_text(encoding="utf-8"))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(base / name, folder / name, ignore=shutil.ignore_patterns(*(f"*{p}" for p in PICKLES)))
    return index["tokenizer"][1], index["tokenizer_2"][1]


def _check_options(kind: type, options: dict) -> None:
    try:
        kind(**options)
    except TypeError as error:
        raise UserError(f"data.options: {error}; expected those of {kind.__name__}") from error


def _provenance(folder: str, allow_dirty: bool) -> dict:
    found = read_provenance(folder)
    if found is None:
        raise UserError(f"{folder} has no provenance.json; expected the result folder of a training run")
    where = uncommitted(found, "provenance")
    if where and not allow_dirty:
        raise UserError(f"{folder}: {where} has a commit that ends with -dirty: files of the trainer or the library "
                        "differed from it, so that nobody can train these weights again or read the code that did. "
                        "Expected committed code; train anew, or set data.allow_dirty: true to take them all the same")
    return found
