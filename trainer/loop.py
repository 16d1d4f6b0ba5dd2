"""The training loop that every task shares.

All randomness of a step comes from (seed, step), so a resumed run sees the very batches and noise
that an uninterrupted one would have seen, and ends with the same weights to the bit.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reflect_core.types import UserError

from .checkpoint import Origin, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .folder import checkpoints, claim, tidy
from .interrupt import held
from .optimizers import Averages, Optimizers
from .tasks.common import attention

Report = Callable[[str], None]


class Task(Protocol):
    """What is trained: its parameters by name, its batches, its loss, its samples, its result.

    It may also have `rates()`, see `Optimizers`.
    """

    data: dict[str, Any]
    """What it is trained on, as JSON: kept in checkpoints and in the result's provenance."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def matrices(self) -> set[str]:
        """Names of the parameters that Muon may orthogonalise."""
        ...
    def loss(self, step: int, generator: torch.Generator) -> Tensor:
        """The mean loss (a scalar) of one batch, all of whose randomness is the generator's."""
        ...
    def sample(self, file: Path, step: int) -> dict[str, float]:
        """Write a sample grid to the file; returns figures for the log."""
        ...
    def export(self, folder: Path, provenance: dict) -> None: ...


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """The one source of randomness of a step, or of one of its accumulated parts."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step + (part << 40)) % (1 << 63))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Share of the peak at a step: linear warm-up, plateau, linear fall to zero."""
    up = min(1.0, (step + 1) / max(1, config.warmup))
    tail = max(1, round(config.steps * config.cooldown))
    return up * min(1.0, (config.steps - step) / tail)


def train(config: TrainConfig, task: Task, provenance: dict, report: Report = lambda line: None) -> Path:
    """Train, or go on where the last checkpoint ended. Returns the folder with the result.

    Ctrl+C saves a checkpoint before it leaves. Nothing is deleted before the folder is known to be a run's.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    claim(out, config.task)
    run = _Run(config, task, provenance["commit"], report)
    found = checkpoints(out)
    if found:
        run.resume(found[-1])
    tidy(out, run.done if found else -1)
    parameters = sum(p.numel() for p in run.optimizers.named.values())
    report(f"{parameters / 1e6:.2f} M parameters, {config.steps - run.done} steps to go")
    run.go()
    return run.export(provenance)


class _Run:
    """The state of a run between two of its steps."""

    def __init__(self, config: TrainConfig, task: Task, commit: str, report: Report) -> None:
        self.config, self.task, self.commit, self.report = config, task, commit, report
        self.out = Path(config.out)
        self.optimizers = Optimizers(config, task)
        self.averages = Averages(self.optimizers.named, config.ema)
        self.done = self.saved = 0
        """Steps that the weights have seen, and that are on disk."""
        self.commits: tuple[str, ...] = ()

    def resume(self, file: Path) -> None:
        origin = load_checkpoint(file, self.config, self.task.data, self.optimizers, self.averages)
        self.done = self.saved = origin.step
        self.commits = origin.commits
        self.report(f"resumed at step {self.done}")

    def go(self) -> None:
        config = self.config
        try:
            if self.done == 0 or self._due(config.sample_every):
                self.sample()
            progress = _Progress(config, self.done)
            while self.done < config.steps:
                loss, norm = self.gradients()
                with held():
                    self.update()
                    progress.add(loss)
                    if self.done % config.log_every == 0:
                        entry, line = progress.entry(self.done)
                        self.log({**entry, "grad_norm": norm})
                        self.report(line)
                if self._due(config.save_every):
                    self.save()
                if self._due(config.sample_every):
                    self.sample()
                    progress.restart_clock()
        except KeyboardInterrupt:
            # A step that was cut is done again: its gradients are not part of the checkpoint.
            with held():
                self.averages.leave()
                self.save()
            self.report(f"interrupted: saved at step {self.done}; the same command goes on from here")
            raise

    def gradients(self) -> tuple[float, float]:
        """Put one step's gradients in place; returns its loss and the gradient's norm before clipping."""
        config, value = self.config, 0.0
        for part in range(config.accumulate):
            with attention(config):  # for the backward pass too: checkpointing computes blocks again in it
                loss = self.task.loss(self.done, step_generator(config.seed, self.done, part)) / config.accumulate
                loss.backward()
            value += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.optimizers.named.values(), config.clip or math.inf))
        for what, number in (("loss", value), ("gradient's norm", norm)):
            if not math.isfinite(number):  # one step with it would spoil every weight
                whole = f"The checkpoint of step {self.saved} is whole" if self.saved else "There is no checkpoint yet"
                raise UserError(f"the {what} became {number} at step {self.done}; expected a finite number; try a "
                                f"lower lr than {config.lr}, or precision: fp32. {whole}")
        return value, norm

    def update(self) -> None:
        self.optimizers.step(learning_rate(self.config, self.done))
        self.averages.update(self.done)
        self.done += 1

    def save(self) -> None:
        if self.done > self.saved and self.commit not in self.commits:
            self.commits += (self.commit,)
        origin = Origin(self.done, self.commits)
        save_checkpoint(self.out, origin, self.config, self.task.data, self.optimizers, self.averages)
        self.saved = self.done

    def sample(self) -> None:
        """A grid and figures with the averaged weights, unless a run that was cut has written this step's."""
        file = self.out / "samples" / f"{self.done:07d}.png"
        if file.exists():
            return
        self.averages.enter()
        partial = file.with_name("next.png")
        with torch.no_grad():
            figures = self.task.sample(partial, self.done)
        self.averages.leave()
        with held():
            if figures:
                self.log(figures)
                self.report(f"step {self.done}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))
            if partial.exists():
                os.replace(partial, file)

    def export(self, provenance: dict) -> Path:
        """Write the averaged weights as `result/`, whole or not at all."""
        result, partial = self.out / "result", self.out / "result.partial"
        config = self.config
        about = {**provenance, "commit": " ".join(self.commits) or provenance["commit"], "steps": config.steps,
                 "samples": config.steps * config.batch * config.accumulate, "data": self.task.data}
        self.averages.enter()
        self.task.export(partial, about)
        self.averages.leave()
        shutil.rmtree(result, ignore_errors=True)
        partial.rename(result)
        return result

    def log(self, entry: dict) -> None:
        entry = {k: round(v, 6) if isinstance(v, float) else v for k, v in entry.items()}
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.done, **entry}) + "\n")

    def _due(self, every: int) -> bool:
        return self.done % every == 0 or self.done == self.config.steps


class _Progress:
    """Loss and speed since the last line of the log."""

    def __init__(self, config: TrainConfig, done: int) -> None:
        self.config, self.since, self.total, self.began = config, done, 0.0, time.monotonic()

    def add(self, loss: float) -> None:
        self.total += loss

    def entry(self, done: int) -> tuple[dict[str, float], str]:
        """For the log and for people; what follows is counted anew."""
        c, steps = self.config, done - self.since
        rate = steps / (time.monotonic() - self.began)
        loss, samples = self.total / steps, rate * c.batch * c.accumulate
        self.total, self.since = 0.0, done
        self.restart_clock()
        return ({"loss": loss, "samples_per_second": samples},
                f"step {done}/{c.steps} loss {loss:.4f} {samples:.3g} samples/s, "
                f"{(c.steps - done) / rate / 60:.0f} min left")

    def restart_clock(self) -> None:
        self.began = time.monotonic()
