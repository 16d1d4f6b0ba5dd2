"""What the published models need of memory to draw a picture, computed on the meta device: no weights, no GPU.

Each stage is the true forward of a model of the true size, watched by `LiveBytes`: the texts, the pictures that are
seen, a step of the transformer with what is prepared for it, the decoder. Attention is taken to be fused. Not in it
are a judge, what CUDA itself takes (some 0.5 GB), workspaces of kernels and what an allocator wastes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..generators.flux_corrector.latents import grid_ids
from ..generators.flux_corrector.transformer import Condition, prepare
from ..generators.flux_corrector.transformer import denoise as flux_denoise
from ..generators.offload import OFFLOADS, blocks_of, layers_of, pinned_size
from ..generators.quantise import UNMOVED
from ..generators.reflect_dit import cached
from ..generators.tiling import tile
from .live import FlashAttention, LiveBytes
from .true_size import WAYS as WAYS
from .true_size import true_size

FAMILIES = {"flux": "FLUX.1-dev with its corrector", "sana": "SANA-1.6B with Reflect-DiT"}
STEPS = 20
"""Of SANA, whose context is made for all of them at once."""
INSTRUCTION = 230
"""Tokens of SANA's own instruction, about."""
WORDS = 300
"""Tokens of a prompt or a feedback for SANA, as many as it takes."""


@dataclass(frozen=True)
class Stage:
    """Something that one part does while a picture is drawn."""

    part: str
    work: Callable[[], Any]
    tiled: bool | None = None
    """Of the decoder, whether by tiles."""


def stages(family: str, parts: dict[str, nn.Module], beside: nn.Module, size: int = 1024, batch: int = 1,
           device: torch.device | None = None) -> dict[str, Stage]:
    """All that happens while `batch` pictures of `size` x `size` are drawn together, on `device` or where the parts
    lie."""
    dtype = next(parts["vae"].parameters()).dtype
    device = next(parts["transformer"].parameters()).device if device is None else device

    def noise(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    def ids(length: int) -> Tensor:
        return torch.zeros(1, length, dtype=torch.long, device=device)

    return (_flux if family == "flux" else _sana)(parts, beside, size, batch, noise, ids, device)


def _flux(parts: dict[str, nn.Module], lora: nn.Module, size: int, batch: int, noise: Callable[..., Tensor],
          ids: Callable[[int], Tensor], device: torch.device) -> dict[str, Stage]:
    transformer, vae, tokens, seen = parts["transformer"], parts["vae"], (size // 16) ** 2, 32
    config = transformer.config
    length = 512

    def draw(corrected: bool) -> None:
        condition = Condition(noise(batch, seen**2, config.in_channels), grid_ids(seen, seen, (0, -seen), device))
        prepared = prepare(transformer, lora, noise(batch, length, config.joint_attention_dim),
                           noise(batch, config.pooled_projection_dim), grid_ids(size // 16, size // 16, device=device),
                           torch.zeros(length, 3, device=device), condition if corrected else None)
        latents, when = noise(batch, tokens, config.in_channels), noise(batch)
        for _ in range(2):
            latents = flux_denoise(transformer, prepared, latents, when, when)

    return {
        "CLIP": Stage("text_encoder", lambda: parts["text_encoder"](ids(77))),
        "T5": Stage("text_encoder_2", lambda: parts["text_encoder_2"](ids(512))),
        "encoding the flawed picture": Stage("vae", lambda: vae.encode(noise(1, 3, 512, 512)).latent_dist),
        "drawing": Stage("transformer", lambda: draw(False)),
        "correcting": Stage("transformer", lambda: draw(True)),
        **_decoding(vae, 8, lambda: noise(1, config.in_channels // 4, size // 8, size // 8)),
    }


def _sana(parts: dict[str, nn.Module], context: nn.Module, size: int, batch: int, noise: Callable[..., Tensor],
          ids: Callable[[int], Tensor], device: torch.device) -> dict[str, Stage]:
    transformer, vae, side = parts["transformer"], parts["vae"], size // 32
    vision = parts["image_encoder"].config
    width = transformer.config.caption_channels

    def draw(pairs: int) -> None:
        prompts = [cached.keys_values(transformer, noise(WORDS, width)) for _ in range(2)]
        rows, told = [prompts[0]] * batch + [prompts[1]] * batch, None
        if pairs:
            told = torch.cat([part for _ in range(pairs) for part in (
                context.adapted_picture(noise(64, vision.hidden_size)), context.adapted_text(noise(WORDS, width)))])
        rest = [*range(batch, 2 * batch), *range(batch)]
        prepared = cached.prepare(transformer, context, noise(STEPS), rows,
                                  [None] * batch + [told] * batch if pairs else None, rest, dropped=68)
        latents = noise(batch, transformer.config.in_channels, side, side)
        for step in range(2):
            without, to = cached.denoise(transformer, prepared, torch.cat([latents, latents]), step).float().chunk(2)
            latents = (without + 4.5 * (to - without)).to(latents.dtype)

    def read() -> None:
        tokens = ids(WORDS + INSTRUCTION)
        parts["text_encoder"](tokens, attention_mask=torch.ones_like(tokens))

    return {
        "Gemma": Stage("text_encoder", read),
        "SigLIP": Stage("image_encoder", lambda: parts["image_encoder"](noise(1, 3, vision.image_size,
                                                                              vision.image_size))),
        "drawing": Stage("transformer", lambda: draw(0)),
        "drawing with three pictures in view": Stage("transformer", lambda: draw(3)),
        **_decoding(vae, 32, lambda: noise(1, transformer.config.in_channels, side, side)),
    }


def _decoding(vae: nn.Module, scale: int, latents: Callable[[], Tensor]) -> dict[str, Stage]:
    """A picture at a time, as both pipelines do."""
    def by_tiles() -> None:
        tile(vae, scale)
        try:
            vae.decode(latents())
        finally:
            vae.disable_tiling()
    return {"decoding": Stage("vae", lambda: vae.decode(latents()), False),
            "decoding by tiles": Stage("vae", by_tiles, True)}


def activations(stage: Stage, held: Sequence[nn.Module], fused: bool = True) -> int:
    """Bytes that a stage needs at most besides the weights of the modules that it uses."""
    live = LiveBytes()
    weights = live.hold(*held)
    with torch.no_grad(), live, FlashAttention() if fused else _nothing():
        stage.work()
    return live.peak - weights


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def weights_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors([module]))


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    held = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    return list(held.values())


def streamed(part: nn.Module) -> int:
    """Bytes of a part's weights that are on the device at once with offload 'layers'."""
    blocks = [sum(t.nbytes for layer in layers_of(block) for t in _tensors([layer])) for block in blocks_of(part)]
    if not blocks:
        return weights_of(part)
    pairs = [a + b for a, b in zip(blocks, [*blocks[1:], blocks[0]])] if len(blocks) > 1 else blocks
    return weights_of(part) - sum(blocks) + max(pairs)


def compute(family: str, way: str = "bfloat16", size: int = 1024, batch: int = 1) -> dict[str, Any]:
    """Bytes, by offload: `device`, the most that is on the GPU at once; `device_tiled`, the same with vae_tiling; and
    `main`, what main memory holds of weights, `main_pinned` where they are locked for faster copies."""
    parts, beside = true_size(family, way)
    held = {name: [part, beside] if name == "transformer" else [part] for name, part in parts.items()}
    todo = stages(family, parts, beside, size, batch)
    tops = {name: activations(stage, held[stage.part]) for name, stage in todo.items()}
    own = {name: sum(map(weights_of, modules)) for name, modules in held.items()}
    few = {name: (own[name] if name == "vae" else streamed(modules[0]) + sum(map(weights_of, modules[1:])))
           for name, modules in held.items()}
    rows = {}
    for offload in OFFLOADS:
        base = {"none": dict.fromkeys(own, sum(own.values())), "component": own, "layers": few}[offload]
        peaks = {tiled: {name: base[stage.part] + tops[name] for name, stage in todo.items()
                         if stage.tiled in (None, tiled)} for tiled in (False, True)}
        homes = [t.nbytes for modules in held.values() for t in _tensors(modules)] if offload != "none" else []
        rows[offload] = {
            "device": max(peaks[False].values()), "at": max(peaks[False], key=peaks[False].get),
            "device_tiled": max(peaks[True].values()), "at_tiled": max(peaks[True], key=peaks[True].get),
            "main": sum(homes), "main_pinned": sum(map(pinned_size, homes))}
    return {"family": family, "weights_in": way, "size": size, "batch": batch, "weights": own, "activations": tops,
            "parts": {name: stage.part for name, stage in todo.items()}, "offload": rows}


def table(found: Sequence[dict[str, Any]]) -> str:
    """For each family a table of GB (10^9 bytes) by way and offload."""
    lines = []
    for family, title in FAMILIES.items():
        mine = [one for one in found if one["family"] == family]
        if not mine:
            continue
        size, batch = mine[0]["size"], mine[0]["batch"]
        lines += ["", f"{title}, {size} x {size}" + (f", {batch} pictures at once" if batch > 1 else "") + ", GB:", "",
                  "| weights | none | component | layers | layers, vae_tiling | main memory |",
                  "|---|--:|--:|--:|--:|--:|"]
        for one in mine:
            rows = one["offload"]
            cells = [rows[offload]["device"] for offload in OFFLOADS] + [rows["layers"]["device_tiled"],
                                                                          rows["layers"]["main"]]
            said = [f"{cell / 1e9:.1f}" for cell in cells]
            if one["weights_in"] in UNMOVED:  # there is no such option
                said[1:] = ["–"] * len(said[1:])
            lines.append(f"| {one['weights_in']} | " + " | ".join(said) + " |")
            if "measured" in one:
                tops = [max(top for name, top in one["measured"][offload].items() if "tiles" not in name)
                        for offload in OFFLOADS]
                lines.append("| measured | " + " | ".join(f"{top / 1e9:.1f}" for top in tops) + " | | |")
        last = next((one for one in mine if one["weights_in"] == "bfloat16"), mine[0])
        lines += ["", f"Activations with weights in {last['weights_in']}: " + ", ".join(
            f"{name} {top / 1e9:.2f}" for name, top in last["activations"].items()) + "."]
    return "\n".join(lines).strip()
