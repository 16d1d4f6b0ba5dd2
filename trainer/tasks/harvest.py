"""Triplets from the base's own failures: draw, look, plan the smallest change, render it.

Writes what any corrector can train from: a folder of pictures and a `triplets.jsonl`. Batches already
written are not drawn again, so an interrupted harvest goes on where it ended.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from reflect_core.presets.load import load_generator, read_json
from reflect_core.shapes.detector import detect
from reflect_core.shapes.prompt import Requirement
from reflect_core.shapes.repair import plan
from reflect_core.shapes.sample import TASKS, sample_prompt
from reflect_core.types import Generator, Request, UserError

from ..config import TrainConfig, same_settings
from ..folder import claim, write_whole
from ..identity import digest, fingerprint
from ..shapes import mend, task_weights
from .common import autocast, provenance_of, write_provenance

SIDE = 64
FREE = {"name", "out", "steps", "log_every", "device", "model.base"}
"""Settings that may change between an interruption and the resumption."""


def harvest(config: TrainConfig, provenance: dict, report: Callable[[str], None] = lambda line: None) -> Path:
    """Run `config.steps` batches of `config.batch` pictures; returns the folder with the triplets."""
    (model, _), out = config.sections(), Path(config.out)
    claim(out, config.task)
    generator = load_generator(model.base, device=config.device, max_sequence_length=model.text_length,
                               max_batch=config.batch)
    base = fingerprint(*(generator.parts[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_2")
                         if name in generator.parts))
    same_run(out, {"config": config.to_json(), "base": base,
                   "asked": digest([prompt for prompt, _ in _asked(config, np.random.default_rng(config.seed))])})
    done = resume(out)
    counts = Counter({"triplets": 0})
    for entry in done:
        counts.update({k: v for k, v in entry.items() if k not in ("batch", "bytes")})
    if done:
        report(f"resumed at batch {len(done)}")
    with (out / "progress.jsonl").open("a") as log, (out / "triplets.jsonl").open("ab") as lines:
        for batch in range(len(done), config.steps):
            entries, seen = _batch(config, generator, batch, out)
            counts.update(seen)
            lines.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
            lines.flush()
            log.write(json.dumps({"batch": batch, "bytes": lines.tell(), **seen}) + "\n")
            log.flush()
            if (batch + 1) % config.log_every == 0 or batch + 1 == config.steps:
                report(f"batch {batch + 1}/{config.steps}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    batches = max(len(done), config.steps)
    write_provenance(out, {**provenance, "steps": batches, "samples": batches * config.batch,
                           "data": dict(counts), "base": provenance_of(model.base)})
    return out


def same_run(out: Path, settings: dict) -> None:
    """Keep the settings at the start; raises `UserError` if the folder holds something made with others."""
    file = out / "settings.json"
    if not file.exists():
        write_whole(file, json.dumps(settings, indent=1) + "\n")
        return
    was = read_json(file, "")
    if not {"config", "base"} <= set(was):
        raise UserError(f"{file} is not what a harvest writes; expected its config and base. Choose another `out`")
    same_settings(was["config"], json.loads(json.dumps(settings["config"])), FREE, str(file))
    if was["base"] != settings["base"]:
        raise UserError(f"the triplets in {out} are from another base than the one that is there now. Restore "
                        "it, or choose another `out` to start anew")
    if was.get("asked", settings["asked"]) != settings["asked"]:
        raise UserError(f"the triplets in {out} are of other prompts than the shapes world gives now: its sampling has "
                        "changed. Choose another `out` to start anew")


def _asked(config: TrainConfig, rng: np.random.Generator) -> list[tuple[str, Requirement]]:
    """The prompts of one batch, each with what it asks for, as often as it is drawn."""
    chances, tries = task_weights(config.data.get("tasks")), config.model.get("tries", 1)
    asked = [sample_prompt(TASKS[rng.choice(len(TASKS), p=chances)], rng) for _ in range(-(-config.batch // tries))]
    return [one for one in asked for _ in range(tries)][: config.batch]


def resume(out: Path) -> list[dict[str, int]]:
    """The batches that are done, one entry each; what a killed process wrote of the next one is cut off.

    A batch counts once its line is in `progress.jsonl`, which says how long `triplets.jsonl` is with it.
    """
    triplets, progress = out / "triplets.jsonl", out / "progress.jsonl"
    size = triplets.stat().st_size if triplets.exists() else 0
    done = []
    for line in progress.read_bytes().splitlines(keepends=True) if progress.exists() else []:
        if not line.endswith(b"\n"):
            break  # torn
        entry = json.loads(line)
        if entry["batch"] != len(done) or entry["bytes"] > size:
            break
        done.append(entry)
    if progress.exists():
        write_whole(progress, "".join(json.dumps(entry) + "\n" for entry in done))
    if triplets.exists():
        os.truncate(triplets, done[-1]["bytes"] if done else 0)
    return done


def _batch(config: TrainConfig, generator: Generator, batch: int, out: Path) -> tuple[list[dict], dict[str, int]]:
    """Draw one batch; returns the lines for triplets.jsonl, whose pictures are written, and what was seen.

    Every picture is right, no_room (no mended scene was found) or a triplet; any may also be malformed.
    """
    model, _ = config.sections()
    rng = np.random.default_rng([config.seed, batch])
    asked = _asked(config, rng)
    requests = [Request(prompt, int(rng.integers(2**31)), SIDE, SIDE, model.sample_steps, model.sample_guidance)
                for prompt, _ in asked]
    with autocast(config):
        drawn = generator.draw(requests)
    entries, seen = [], {"right": 0, "no_room": 0, "malformed": 0, "triplets": 0}
    for k, ((prompt, requirement), picture) in enumerate(zip(asked, drawn)):
        array = np.asarray(picture.picture)
        objects = detect(array)
        seen["malformed"] += any(o.shape == "blob" for o in objects)
        triplet = mend(prompt, requirement, objects, array, rng)
        if triplet is None:
            seen["no_room" if plan(objects, requirement) else "right"] += 1
            continue
        seen["triplets"] += 1
        folder = f"{batch // 100:04d}"
        (out / folder).mkdir(exist_ok=True)
        names = {side: f"{folder}/{batch:06d}-{k:03d}-{side}.png" for side in ("flawed", "good")}
        Image.fromarray(triplet.flawed).save(out / names["flawed"])
        Image.fromarray(triplet.good).save(out / names["good"])
        entries.append({"prompt": prompt, "reflection": triplet.reflection, **names})
    return entries, seen
