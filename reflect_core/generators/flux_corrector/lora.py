"""The corrector's LoRA: low-rank deltas that act on condition tokens (ReflectionFlow, arXiv 2504.16080).

The published corrector is FLUX.1-dev plus one LoRA over `x_embedder` and six linear layers of
every block: 343 modules and 115,902,464 parameters at rank 32. No text layer, no `ff.net.0.proj`,
no final layer and no norm of queries or keys is adapted.

What differs from the official code: it puts peft layers into the transformer and multiplies their
scale by zero for every call on text and image tokens. Here the weights stay beside an untouched
transformer, and the forward (`transformer.py`) adds the delta on the condition tokens only. The
file layout is the published one, which peft and diffusers read too; peft itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...presets.load import read_safetensors
from ...types import UserError

LORA_FILE = "pytorch_lora_weights.safetensors"

DOUBLE_LAYERS = ("norm1.linear", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.2")
SINGLE_LAYERS = ("norm.linear", "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")

# The first is what the published file has, the second what peft writes by itself.
_PREFIXES = ("transformer.", "base_model.model.")


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
        Raises UserError for a file that is missing, cut short, a pickle, or for another model.
        """
        file = Path(path)
        if file.is_dir():
            file = file / LORA_FILE
        tensors, metadata = read_safetensors(file)
        downs, ups, alphas = {}, {}, {}
        for key, tensor in tensors.items():
            name = next((key[len(p):] for p in _PREFIXES if key.startswith(p)), None)
            for ending, table in ((".lora_A.weight", downs), (".lora_B.weight", ups), (".alpha", alphas)):
                if name is not None and name.endswith(ending):
                    table[name[: -len(ending)]] = (key, tensor)
                    break
            else:
                raise UserError(f"{file}: key {key!r} is not of a corrector LoRA; expected keys like "
                                "'transformer.x_embedder.lora_A.weight'; try a file saved by diffusers")
        if not downs:
            raise UserError(f"{file}: holds no LoRA tensors; expected keys like "
                            "'transformer.x_embedder.lora_A.weight'")
        _check_against(transformer, file, downs, ups)
        default = _metadata_alpha(metadata, file)
        found = {p: float(t.item()) for p, (_, t) in alphas.items()}
        every = {p: found.get(p, default(p)) for p in downs}
        return cls({p: (downs[p][1], ups[p][1]) for p in downs},
                   {p: a for p, a in every.items() if a is not None})

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


def _check_against(transformer: nn.Module, file: Path, downs: dict, ups: dict) -> None:
    """Raise UserError naming the first key that does not fit the transformer, with both shapes."""
    layers = adapted_layers(transformer)
    for path, key, tensor, down in _in_order(downs, ups):
        if path not in layers:
            raise UserError(f"{file}: {key} has shape {tuple(tensor.shape)}, but this transformer has no "
                            "such layer that a corrector adapts; the LoRA was made for another "
                            "architecture. Try the LoRA that belongs to this model")
        layer = layers[path]
        other = (ups if down else downs).get(path)
        if other is None:
            raise UserError(f"{file}: {key} has no partner lora_{'B' if down else 'A'}; expected both; the "
                            "file is incomplete, try to download it again")
        rank = tensor.shape[0 if down else -1] if tensor.ndim == 2 else 0
        expected = (rank, layer.in_features) if down else (layer.out_features, downs[path][1].shape[0])
        if tuple(tensor.shape) != expected or rank < 1:
            raise UserError(f"{file}: {key} has shape {tuple(tensor.shape)}, but this transformer needs "
                            f"{expected}; the LoRA was made for another architecture. Try the LoRA that "
                            "belongs to this model")


def _in_order(downs: dict, ups: dict) -> Iterator[tuple[str, str, Tensor, bool]]:
    for path in sorted(set(downs) | set(ups)):
        for table, down in ((downs, True), (ups, False)):
            if path in table:
                yield path, *table[path], down


def _metadata_alpha(metadata: dict[str, str], file: Path):
    """The alpha that a file's `lora_adapter_metadata` gives each path, as a function; None: unsaid."""
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        alpha = config.get("transformer.lora_alpha")
        patterns = config.get("transformer.alpha_pattern") or {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: its lora_adapter_metadata is not readable ({error}); expected JSON of the "
                        "adapter's settings") from error
    if config.get("transformer.use_dora") or config.get("transformer.use_rslora"):
        raise UserError(f"{file}: uses DoRA or rank-stabilised LoRA, which a corrector does not; expected a "
                        "plain LoRA")

    def of(path: str) -> float | None:
        for pattern, value in patterns.items():
            if path == pattern or path.endswith("." + pattern):
                return float(value)
        return None if alpha is None else float(alpha)

    return of
