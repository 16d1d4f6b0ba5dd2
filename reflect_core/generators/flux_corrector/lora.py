"""The corrector's LoRA: low-rank deltas that act on condition tokens (ReflectionFlow, arXiv 2504.16080).

The published corrector is FLUX.1-dev plus one LoRA over `x_embedder` and six linear layers of
every block: 343 modules and 115,902,464 parameters at rank 32. No text layer, no `ff.net.0.proj`,
no final layer and no norm of queries or keys is adapted.

What differs from the official code: it puts peft layers into the transformer and multiplies their
scale by zero for every call on text and image tokens. Here the weights stay beside an untouched
transformer, and the forward (`transformer.py`) adds the delta on the condition tokens only. The
file layout is the published one, which peft and diffusers read too, and what peft saves by itself is
read as well (`lora_file.py`); peft itself is not needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...model_files import read_safetensors
from ...types import UserError
from .lora_file import LORA_FILE, check_fit, find_lora, read_adapter_config, read_lora

DOUBLE_LAYERS = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
SINGLE_LAYERS = ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")


def adapted_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a `FluxTransformer2DModel` that the corrector adapts, by module path."""
    layers = {"x_embedder": transformer.x_embedder}
    for stack, names in (("transformer_blocks", DOUBLE_LAYERS), ("single_transformer_blocks", SINGLE_LAYERS)):
        for index, block in enumerate(getattr(transformer, stack)):
            for name in names:
                layers[f"{stack}.{index}.{name}"] = block.get_submodule(name)
    return layers


@dataclass(frozen=True)
class Delta:
    """One layer's low-rank change: x (..., I) to (..., O) is x @ down.T @ up.T, scale included in up."""

    down: Tensor
    """(rank, I)"""
    up: Tensor
    """(O, rank)"""


class ConditionLora(nn.Module):
    """A and B matrices by module path. `parameters()` are what a trainer trains.

    Args: weights, path -> (A (rank, I), B (O, rank)); alphas, path -> alpha, where the scale of a
    layer is alpha / rank and a path that is not there has alpha = rank.
    """

    def __init__(self, weights: dict[str, tuple[Tensor, Tensor]], alphas: dict[str, float] | None = None):
        super().__init__()
        alphas = alphas or {}
        # A ParameterDict takes no dots in its keys.
        self.down = nn.ParameterDict({_key(p): nn.Parameter(a) for p, (a, _) in weights.items()})
        self.up = nn.ParameterDict({_key(p): nn.Parameter(b) for p, (_, b) in weights.items()})
        self.paths = tuple(weights)
        self.scales = {p: alphas.get(p, a.shape[0]) / a.shape[0] for p, (a, _) in weights.items()}

    @classmethod
    def fresh(cls, transformer: nn.Module, rank: int = 32, alpha: float | None = None,
              generator: torch.Generator | None = None) -> ConditionLora:
        """A new LoRA that changes nothing yet: A normal with deviation 1/rank, B zero, both fp32.

        The paper's setting is rank 32 with alpha 32. `generator` is a CPU generator; without one
        the weights come from torch's global one.
        """
        if rank < 1:
            raise UserError(f"LoRA rank is {rank}; expected 1 or more (the published corrector has 32)")
        weights, alphas = {}, {}
        for path, layer in adapted_layers(transformer).items():
            device = layer.weight.device
            if device.type == "meta":
                down = torch.empty(rank, layer.in_features, device=device)
            else:
                down = torch.randn(rank, layer.in_features, generator=generator).div_(rank).to(device)
            weights[path] = (down, torch.zeros(layer.out_features, rank, device=device))
            alphas[path] = float(rank if alpha is None else alpha)
        return cls(weights, alphas)

    @classmethod
    def load(cls, path: str | Path, transformer: nn.Module) -> ConditionLora:
        """Read a published-layout file (or the folder that holds it) for this transformer.

        The rank comes from the shapes. Alpha comes from `.alpha` keys or from the adapter metadata
        that newer diffusers writes; a file with neither (the published one) has alpha = rank.
        A LoRA that peft saved has its alpha in the `adapter_config.json` beside it. Raises UserError for
        a file that is missing, cut short, a pickle, or for another model.
        """
        file = find_lora(path)
        tensors, metadata = read_safetensors(file)
        return cls.from_tensors(tensors, metadata, transformer, str(file), read_adapter_config(file))

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], metadata: dict[str, str], transformer: nn.Module,
                     source: str = "the LoRA", adapter: dict[str, Any] | None = None) -> ConditionLora:
        """A LoRA from the tensors of a file and its metadata; see `load`.

        Args:
            transformer: a `FluxTransformer2DModel`; one on the meta device will do.
            source: what error messages call the file.
            adapter: peft's settings, needed when the tensors have peft's own names.
        """
        return cls(*read_lora(tensors, metadata, adapter, adapted_layers(transformer), source))

    def check(self, transformer: nn.Module, source: str = "the LoRA") -> None:
        """Raise UserError, naming the first key that does not fit, when this is another model's LoRA."""
        tables = ({path: (f"transformer.{path}.lora_{m}.weight", table[_key(path)]) for path in self.paths}
                  for m, table in (("A", self.down), ("B", self.up)))
        check_fit(adapted_layers(transformer), source, *tables)

    def save(self, path: str | Path) -> Path:
        """Write the published layout to a file, or as `pytorch_lora_weights.safetensors` in a folder.

        Keys are `transformer.<path>.lora_A.weight` and `.lora_B.weight` and nothing else when
        alpha = rank; otherwise `.alpha` keys are added, which diffusers and ComfyUI read.
        """
        file = Path(path)
        if file.suffix != ".safetensors":
            file = file / LORA_FILE
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(self.published_state_dict(), str(file), metadata={"format": "pt"})
        return file

    def published_state_dict(self) -> dict[str, Tensor]:
        """The tensors under their published names, on the CPU."""
        state = {}
        for path in self.paths:
            down, up = self.down[_key(path)], self.up[_key(path)]
            state[f"transformer.{path}.lora_A.weight"] = down.detach().cpu().contiguous()
            state[f"transformer.{path}.lora_B.weight"] = up.detach().cpu().contiguous()
            if self.scales[path] != 1.0:
                state[f"transformer.{path}.alpha"] = torch.tensor(self.scales[path] * down.shape[0])
        return state

    def delta(self, path: str, dtype: torch.dtype | None = None) -> Delta | None:
        """The change of one layer, or None where this LoRA has none. Differentiable."""
        key = _key(path)
        if key not in self.down:
            return None
        down, up = self.down[key], self.up[key]
        if self.scales[path] != 1.0:
            up = up * self.scales[path]
        return Delta(down.to(dtype or down.dtype), up.to(dtype or up.dtype))

    def extra_repr(self) -> str:
        ranks = sorted({p.shape[0] for p in self.down.values()})
        return f"{len(self.paths)} modules, rank {', '.join(map(str, ranks))}"


def _key(path: str) -> str:
    return path.replace(".", "/")
