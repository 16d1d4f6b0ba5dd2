"""Triplets from the base's own failures: draw, look, plan the smallest change, render it.

Writes what any corrector can train from: a folder of pictures and a `triplets.jsonl`. Batches already
written are not drawn again, so an interrupted harvest goes on where it ended.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.shapes.detector import detect
from reflect_core.shapes.sample import TASKS, sample_prompt
from reflect_core.types import Request

from ..bank import task_weights
from ..config import TrainConfig
from ..triplets import mend


def harvest(config: TrainConfig, provenance: dict, report=lambda line: None) -> Path:
    """Run `config.steps` batches of `config.batch` pictures; returns the folder with the triplets."""
    m, out = config.model, Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    done = resume(out)
    generator = FluxCorrector.from_folder(m["base"], condition_size=64, max_sequence_length=m["text_length"],
                                          max_batch=config.batch)
    counts: Counter[str] = Counter()
    for entry in done:
        counts.update({k: v for k, v in entry.items() if k not in ("batch", "bytes")})
    with (out / "triplets.jsonl").open("ab") as lines, (out / "progress.jsonl").open("a") as log:
        for batch in range(len(done), config.steps):
            entries, seen = _batch(config, generator, batch, out)
            counts.update(seen)
            for entry in entries:
                lines.write(json.dumps(entry).encode() + b"\n")
            lines.flush()
            log.write(json.dumps({"batch": batch, "bytes": lines.tell(), **seen}) + "\n")
            log.flush()
            if (batch + 1) % config.log_every == 0:
                report(f"batch {batch + 1}/{config.steps}: " + ", ".join(f"{k} {v}" for k, v in counts.items()))
    (out / "provenance.json").write_text(json.dumps(provenance, indent=1) + "\n")
    return out


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
        partial = progress.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in done))
        partial.replace(progress)
    if triplets.exists():
        os.truncate(triplets, done[-1]["bytes"] if done else 0)
    return done


def _batch(config: TrainConfig, generator: FluxCorrector, batch: int, out: Path) -> tuple[list[dict], dict[str, int]]:
    rng = np.random.default_rng([config.seed, batch])
    chances, m = task_weights(config.data.get("tasks")), config.model
    asked = [sample_prompt(TASKS[rng.choice(len(TASKS), p=chances)], rng) for _ in range(config.batch)]
    requests = [Request(prompt, int(rng.integers(2**31)), 64, 64, m.get("sample_steps", 16),
                        m.get("sample_guidance", 2.5)) for prompt, _ in asked]
    with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
        drawn = generator.draw(requests)
    entries, seen = [], {"right": 0, "malformed": 0, "kept": 0, "no_room": 0}
    for k, ((prompt, requirement), picture) in enumerate(zip(asked, drawn)):
        array = np.asarray(picture.picture)
        objects = detect(array)
        triplet = mend(prompt, requirement, objects, array, rng)
        if triplet is None:
            seen["no_room" if _wrong(objects, requirement) else "right"] += 1
            continue
        seen["malformed"] += any(o.shape == "blob" for o in objects)
        seen["kept"] += 1
        folder = f"{batch // 100:04d}"
        (out / folder).mkdir(exist_ok=True)
        names = {side: f"{folder}/{batch:06d}-{k:03d}-{side}.png" for side in ("flawed", "good")}
        Image.fromarray(triplet.flawed).save(out / names["flawed"])
        Image.fromarray(triplet.good).save(out / names["good"])
        entries.append({"prompt": prompt, "reflection": triplet.reflection, **names})
    return entries, seen


def _wrong(objects, requirement) -> bool:
    from reflect_core.shapes.repair import plan

    return bool(plan(objects, requirement))
