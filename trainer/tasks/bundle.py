"""Put a trained base and its corrector together as a model folder that the library and diffusers read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from reflect_core.generators.flux_corrector.folder import load_components, write_folder
from reflect_core.generators.flux_corrector.lora import ConditionLora
from reflect_core.types import UserError

from ..config import TrainConfig


def bundle(config: TrainConfig, provenance: dict, report=lambda line: None) -> Path:
    """Write `config.out` anew from `model.base` and, if given, `model.lora`; `data` becomes reflect.json.

    Weights are stored in bf16, as FLUX.1-dev's are, the autoencoder's included.
    """
    m, out = config.model, Path(config.out)
    parts = load_components(m["base"], torch.bfloat16)
    lora = ConditionLora.load(m["lora"], parts["transformer"]) if m.get("lora") else None
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    written = {k: part for k, part in parts.items() if not k.startswith("tokenizer")}
    write_folder(partial, **written, lora=lora.to(torch.bfloat16) if lora is not None else None,
                 settings=config.data)
    for name in ("tokenizer", "tokenizer_2"):
        (partial / name).mkdir(exist_ok=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(Path(m["base"]) / name / file, partial / name / file)
    sources = {key: _provenance(m[key]) for key in ("base", "lora") if m.get(key)}
    (partial / "provenance.json").write_text(json.dumps(sources, indent=1) + "\n")
    size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
    report(f"{size / 2**20:.1f} MB")
    if size > m.get("most_megabytes", 24) * 2**20:
        raise UserError(f"{partial} has {size / 2**20:.1f} MB; expected at most {m.get('most_megabytes', 24)}. "
                        "Train a smaller transformer or LoRA")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _provenance(folder: str) -> dict:
    file = Path(folder) / "provenance.json"
    if not file.is_file():
        raise UserError(f"{folder} has no provenance.json; expected the result folder of a training run")
    return json.loads(file.read_text())
