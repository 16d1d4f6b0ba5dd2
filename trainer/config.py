"""A training run's settings: one YAML file, overridden on the command line with `--set a.b=c`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from reflect_core.types import UserError

TASKS = ("vae", "base", "harvest", "corrector", "bundle")


@dataclass
class TrainConfig:
    """What every task shares; `model` and `data` are read by the task itself."""

    name: str
    task: str
    out: str
    """Folder of the run: checkpoints, log, sample grids and, at the end, the exported weights."""
    seed: int = 0
    steps: int = 1000
    batch: int = 64
    lr: float = 1e-3
    """Peak learning rate, of AdamW; Muon's updates are scaled to the same size."""
    warmup: int = 100
    cooldown: float = 0.3
    """Last share of the steps, over which the learning rate falls linearly to zero."""
    optimizer: str = "adamw"
    """adamw, or muon: Muon for the matrices inside the blocks, AdamW for everything else."""
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    ema: float = 0.999
    """Decay of the averaged weights that are sampled from and exported; 0 turns them off."""
    precision: str = "bf16"
    """bf16 (autocast; weights, optimiser and averages stay fp32) or fp32."""
    compile: bool = False
    device: str = "cpu"
    save_every: int = 500
    sample_every: int = 1000
    log_every: int = 20
    keep: int = 2
    """Checkpoints that are kept."""
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read and check a config. Raises `UserError` that names the key and what was expected."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}. Configs lie in trainer/configs/") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}; expected `key: value` lines")
    for item in overrides:
        _override(raw, item)
    known = {f.name for f in fields(TrainConfig)}
    unknown = sorted(set(raw) - known)
    if unknown:
        raise UserError(f"{path}: unknown key {unknown[0]!r}; expected some of {', '.join(sorted(known))}")
    for key in ("name", "task", "out"):
        if key not in raw:
            raise UserError(f"{path}: the key {key!r} is missing")
    config = TrainConfig(**raw)
    _check(config, path)
    return config


def _override(raw: dict, item: str) -> None:
    key, sep, value = item.partition("=")
    if not sep or not key:
        raise UserError(f"--set {item!r}: expected KEY=VALUE, for example --set steps=200 or --set data.bank=1000")
    *path, last = key.split(".")
    for part in path:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise UserError(f"--set {item!r}: {part!r} is a plain value and has nothing below it")
    raw[last] = yaml.safe_load(value)


def _check(config: TrainConfig, path: str | Path) -> None:
    if config.task not in TASKS:
        raise UserError(f"{path}: task is {config.task!r}; expected one of {', '.join(TASKS)}")
    for f in fields(TrainConfig):
        value, default = getattr(config, f.name), f.default
        if isinstance(default, bool) or not isinstance(default, (int, float, str)):
            continue
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        if not isinstance(value, kinds) or isinstance(value, bool):
            hint = " (YAML reads 1e-3 as text: write 1.0e-3)" if isinstance(default, float) else ""
            raise UserError(f"{path}: {f.name} is {value!r}; expected a {type(default).__name__}{hint}")
    for key in ("steps", "batch", "save_every", "sample_every", "log_every", "keep"):
        if getattr(config, key) < 1:
            raise UserError(f"{path}: {key} is {getattr(config, key)}; expected at least 1")
    if config.optimizer not in ("adamw", "muon"):
        raise UserError(f"{path}: optimizer is {config.optimizer!r}; expected adamw or muon")
    if config.precision not in ("bf16", "fp32"):
        raise UserError(f"{path}: precision is {config.precision!r}; expected bf16 or fp32")
