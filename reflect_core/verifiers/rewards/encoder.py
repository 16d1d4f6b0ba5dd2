"""CLIP or SigLIP as an encoder of texts and pictures that several rewards share.

A text is encoded once and a picture once, whichever reward asks: embeddings are kept by what they are of (a picture's
pixels, a text's words). They are unit vectors in fp32 on the CPU; what a reward does with them is arithmetic.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ...generators.kept import Kept
from ...generators.loading import load_part, quiet, wrapped
from ...generators.places import Places
from ...generators.rgb import as_rgb
from ...model_files import read_json
from ...types import Picture, UserError
from .pixels import Pixels
from .room import enough_room
from .weights import check_folder, stored

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""transformers' class by the `model_type` of a config.json."""
PART = "image_encoder"
KEEP_PICTURES, KEEP_TEXTS = 4096, 64

Encoders = dict[tuple[str, ...], "Encoder"]
"""Those loaded so far, by folders, dtype and device: handed to each reward's `from_folder`, one serves them all."""


class Encoder:
    """See the module.

    Args: kind, 'clip' or 'siglip'; model, a `CLIPModel` or `SiglipModel`; scale and bias, those of its logits; batch,
    pictures that are encoded at once. A picture's embedding may differ in the last bits with who shares its batch.
    """

    def __init__(self, kind: str, model: nn.Module, tokenizer, pixels: Pixels, scale: float, bias: float = 0.0,
                 batch: int = 16) -> None:
        if batch < 1:
            raise UserError(f"batch is {batch}; expected 1 or more")
        self.kind, self.model, self.tokenizer, self.pixels, self.batch = kind, model, tokenizer, pixels, batch
        self.scale, self.bias = scale, bias
        self.parts = {PART: model}
        self.places = Places(self.parts)
        self.most_tokens = int(model.config.text_config.max_position_embeddings)
        self._pictures, self._texts = Kept(KEEP_PICTURES), Kept(KEEP_TEXTS)

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
                    *, processor: str | Path | None = None, batch: int = 16, shared: Encoders | None = None) -> Encoder:
        """Load a folder as it is published: config.json, model.safetensors (or shards), tokenizer, preprocessor.

        Args:
            processor: a folder with tokenizer and preprocessor_config.json, where the model's own has none.
            shared: encoders loaded so far; one of the same folders, dtype and device is taken from there, whatever its
                `batch`, and a new one put there.

        Raises UserError, naming the file, for a folder of another kind of model, or one that is not whole. Nothing is
        downloaded.
        """
        key = (str(Path(folder).resolve()), str(processor), str(dtype), str(device))
        if shared is not None and key in shared:
            return shared[key]
        folder = Path(folder)
        config = read_json(folder / "config.json", "expected the folder of a CLIP or SigLIP model, as it is published")
        kind = config.get("model_type")
        if kind not in CLASSES:
            raise UserError(f"{folder / 'config.json'}: model_type is {kind!r}; expected 'clip' or 'siglip', of a "
                            "model with both a text and a picture encoder; try openai/clip-vit-large-patch14")
        check_folder(folder, CLASSES[kind])
        beside = Path(processor) if processor is not None else folder
        pixels, tokenizer = Pixels.from_folder(beside), load_tokenizer(beside)
        with quiet(), enough_room(f"{CLASSES[kind]} in {folder}", "dtype bfloat16, or the device cpu"):
            model = load_part(folder.parent, folder.name, ["transformers", CLASSES[kind]], dtype).to(device)
        encoder = cls(kind, model, tokenizer, pixels, *_logits(folder, kind), batch)
        _check_fit(encoder, folder)
        if shared is not None:
            shared[key] = encoder
        return encoder

    @property
    def width(self) -> int:
        """D of an embedding."""
        config = self.model.config
        return config.projection_dim if self.kind == "clip" else config.vision_config.hidden_size

    def text(self, text: str) -> tuple[Tensor, str]:
        """A text's embedding (D,), and a note on what of it was cut off, or ''."""
        return self._texts.get(text, lambda: self._encode_text(text))[0]

    def pictures(self, pictures: Sequence[Picture]) -> Tensor:
        """The embeddings (B, D) of pictures of any sizes; only those that were not asked for before are computed."""
        rgb = [as_rgb(picture) for picture in pictures]
        keys = [(picture.size, hashlib.sha256(picture.tobytes()).digest()) for picture in rgb]
        new = {key: picture for key, picture in zip(keys, rgb) if key not in self._pictures.values}
        made: dict = {}
        for start in range(0, len(new), self.batch):
            some = list(new)[start : start + self.batch]
            made |= zip(some, self._encode_pictures([new[key] for key in some]))
        found = [self._pictures.get(key, lambda key=key: made[key])[0] for key in keys]
        return torch.stack(found) if found else torch.zeros(0, self.width)

    @torch.no_grad()
    def _encode_pictures(self, pictures: Sequence[Picture]) -> Tensor:
        height, width = self.pixels.shape
        where = self.places(PART, len(pictures) * height * width)
        with enough_room(f"{len(pictures)} pictures in {type(self.model).__name__}",
                         "a smaller batch, dtype bfloat16, or the device cpu"):
            made = self.model.get_image_features(pixel_values=self.pixels(pictures).to(where, self.model.dtype))
            return unit(features(made))

    @torch.no_grad()
    def _encode_text(self, text: str) -> tuple[Tensor, str]:
        # SigLIP was trained on lower case, padded to the end, where it looks for the text's embedding. CLIP looks at
        # the text's last token, before which no padding can be.
        siglip = self.kind == "siglip"
        words = text.lower() if siglip else text
        ids = self.tokenizer(words, truncation=True, max_length=self.most_tokens, return_tensors="pt",
                             padding="max_length" if siglip else False).input_ids
        whole = self.tokenizer(words, verbose=False).input_ids
        note = ""
        if len(whole) > self.most_tokens:
            lost = " ".join(self.tokenizer.decode(whole[self.most_tokens - 1 :], skip_special_tokens=True).split())
            note = (f"the text encoder takes {self.most_tokens} tokens of {len(whole)} and did not see the end of the "
                    f"prompt: {lost[:60]!r}")
        return unit(features(self.model.get_text_features(input_ids=ids.to(self.places(PART)))))[0], note


def features(output: Tensor | object) -> Tensor:
    """What `get_image_features` and `get_text_features` made (B, D): a tensor in transformers 4, in 5 an output object
    that has it in `pooler_output`."""
    return output if isinstance(output, Tensor) else output.pooler_output


def unit(embeddings: Tensor) -> Tensor:
    """(B, D) as unit vectors in fp32 on the CPU."""
    return nn.functional.normalize(embeddings.to("cpu", torch.float32), dim=-1)


def load_tokenizer(folder: Path):
    """A folder's tokenizer. UserError for one that is missing or cannot be read."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "spiece.model")):
        raise UserError(f"{folder}: has no tokenizer; expected tokenizer.json, or vocab.json with merges.txt, as in "
                        "the model's repository; try processor=FOLDER, one of the model that it was tuned from "
                        "(PickScore: laion/CLIP-ViT-H-14-laion2B-s32B-b79K)")
    from transformers import AutoTokenizer

    with quiet():
        return wrapped(folder, lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True))


def _logits(folder: Path, kind: str) -> tuple[float, float]:
    """Scale and bias of the logits, as they are stored: in bf16 the scale of 100 would be 98.9."""
    scale = stored(folder, "logit_scale")
    bias = stored(folder, "logit_bias") if kind == "siglip" else torch.zeros(1)
    if scale is None or bias is None:
        raise UserError(f"{folder}: its weights lack logit_{'bias' if scale is not None else 'scale'}; expected all "
                        f"of a {CLASSES[kind]}; try to download the model again")
    return float(scale.double().exp().item()), float(bias.item())


def _check_fit(encoder: Encoder, folder: Path) -> None:
    """UserError unless the tokenizer and the picture size are the model's."""
    config = encoder.model.config
    side, shape = config.vision_config.image_size, encoder.pixels.shape
    if shape != (side, side):
        raise UserError(f"{folder}: its preprocessor makes pictures of {shape[1]}x{shape[0]}, and the model takes "
                        f"{side}x{side}; expected files of one model; try to download them again")
    tokens, rows = len(encoder.tokenizer), config.text_config.vocab_size
    if tokens > rows:
        raise UserError(f"{folder}: its tokenizer has {tokens} tokens, and the model {rows}; expected files of one "
                        "model; try to download them again")
