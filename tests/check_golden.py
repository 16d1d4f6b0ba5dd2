"""Compare the library with golden vectors: `python tests/check_golden.py FILE...`

Prints the largest absolute difference of each case. Exits 0 when all are below the bound, 1 when
one is not, 2 when a file cannot be read or is of a family that this script does not know.
A file is safetensors; its metadata's `config` holds the model's constructor arguments, `weights.*`
its state dict, and every other tensor is CASE.NAME (see tests/golden/README.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reflect_core.presets.load import read_safetensors  # noqa: E402
from reflect_core.types import UserError  # noqa: E402

BOUND = 2e-5


def read_golden(path: str | Path) -> tuple[dict, dict, dict, dict]:
    """(metadata with its JSON parsed, weights, lora, case -> name -> tensor). Raises UserError."""
    tensors, metadata = read_safetensors(path)
    if "config" not in metadata:
        raise UserError(f"{path}: has no 'config' in its metadata; expected a golden vector file")
    try:
        metadata = {k: json.loads(v) for k, v in metadata.items()}
    except ValueError as error:
        raise UserError(f"{path}: its metadata is not JSON ({error})") from error
    weights, lora, cases = {}, {}, {}
    for key, tensor in tensors.items():
        case, _, name = key.partition(".")
        if case == "weights":
            weights[name] = tensor
        elif case == "lora":
            lora[name] = tensor
        else:
            cases.setdefault(case, {})[name] = tensor
    return metadata, weights, lora, cases


def flux_corrector(metadata: dict, weights: dict, lora: dict, cases: dict) -> dict[str, float]:
    from diffusers import FluxTransformer2DModel

    from reflect_core.generators.flux_corrector.lora import ConditionLora
    from reflect_core.generators.flux_corrector.transformer import flux_forward

    model = FluxTransformer2DModel(**metadata["config"]).eval()
    model.load_state_dict(weights)
    paths = [k[len("transformer."):-len(".lora_A.weight")] for k in lora if k.endswith(".lora_A.weight")]
    alpha = float(metadata["lora_alpha"])
    adapter = ConditionLora({p: (lora[f"transformer.{p}.lora_A.weight"],
                                 lora[f"transformer.{p}.lora_B.weight"])
                             for p in paths}, {p: alpha for p in paths})
    differences = {}
    for case, tensors in cases.items():
        flags = metadata["model_config"].get(case, {})
        if flags.get("add_cond_attn"):
            raise UserError(f"case {case} has add_cond_attn, which is not offered")
        inputs = {k: v for k, v in tensors.items() if k != "output"}
        with torch.no_grad():
            output = flux_forward(model, adapter, **inputs, latent_lora=flags.get("latent_lora", False),
                                  union_cond_attn=flags.get("union_cond_attn", True))
        differences[case] = (output - tensors["output"]).abs().max().item()
    return differences


def reflect_dit(metadata: dict, weights: dict, lora: dict, cases: dict) -> dict[str, float]:
    try:
        from reflect_core.generators.reflect_dit.golden import differences
    except ImportError as error:
        raise UserError("a Reflect-DiT file: this installation cannot check that family "
                        f"({error}); expected a flux_corrector file") from error
    return differences(metadata, weights, cases)


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
    except UserError:
        raise
    except (KeyError, TypeError, RuntimeError) as error:
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
            return 2
        print(path)
        for case, value in differences.items():
            ok = value < BOUND
            worst = max(worst, 0 if ok else 1)
            print(f"  {case:28s} {value:.2e}  {'ok' if ok else f'above {BOUND:.0e}'}")
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
