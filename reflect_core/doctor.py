"""What is installed, what each published model still needs, and whether a judge answers properly."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from .judges import Judge
from .model_files import check_model_folder, check_safetensors
from .presets.load import family_of, preset_names
from .presets.locate import Located, NotHere, locate
from .presets.published import PUBLISHED
from .presets.roots import Roots
from .types import UserError

NEEDED = ("torch", "diffusers", "transformers", "safetensors", "huggingface_hub", "pillow", "numpy", "requests")
OPTIONAL = {"accelerate": "GGUF, nf4 and int8", "gguf": "FLUX in GGUF files", "bitsandbytes": "weights in nf4 and int8",
            "torchao": "weights in int8", "peft": "",
            "torchvision": "language models as judges, other than Qwen-VL", "num2words": "SmolVLM as a judge",
            "matplotlib": "the plots of 'reflect bench'"}
"""What each is for; what has none is not spoken of where it is missing."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool | None
    """None: missing, and not needed by everybody."""
    said: str
    more: dict[str, Any] = field(default_factory=dict)
    """For a program."""


def environment() -> list[Finding]:
    """Versions, devices and optional packages."""
    import torch

    found = [Finding("python", True, platform.python_version())]
    for name in NEEDED:
        version = _version(name)
        found.append(Finding(name, version is not None, version or "not installed"))
    for name, use in OPTIONAL.items():
        version = _version(name)
        if version or use:
            found.append(Finding(name, True if version else None, version or f"not installed; for {use}"))
    return [*found, *_devices(torch)]


def models(roots: Roots) -> list[Finding]:
    """The bundled models, and of each published one where it is or what it lacks."""
    found = [Finding(name, True, "comes with the pack") for name in preset_names()]
    for name in PUBLISHED:
        try:
            found.append(_located(name, locate(name, roots)))
        except NotHere as error:
            found.append(Finding(name, None, str(error)))
        except UserError as error:
            found.append(Finding(name, False, str(error)))
    return found


def judge(one: Judge, prompt: str) -> list[Finding]:
    """Whether a judge can be reached, answers as it is asked, and tells two plain pictures apart."""
    from PIL import Image

    if one.name in ("shapes", "none"):
        return [Finding("judge", True, f"{one.name} comes with the pack, and needs nothing")]
    try:
        told = one.prepare(prompt)
        actors = one.actors()
        pictures = [Image.new("RGB", (224, 224), colour) for colour in ((220, 20, 30), (20, 40, 220))]
        verdicts = actors.verifier.judge(prompt, pictures)
    except UserError as error:
        return [Finding("judge", False, str(error))]
    found = [Finding("judge", True, line) for line in told]
    spent = getattr(actors.verifier, "spent", None)
    for colour, verdict in zip(("red", "blue"), verdicts):
        outcome = f"score {verdict.score:.3f}" if verdict.judged else verdict.reason
        found.append(Finding(f"{colour} picture", verdict.judged, f"{prompt!r}: {outcome}", {"score": verdict.score}))
    if spent is not None:
        found.append(Finding("cost", True, f"{spent.judge_calls} questions, {spent.tokens:,} tokens",
                             {"judge_calls": spent.judge_calls, "tokens": spent.tokens}))
    return found


def _located(name: str, found: Located) -> Finding:
    paths = {"model": found.path, "lora": found.lora, **found.parts}
    more = {part: str(path) for part, path in paths.items() if path is not None}
    try:
        _check(found)
    except UserError as error:
        return Finding(name, False, f"is not whole: {error}", more)
    return Finding(name, True, f"is here: {', '.join(more.values())}", more)


def _check(found: Located) -> None:
    """UserError, naming the file, unless a model's files are all there and whole. Reads headers only."""
    family = family_of(found.path)
    if family == "FluxPipeline":
        from .generators.flux_corrector.sources import find_sources

        find_sources(found.path, found.parts)
        if found.lora is not None:
            check_safetensors(found.lora)
    elif family == "SanaPipeline":
        from .generators.reflect_dit.sources import find_sources

        find_sources(found.path, found.lora, found.parts)
    else:
        check_model_folder(found.path, ("transformer", "vae", "text_encoder", "tokenizer", "scheduler"))


def _devices(torch: Any) -> list[Finding]:
    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found.append(Finding(f"cuda:{index}", True, f"{about.name}, {about.total_memory / 2**30:.1f} GiB",
                             {"bytes": about.total_memory}))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", True, "Apple's own"))
    return found or [Finding("cuda", None, "no GPU that torch can use; the bundled models draw on the CPU, FLUX.1-dev "
                             "takes many minutes a picture")]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
