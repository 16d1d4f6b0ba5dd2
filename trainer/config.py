"""A training run's settings: one YAML file, overridden on the command line with `--set a.b=c`.

The dataclasses are the documentation of the keys: their types and defaults are what a config is
checked against, before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from reflect_core.types import UserError

from .schema import filled, parse
from .settings import SECTIONS, check_together, filled_sections

CONFIGS = "Configs lie in trainer/configs/"


@dataclass(frozen=True)
class TrainConfig:
    """What every task shares. `model` and `data` are the task's own, see `settings.py`."""

    name: str
    task: str
    """Of the FLUX family vae, text, base and corrector; of SANA sana_vae, sana_text, sana_vision, sana_base,
    reflect_context and reflect; of both harvest and bundle."""
    out: str
    """Folder of the run: checkpoints, log, sample grids and, at the end, `result/`."""
    seed: int = 0
    steps: int = 1000
    batch: int = 64
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
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
    """As torch names it: cpu, cuda, cuda:1, mps."""
    save_every: int = 500
    sample_every: int = 1000
    log_every: int = 20
    keep: int = 2
    """Checkpoints that are kept."""
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it was written; see `filled_config`."""
        return asdict(self)

    def sections(self) -> tuple[Any, Any]:
        """`model` and `data` as the task's own dataclasses, defaults filled in."""
        model, data = SECTIONS[self.task]
        sections = parse(model, self.model, "model."), parse(data, self.data, "data.")
        check_together(*sections)
        return sections


def load_config(path: str | Path, overrides: list[str] = ()) -> TrainConfig:
    """Read and check a config. Raises `UserError` that names the key and what was expected."""
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}. {CONFIGS}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}; expected `key: value` lines. {CONFIGS}")
    for item in overrides:
        _override(raw, item)
    try:
        config = parse(TrainConfig, raw)
        _check(config)
        config.sections()
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return config


def filled_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a config with the default of every key that it lacks, below `model` and `data` too."""
    full = filled(TrainConfig, raw)
    full["model"], full["data"] = filled_sections(full["task"], full["model"], full["data"])
    return full


def same_settings(was: dict[str, Any], now: dict[str, Any], free: set[str], where: str) -> None:
    """Raises `UserError` that names the first setting that is not as it was when `where` was written.

    `free` ones may change: keys as `model.base`, or patterns as `data.sources.*.path`. One that did not exist yet
    had what is now its default.
    """
    if was.get("task") != now["task"]:
        before, after = {"task": was.get("task")}, {"task": now["task"]}  # what is below has other keys
    else:
        before, after = _flat(filled_config(was)), _flat(filled_config(now))
    for key in [*after, *before]:
        if before.get(key) != after.get(key) and not any(fnmatchcase(key, pattern) for pattern in free):
            raise UserError(f"{where} was written with {key} = {before.get(key)!r}, the config says "
                            f"{after.get(key)!r}. Restore the setting, or choose another `out` to start anew")


def _flat(full: dict[str, Any]) -> dict[str, Any]:
    """Every setting by its key as `--set` takes it."""
    flat = {key: value for key, value in full.items() if key not in ("model", "data")}
    flat |= {f"model.{key}": value for key, value in full["model"].items()}
    flat |= {f"data.{key}": value for key, value in full["data"].items() if key != "sources"}
    for number, source in enumerate(full["data"].get("sources", [])):
        flat |= {f"data.sources.{number}.{key}": value for key, value in source.items()}
    return flat


def _override(raw: dict, item: str) -> None:
    key, sep, value = item.partition("=")
    if not sep or not key:
        raise UserError(f"--set {item!r}: expected KEY=VALUE, for example --set steps=200 or --set data.bank=1000")
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {item!r}: the value is not valid YAML: {_one_line(error)}") from error
    *path, last = key.split(".")
    place: Any = raw
    for part in path:
        if isinstance(place, list):
            place = place[_index(place, part, item)]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise UserError(f"--set {item!r}: {part!r} is a plain value and has nothing below it")
    place[_index(place, last, item) if isinstance(place, list) else last] = value


def _index(place: list, part: str, item: str) -> int:
    if not part.isdecimal() or int(part) >= len(place):
        raise UserError(f"--set {item!r}: {part!r} is no place in a list of {len(place)}; expected a whole number from "
                        "0 to below that; to make the list longer, set all of it")
    return int(part)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check(config: TrainConfig) -> None:
    """Values that the types do not say."""
    if config.task not in SECTIONS:
        raise UserError(f"task is {config.task!r}; expected one of {', '.join(SECTIONS)}")
    for key in ("steps", "batch", "accumulate", "save_every", "sample_every", "log_every", "keep"):
        if getattr(config, key) < 1:
            raise UserError(f"{key} is {getattr(config, key)}; expected at least 1")
    for key in ("seed", "warmup", "lr", "weight_decay", "clip"):
        if getattr(config, key) < 0:
            raise UserError(f"{key} is {getattr(config, key)}; expected at least 0")
    for key, most in (("cooldown", 1.0), ("ema", 0.99999)):
        if not 0 <= getattr(config, key) <= most:
            raise UserError(f"{key} is {getattr(config, key)}; expected between 0 and {most}")
    if len(config.betas) != 2 or not all(0 <= b < 1 for b in config.betas):
        raise UserError(f"betas is {config.betas}; expected two numbers from 0 to below 1")
    if config.optimizer not in ("adamw", "muon"):
        raise UserError(f"optimizer is {config.optimizer!r}; expected adamw or muon")
    if config.precision not in ("bf16", "fp32"):
        raise UserError(f"precision is {config.precision!r}; expected bf16 or fp32")
    if not config.out.strip():
        raise UserError("out is empty; expected a folder, for example runs/mine")
