"""Reward models as judges: a number for each picture, and no words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..generators.checking import DTYPES, OFFLOADS, check_device, one_of
from ..types import UserError
from ..verifiers.rewards import load_reward
from .judge import Actors, Judge


class RewardJudge(Judge):
    """`name`: one of `verifiers.rewards.REWARDS`. `options`: folder, device, dtype, and those of its `from_folder`.

    It says nothing, so that a search that corrects needs another reflector beside it.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options = name, dict(options)
        self.shared: dict[Any, Any] = {}
        """Encoders of other rewards beside it, see `verifiers.rewards.encoder`."""
        self._actors: Actors | None = None
        self._connected = False
        folder = self.options.get("folder")
        if not isinstance(folder, str) or not folder:
            raise UserError(f"the judge {name!r} lacks the option folder; expected where its weights are, as on the "
                            "hub")
        for key in ("folder", "head", "base", "processor"):  # a resume may be elsewhere
            if isinstance(self.options.get(key), str):
                self.options[key] = str(Path(self.options[key]).expanduser().absolute())
        one_of("dtype", self.options.get("dtype", "auto"), DTYPES)
        one_of("offload", self.options.get("offload", "none"), OFFLOADS)

    def connect(self, judges: bool = True) -> list[str]:
        if self._connected:
            return []
        self._connected = True
        given = self.options.get("device", "auto")
        place = {given} if given != "auto" else {str(device) for device in self._places()}
        return [f"the judge {self.name} is {self.options['folder']}, on {', '.join(sorted(place))}"]

    def actors(self, folder: Path | None = None) -> Actors:
        if self._actors is None:
            from ..reflectors import SilentReflector

            self._actors = Actors(self._load(), SilentReflector())
        return self._actors

    def settings(self, prompt: str | None = None) -> dict[str, Any]:
        return {"name": self.name, "options": self.options}

    def _places(self) -> set[Any]:
        return {next(part.parameters()).device for part in self.actors().verifier.parts.values()}

    def _load(self):
        import torch

        from ..generators.offload import HOME, Offload

        given = {key: value for key, value in self.options.items()
                 if key not in ("folder", "device", "dtype", "offload")}
        device = self.options.get("device", "auto")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        check_device("--judge-option device=", device)
        dtype = self.options.get("dtype", "auto")
        if dtype != "auto":
            given["dtype"] = getattr(torch, dtype)
        if self.name != "image-verifier":
            given["shared"] = self.shared
        offload = self.options.get("offload", "none")
        made = load_reward(self.name, self.options["folder"], device=device if offload == "none" else HOME, **given)
        if offload != "none" and made.places.manager is None:  # of an encoder that is shared there is one
            Offload.manage(made, device, offload)
        return made
