"""The training loop that every task shares.

All randomness of a step comes from (seed, step), so a resumed run sees the very batches and noise
that an uninterrupted one would have seen, and ends with the same weights to the bit.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Iterator, Protocol

import torch
from torch import Tensor, nn

from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig


class Task(Protocol):
    """What is trained: its parameters by name, its batches, its loss, its samples, its result."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def matrices(self) -> set[str]:
        """Names of the parameters that Muon may orthogonalise."""
        ...
    def loss(self, step: int, generator: torch.Generator) -> Tensor: ...
    def sample(self, folder: Path, step: int) -> dict[str, float]:
        """Write a sample grid; returns figures for the log."""
        ...
    def export(self, folder: Path, provenance: dict) -> None: ...


def step_generator(seed: int, step: int) -> torch.Generator:
    """The one source of randomness of a step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Share of the peak at a step: linear warm-up, plateau, linear fall to zero."""
    up = min(1.0, (step + 1) / max(1, config.warmup))
    tail = max(1, round(config.steps * config.cooldown))
    return up * min(1.0, (config.steps - step) / tail)


class Optimizers:
    """One or two torch optimisers behind one face, whose state is plain tensors by name."""

    def __init__(self, config: TrainConfig, task: Task) -> None:
        self.named = {n: p for n, p in task.named_parameters() if p.requires_grad}
        muon = task.matrices() if config.optimizer == "muon" else set()
        rest = [p for n, p in self.named.items() if n not in muon]
        self.parts: list[torch.optim.Optimizer] = []
        if rest:  # a LoRA is all matrices
            self.parts.append(torch.optim.AdamW(rest, lr=config.lr, betas=tuple(config.betas),
                                                weight_decay=config.weight_decay))
        if muon:
            self.parts.append(torch.optim.Muon(
                [self.named[n] for n in self.named if n in muon], lr=config.lr,
                weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
        self.peak = config.lr

    def step(self, share: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak * share
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        names = {id(p): n for n, p in self.named.items()}
        return {f"{names[id(p)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for part in self.parts for p, entry in part.state.items() for key, value in entry.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        owner = {id(p): part for part in self.parts for g in part.param_groups for p in g["params"]}
        for name, value in state.items():
            parameter, key = name.rsplit("/", 1)
            p = self.named[parameter]
            owner[id(p)].state[p][key] = value.clone()


class Averages:
    """Exponential moving average of the weights, kept in fp32."""

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.mean = {n: p.detach().clone() for n, p in named.items()} if decay else {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.decay:
            # Early on the average follows faster, or it would remember the random start.
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.mean.values()), list(self.named.values()), weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their averages; a second call puts them back."""
        for name, mean in self.mean.items():
            held = self.named[name].detach().clone()
            self.named[name].copy_(mean)
            mean.copy_(held)


def train(config: TrainConfig, task: Task, provenance: dict, report=lambda line: None) -> Path:
    """Train, or go on where the last checkpoint ended. Returns the folder with the result.

    Ctrl+C saves a checkpoint before it leaves.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(config, task)
    averages = Averages(optimizers.named, config.ema)
    start = 0
    found = latest_checkpoint(out)
    if found is not None:
        start = load_checkpoint(found, config, optimizers, averages)
        report(f"resumed at step {start}")
    log = (out / "log.jsonl").open("a")
    parameters = list(optimizers.named.values())
    report(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {config.steps - start} steps to go")

    def sample(step: int) -> None:
        averages.swap()
        try:
            with torch.no_grad():
                figures = task.sample(out / "samples", step)
        finally:
            averages.swap()
        _log(log, {"step": step, **figures})
        report(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in figures.items()))

    if start == 0:
        sample(0)
    running, since, last = 0.0, start, time.monotonic()
    step = start
    try:
        for step in range(start, config.steps):
            loss = task.loss(step, step_generator(config.seed, step))
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss became {value} at step {step}; try a lower lr than {config.lr}")
            optimizers.step(learning_rate(config, step))
            averages.update(step)
            running += value
            done = step + 1
            if done % config.log_every == 0:
                now = time.monotonic()
                rate = (done - since) / (now - last)
                _log(log, {"step": done, "loss": running / (done - since), "grad_norm": float(norm),
                           "samples_per_second": rate * config.batch})
                left = (config.steps - done) / rate
                report(f"step {done}/{config.steps} loss {running / (done - since):.4f} "
                       f"{rate * config.batch:.0f} samples/s, {left / 60:.0f} min left")
                running, since, last = 0.0, done, now
            if done % config.save_every == 0 or done == config.steps:
                save_checkpoint(out, done, config, optimizers, averages)
            if done % config.sample_every == 0 or done == config.steps:
                sample(done)
                last = time.monotonic()
    except KeyboardInterrupt:
        # The step that was cut is done again: its gradients are not part of the checkpoint.
        report(f"interrupted: saved at step {step}; the same command goes on from here")
        save_checkpoint(out, step, config, optimizers, averages)
        raise
    finally:
        log.close()
    averages.swap()
    result = out / "result"
    task.export(result, {**provenance, "steps": config.steps, "samples": config.steps * config.batch})
    averages.swap()
    return result


def _log(handle, entry: dict) -> None:
    handle.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in entry.items()}) + "\n")
    handle.flush()
