"""Optimisers and averaged weights, whose state is plain tensors by name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reflect_core.types import UserError

from .config import TrainConfig
from .interrupt import held


class Optimizers:
    """One or two torch optimisers behind one face. A task may have `rates()`: multiples of the learning rate of AdamW
    by the names of their parameters."""

    def __init__(self, config: TrainConfig, task) -> None:
        self.named = {n: p for n, p in task.named_parameters() if p.requires_grad}
        muon = task.matrices() if config.optimizer == "muon" else set()
        rates = task.rates() if hasattr(task, "rates") else {}
        rest: dict[float, list[nn.Parameter]] = {}
        for name, p in self.named.items():
            if name not in muon:
                rest.setdefault(rates.get(name, 1.0), []).append(p)
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            groups = [{"params": parameters, "times": times} for times, parameters in rest.items()]
            self.parts.append(torch.optim.AdamW(groups, lr=config.lr, betas=tuple(config.betas),
                                                weight_decay=config.weight_decay))
        if muon:
            if not hasattr(torch.optim, "Muon"):
                raise UserError(f"optimizer is muon, which torch has from 2.9 on; this is {torch.__version__}. Try "
                                "adamw, with a lower lr")
            self.parts.append(torch.optim.Muon(
                [self.named[n] for n in self.named if n in muon], lr=config.lr,
                weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
        self.peak = config.lr

    def step(self, share: float) -> None:
        """One step at this share of the peak learning rate; gradients are cleared."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.peak * share * group.get("times", 1.0)
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """By `parameter/key`."""
        names = {id(p): n for n, p in self.named.items()}
        return {f"{names[id(p)]}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
                for part in self.parts for p, entry in part.state.items() for key, value in entry.items()}

    def load(self, state: dict[str, Tensor]) -> None:
        owner = {id(p): part for part in self.parts for g in part.param_groups for p in g["params"]}
        for name, value in state.items():
            parameter, key = name.rsplit("/", 1)
            p = self.named[parameter]
            # What is of the parameter's shape gets its memory layout and device too, as torch makes it.
            alike = value.shape == p.shape and key != "step"
            held_value = torch.empty_like(p, dtype=value.dtype).copy_(value) if alike else value.clone()
            owner[id(p)].state[p][key] = held_value


class Averages:
    """Exponential moving average of the weights, kept in fp32."""

    def __init__(self, named: dict[str, nn.Parameter], decay: float) -> None:
        self.named, self.decay = named, decay
        self.mean = {n: p.detach().clone() for n, p in named.items()} if decay else {}
        self.swapped = False

    @torch.no_grad()
    def update(self, step: int) -> None:
        if self.decay:
            # Early on the average follows faster, or it would remember the random start.
            weight = 1 - min(self.decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(self.mean.values()), list(self.named.values()), weight)

    def enter(self) -> None:
        """Put the averages in the place of the weights, until `leave`."""
        self._swap(True)

    def leave(self) -> None:
        """Put the weights back; does nothing if they are there."""
        self._swap(False)

    @torch.no_grad()
    def _swap(self, swapped: bool) -> None:
        with held():
            if swapped == self.swapped:
                return
            for name, mean in self.mean.items():
                kept = self.named[name].detach().clone()
                self.named[name].copy_(mean)
                mean.copy_(kept)
            self.swapped = swapped
