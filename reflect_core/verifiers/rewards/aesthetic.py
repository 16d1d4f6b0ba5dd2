"""How good a picture looks, from 1 to 10: a small head on CLIP's or SigLIP's embedding of the picture alone.

LAION's improved aesthetic predictor (github.com/christophschuhmann/improved-aesthetic-predictor) on CLIP ViT-L/14:
768-1024-128-64-16-1, keys `layers.0.weight` and so on; Aesthetic Predictor V2.5
(github.com/discus0434/aesthetic-predictor-v2-5) on SigLIP so400m-patch14-384: 1152-1024-128-64-16-1, keys
`scoring_head.0.weight`. Both are linear layers with dropout between them and no activation; both see the unit vector.
They judge style and know nothing of the prompt: with a large weight they pull a search away from what was asked for.

Both heads are published as .pth, which are pickles. Only safetensors are read; the error of a .pth has the command that
makes one of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...model_files import PICKLES, read_safetensors
from ...types import Picture, UserError
from .encoder import Encoder, Encoders
from .reward import Reward
from .weights import refuse_pickle

LEAST, MOST = 1.0, 10.0
_NAME = re.compile(r"(?:layers|scoring_head)\.(\d+)\.(weight|bias)")


class Aesthetic(Reward):
    """See the module; `raw` is the head's number, and the score (raw - 1) / 9, cut to [0, 1].

    The head computes in fp32 on the CPU: it is 4 MB, and embeddings lie there.
    """

    name = "aesthetic"

    def __init__(self, encoder: Encoder, head: nn.Module, threshold: float | None = None) -> None:
        super().__init__(encoder, threshold)
        self.head = head

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    threshold: float | None = None, *, head: str | Path, processor: str | Path | None = None,
                    batch: int = 16, shared: Encoders | None = None) -> Aesthetic:
        """`folder` is the encoder's, `head` the head's safetensors file; the rest as in `Encoder.from_folder`."""
        layers = read_head(head)
        encoder = Encoder.from_folder(folder, dtype, device, processor=processor, batch=batch, shared=shared)
        if layers[0].in_features != encoder.width:
            raise UserError(f"{head}: takes embeddings of {layers[0].in_features} numbers, and the encoder in {folder} "
                            f"makes {encoder.width}; expected a head of this encoder: LAION's goes with CLIP ViT-L/14, "
                            "V2.5 with SigLIP so400m-patch14-384")
        return cls(encoder, layers, threshold)

    @torch.no_grad()
    def raw(self, prompt: str, pictures: Sequence[Picture]) -> tuple[list[float], str]:
        return self.head(self.encoder.pictures(pictures))[:, 0].tolist(), ""

    def score(self, raw: float) -> float:
        return min(max((raw - LEAST) / (MOST - LEAST), 0.0), 1.0)


def read_head(file: str | Path) -> nn.Sequential:
    """The linear layers of a head, in fp32. UserError for a file that is a pickle, or no such chain of layers."""
    file = Path(file)
    if file.suffix.lower() in PICKLES and file.is_file():
        raise refuse_pickle(file)
    tensors, _ = read_safetensors(file)
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{file}: has {name}; expected layers.N.weight and .bias, or scoring_head.N; try the head "
                            "of LAION's improved aesthetic predictor or of Aesthetic Predictor V2.5")
        found.setdefault(int(match[1]), {})[match[2]] = tensor.to(torch.float32)
    layers, width = [], None
    for number, layer in sorted(found.items()):
        weight, bias = layer.get("weight"), layer.get("bias")
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1] or \
                width not in (None, weight.shape[1]):
            raise UserError(f"{file}: layer {number} does not follow the one before it; expected weights and biases of "
                            "linear layers, each as wide as the last one's output; try to convert it again")
        linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        layers.append(linear)
        width = weight.shape[0]
    if width != 1:
        raise UserError(f"{file}: ends in {width or 'no'} numbers; expected one, the aesthetic score")
    return nn.Sequential(*layers).eval().requires_grad_(False)
