"""Compare the library with golden vectors: `python tests/check_golden.py FILE...`

Prints the largest absolute difference of each case. Exits 0 when all are below the bound, 1 when
one is not, 2 when a file cannot be read, has no case, or is of a family that this script does not know;
the other files are checked all the same. A file is safetensors; its metadata's `config` holds the
model's constructor arguments, `weights.*` its state dict, `lora.*` its LoRA in the published layout, and
every other tensor is CASE.NAME, CASE.output what the official code returned (see tests/golden/README.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reflect_core.model_files import read_safetensors  # noqa: E402
from reflect_core.types import UserError  # noqa: E402

BOUND = 2e-5


def read_golden(path: str | Path) -> tuple[dict, dict, dict, dict]:
    """(metadata with its JSON parsed, weights, lora, case -> name -> tensor). Raises UserError."""
    tensors, metadata = read_safetensors(path)
    if "config" not in metadata:
        raise UserError(f"{path}: has no 'config' in its metadata; expected a golden vector file")
    metadata = {k: _parsed(v) for k, v in metadata.items()}
    if not isinstance(metadata["config"], dict):
        raise UserError(f"{path}: 'config' in its metadata is {metadata['config']!r}; expected a JSON object")
    weights, lora, cases = {}, {}, {}
    for key, tensor in tensors.items():
        case, _, name = key.partition(".")
        if case == "weights":
            weights[name] = tensor
        elif case == "lora":
            lora[name] = tensor
        else:
            cases.setdefault(case, {})[name] = tensor
    if not cases:
        raise UserError(f"{path}: has no case; expected tensors named CASE.NAME with one CASE.output each")
    for case, named in cases.items():
        if "output" not in named:
            raise UserError(f"{path}: case {case} has no {case}.output; expected what the official code returned")
    return metadata, weights, lora, cases


def _parsed(text: str) -> Any:
    """A metadata value, which is JSON or, like safetensors' own "format": "pt", just text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def flux_corrector(metadata: dict, weights: dict, lora: dict, cases: dict) -> dict[str, float]:
    from diffusers import FluxTransformer2DModel

    from reflect_core.generators.flux_corrector.lora import ConditionLora
    from reflect_core.generators.flux_corrector.transformer import flux_forward

    model = FluxTransformer2DModel(**metadata["config"]).eval()
    model.load_state_dict(weights)
    adapter = None
    if lora:
        stated = {"transformer.lora_alpha": metadata["lora_alpha"]} if "lora_alpha" in metadata else {}
        adapter = ConditionLora.from_tensors(lora, {"lora_adapter_metadata": json.dumps(stated)}, model)
    differences = {}
    for case, tensors in cases.items():
        flags = metadata.get("model_config", {}).get(case, {})
        if flags.get("add_cond_attn"):
            raise UserError(f"case {case} has add_cond_attn, which is not offered")
        inputs = {k: v for k, v in tensors.items() if k != "output"}
        with torch.no_grad():
            output = flux_forward(model, adapter, **inputs, latent_lora=flags.get("latent_lora", False),
                                  union_cond_attn=flags.get("union_cond_attn", True))
        if output.shape != tensors["output"].shape:
            raise UserError(f"case {case} gives the shape {tuple(output.shape)}; expected that of {case}.output, "
                            f"{tuple(tensors['output'].shape)}")
        differences[case] = (output - tensors["output"]).abs().max().item()
    return differences


def reflect_dit(metadata: dict, weights: dict, lora: dict, cases: dict) -> dict[str, float]:
    from reflect_core.generators.reflect_dit.checkpoint import build
    from reflect_core.generators.reflect_dit.context import Pairs, rows_of
    from reflect_core.generators.reflect_dit.transformer import reflect_forward

    transformer, context = build(metadata["config"], weights)
    differences = {}
    for case, tensors in cases.items():
        batch, pairs = len(tensors["hidden_states"]), None
        keep = tensors["context_keep"].tolist() if "context_keep" in tensors else None
        if "context_owner" in tensors:
            rows = tuple(tuple(owned) if keep is None or kept else None
                         for owned, kept in zip(tensors["context_owner"].tolist(), keep or [1] * batch))
        elif "context_batch_index" in tensors:
            rows = rows_of(tensors["context_batch_index"].tolist(), batch, keep)
        if "context_image_features" in tensors:
            pairs = Pairs(tensors["context_image_features"], tensors["context_text_features"],
                          tensors["context_text_mask"], rows)
        with torch.no_grad():
            output = reflect_forward(transformer, context, tensors["hidden_states"], tensors["encoder_hidden_states"],
                                     tensors["timestep"], tensors["encoder_attention_mask"], pairs, rotary_bf16=False)
        differences[case] = (output - tensors["output"]).abs().max().item()
    return differences


def check(path: str | Path) -> dict[str, float]:
    """The largest absolute difference of each case of a golden file. Raises UserError."""
    metadata, weights, lora, cases = read_golden(path)
    config = metadata["config"]
    if "joint_attention_dim" in config:
        family = flux_corrector
    elif config.get("reflection"):
        family = reflect_dit
    else:
        raise UserError(f"{path}: its config is of no family known here; expected FLUX (joint_attention_dim) "
                        f"or Reflect-DiT (reflection); got the keys {sorted(config)}")
    try:
        return family(metadata, weights, lora, cases)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit its own config ({type(error).__name__}: {error})") from error


def main(paths: list[str]) -> int:
    if not paths:
        print("usage: python tests/check_golden.py FILE...", file=sys.stderr)
        return 2
    worst = 0
    for path in paths:
        try:
            differences = check(path)
        except UserError as error:
            print(error, file=sys.stderr)
            worst = 2
            continue
        print(path)
        for case, value in differences.items():
            ok = value < BOUND
            worst = max(worst, 0 if ok else 1)
            print(f"  {case:28s} {value:.2e}  {'ok' if ok else f'above {BOUND:.0e}'}")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
