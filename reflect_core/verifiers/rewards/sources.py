"""Where the published rewards come from: repository, size and licence of each, as data.

Of a repository only what is named is needed: config, tokenizer, preprocessor and safetensors, and not the same weights
again in other formats. Of a licence that is not stated on its page this says so.
"""

from __future__ import annotations

from dataclasses import dataclass

RECIPE_NEEDED = "a pickle; converted once, see verifiers/rewards/weights.py"


@dataclass(frozen=True)
class Source:
    """One repository's share of a reward."""

    repository: str
    """On the Hugging Face hub, or with its host."""
    option: str
    """The option of the reward's `from_folder` that it is for."""
    files: tuple[str, ...]
    """What must lie in its folder; or the file itself, for a head."""
    size: str
    licence: str
    note: str = ""


_CLIP = ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json")
_CLIP_L = Source("openai/clip-vit-large-patch14", "folder", _CLIP, "1.7 GB", "none stated there; its code is MIT")
_SIGLIP = Source("google/siglip-so400m-patch14-384", "folder", _CLIP, "3.5 GB", "Apache-2.0",
                 "some versions of transformers want sentencepiece for its tokenizer")

SOURCES: dict[str, tuple[tuple[Source, ...], ...]] = {
    "clip-score": ((_CLIP_L,), (_SIGLIP,)),
    "pick-score": (
        (Source("yuvalkirstain/PickScore_v1", "folder", _CLIP, "3.9 GB", "none stated there; its code is MIT"),),),
    "aesthetic": (
        (_CLIP_L, Source("github.com/christophschuhmann/improved-aesthetic-predictor", "head",
                         ("sac+logos+ava1-l14-linearMSE.pth",), "4 MB", "Apache-2.0", RECIPE_NEEDED)),
        (_SIGLIP, Source("github.com/discus0434/aesthetic-predictor-v2-5", "head", ("aesthetic_predictor_v2_5.pth",),
                         "3 MB", "AGPL-3.0", RECIPE_NEEDED))),
    "image-verifier": (
        (Source("diffusion-cot/Image-Verifier", "folder", ("model_config.json", "checkpoint-10080"), "3.5 GB",
                "see its page", RECIPE_NEEDED),
         Source("Qwen/Qwen2.5-VL-7B-Instruct", "base",
                ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors.index.json"),
                "16.6 GB", "Apache-2.0", "or the one that model_config.json names; the 3B's is for research")),),
}
"""By the names of `rewards.load_reward`: for each the sets that it can be made of, the first being the usual one."""
