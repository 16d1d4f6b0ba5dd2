"""A model's parts on an accelerator that does not hold them all: a manager for `Places`, outside of ComfyUI.

`component`: one part at a time is on the device. `layers`: of a part with blocks, two blocks at a time are, the one
that computes and the one that comes next, which is copied meanwhile; what lies outside of the blocks stays as long as
its part is in use. The pictures are the same, to the bit where weights
are laid alike: a CPU rounds otherwise where they begin at another place, as in a file that is mapped.

Every weight, packed ones too, has its home in main memory and keeps it while a copy is on the device. So a part leaves
without being copied back, and wherever an exception comes from, nothing is lost: what was half moved goes home.
diffusers' group offloading moves a block when its own forward is called, which ours never calls; so hooks on the layers
do it here.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checking import OFFLOADS, one_of
from .packed import Visit

MANAGED = object()
"""In place of one of `OFFLOADS`, for a program that moves the parts itself: they wait in main memory, packed on the
device if they are packed, until it sets `places.manager`."""
HOME = torch.device("cpu")
LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much a container may have."""


def check_offload(offload: Any) -> None:
    """UserError unless it is one of `OFFLOADS`, or `MANAGED`."""
    if offload is not MANAGED:
        one_of("offload", offload, OFFLOADS)


class Offload:
    """Asked for a part, it brings it and sends the others home."""

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], device: torch.device | str, kind: str = "component",
                 devices: Mapping[str, torch.device | str] | None = None) -> None:
        """Take parts, best from main memory.

        Args:
            parts: by name, each with the modules that must be where it is.
            device: where parts compute.
            kind: 'component' or 'layers'.
            devices: where some parts compute instead, by name, for example text encoders that stay on the CPU.
        """
        one_of("offload", kind, OFFLOADS[1:])
        self.devices = {name: torch.device((devices or {}).get(name, device)) for name in parts}
        pinned = _to_pin(parts, self.devices)
        self.parts = {name: _Part(modules, self.devices[name], streamed=kind == "layers" and not name.endswith("vae"),
                                  pin=name in pinned) for name, modules in parts.items()}
        self.here: str | None = None
        """The part that is on its device."""

    @classmethod
    def manage(cls, generator: Any, device: torch.device | str, kind: str,
               devices: Mapping[str, torch.device | str] | None = None) -> Offload | None:
        """Take over a generator's or a judge's parts, with what must be where they are. For the arguments see above;
        those of `MANAGED` are left alone."""
        if kind is MANAGED:
            return None
        beside = getattr(generator, "companions", {})
        held = {name: [part, *beside.get(name, ())] for name, part in generator.parts.items()}
        generator.places.manager = made = cls(held, device, kind, devices)
        generator.places.arrive, generator.places.rest = made.arrive, made.rest
        return made

    def arrive(self, block: nn.Module) -> None:
        """A streamed block is about to compute without its layers' hooks being called."""
        for part in self.parts.values():
            if block in part.arrivals:
                part.arrivals[block](block, ())

    def __call__(self, name: str, pixels: int = 0) -> torch.device:
        """A `Manager`, see `places.py`. Where it runs out of memory, nothing of the part is left on the device."""
        if self.here != name and self.devices[name] != HOME:
            self.release()
            self.parts[name].bring()
            self.here = name
        return self.devices[name]

    def rest(self) -> None:
        """Everything goes home, and others may have the room: another program on the same GPU, such as a judge's
        server."""
        self.release()
        if any(device.type == "cuda" for device in self.devices.values()):
            torch.cuda.empty_cache()

    def release(self) -> None:
        """Everything goes home."""
        if self.here is not None:
            self.parts[self.here].leave()
            self.here = None


class _Part:
    """The modules of a part: what stays on the device while it is in use, and its blocks if they are streamed."""

    def __init__(self, modules: Sequence[nn.Module], device: torch.device, streamed: bool, pin: bool) -> None:
        blocks = blocks_of(modules[0]) if streamed else []
        inside = [layers_of(block) for block in blocks]
        away = {layer for layers in inside for layer in layers}
        rest = [layer for module in modules for layer in module.modules() if layer not in away]
        self.rest = _Group(rest, device, pin)
        self.stream = _Stream([_Group(layers, device, pin) for layers in inside], device)
        self.arrivals = weakref.WeakKeyDictionary({block: _Arrival(self.stream, number)
                                                   for number, block in enumerate(blocks)})
        for block, layers in zip(blocks, inside):
            for layer in layers:
                layer.register_forward_pre_hook(self.arrivals[block])

    def bring(self) -> None:
        self.rest.bring()
        self.stream.open = True

    def leave(self) -> None:
        self.stream.close()
        self.rest.leave()


class _Arrival:
    """A hook: a layer of block `number` is about to compute."""

    def __init__(self, stream: _Stream, number: int) -> None:
        self.stream, self.number = stream, number

    def __call__(self, layer: nn.Module, arguments: tuple) -> None:
        # What is compiled has arrived before: see `compiled.py`.
        if not torch.compiler.is_compiling():
            self.stream.arrive(self.number)


class _Stream:
    """Blocks that come in their order, round and round. On CUDA the next one is copied while one computes."""

    def __init__(self, blocks: Sequence[_Group], device: torch.device) -> None:
        self.blocks, self.device = blocks, device
        self.open = False
        """Whether the part is in use."""
        self.now: int | None = None
        self.next: int | None = None
        self.side: torch.cuda.Stream | None = None

    def arrive(self, number: int) -> None:
        """Block `number` is on the device when this returns, as far as the device's own order of work goes."""
        if number == self.now or not self.open:
            return
        for other in {self.now, self.next} - {number, None}:
            self.blocks[other].leave()
        ready = self.next == number
        self.now = self.next = None
        if not ready:
            self._bring(number)
        self.now = number
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).wait_stream(self.side)
            if len(self.blocks) > 1:
                following = (number + 1) % len(self.blocks)
                self._bring(following)
                self.next = following

    def close(self) -> None:
        self.open = False
        for block in self.blocks:
            block.leave()
        self.now = self.next = None

    def _bring(self, number: int) -> None:
        beside = nullcontext()
        if self.device.type == "cuda":
            if self.side is None:
                self.side = torch.cuda.Stream(self.device)
            # All memory of blocks is this stream's: it may take that of a block that left only when the work that was
            # queued on it is done.
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            beside = torch.cuda.stream(self.side)
        with beside:
            self.blocks[number].bring()


class _Group:
    """Parameters and buffers that move together."""

    def __init__(self, layers: Iterable[nn.Module], device: torch.device, pin: bool) -> None:
        self.device, self.there = device, False
        self.tensors: dict[int, tuple[Tensor, Tensor]] = {}
        """Each tensor with its home; a tensor that two layers share is one."""
        self.special: list[weakref.ref[nn.Module]] = []
        """Quantised layers, whose weights are more than one tensor. By weak references, for their hooks know us: a
        model that nobody wants any more is freed at once."""
        self.visit = Visit(device)
        for layer in layers:
            own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if all(type(tensor) in (nn.Parameter, Tensor) for tensor in own):
                for tensor in own:
                    home = tensor.data.to(HOME)
                    self.tensors[id(tensor)] = tensor, _pinned(home) if pin else home
                    tensor.data = self.tensors[id(tensor)][1]  # at once, or all of them were there twice
            else:
                layer.to(HOME)
                self.special.append(weakref.ref(layer))
        self._home()

    def bring(self) -> None:
        """Where it fails, all of them are at home again."""
        if self.there or self.device == HOME:
            return
        self.there = True
        try:
            for tensor, home in self.tensors.values():
                tensor.data = home.to(self.device, non_blocking=home.is_pinned())
            for layer in (reference() for reference in self.special):
                if layer is not None:
                    self.visit.begin(layer)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        if self.there:
            self._home()
            self.visit.end()
            self.there = False

    def _home(self) -> None:
        for tensor, home in self.tensors.values():
            tensor.data = home


def send_home(part: nn.Module) -> None:
    """A part to main memory layer by layer, also one of quantised layers, which diffusers does not move as a whole."""
    _Group(part.modules(), HOME, pin=False)


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The outermost blocks of a part in the order in which they compute: the elements of its lists of modules."""
    found: list[nn.Module] = []
    for child in part.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def layers_of(block: nn.Module) -> list[nn.Module]:
    """The layers of a block that are moved. What a module that has parts holds itself is read without its forward
    being called, as SANA's `scale_shift_table` is; so it is not among them."""
    return [layer for layer in block.modules() if not any(True for _ in layer.children())
            and any(True for _ in layer.parameters(recurse=False))]


def _to_pin(parts: Mapping[str, Sequence[nn.Module]], devices: Mapping[str, torch.device]) -> set[str]:
    """The parts whose pages of main memory are locked for faster copies to CUDA: the transformer, which comes most
    often, and then others, as long as they are at most half of what there is."""
    room, found = main_memory() / 2, set()
    for name in sorted(parts, key=lambda name: not name.endswith("transformer")):
        wanted = sum(pinned_size(tensor.nbytes) for module in parts[name] for tensor in module.parameters())
        if devices[name].type == "cuda" and wanted <= room:
            room -= wanted
            found.add(name)
    return found


def main_memory() -> int:
    """Bytes of main memory that this process may have: a container has less than its machine. 0 where nobody says."""
    if not hasattr(os, "sysconf"):  # Windows
        return 0
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in LIMITS:
        try:
            sizes.append(int(file.read_text()))
        except (OSError, ValueError):  # no such file, or 'max'
            continue
    return min(sizes)


def pinned_size(size: int) -> int:
    """What `size` bytes take when they are locked: torch hands out powers of two."""
    return 1 << max(size - 1, 0).bit_length()


def _pinned(tensor: Tensor) -> Tensor:
    try:
        return tensor.pin_memory()
    except RuntimeError:  # the system does not let us have more of it
        return tensor
