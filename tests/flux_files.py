"""A tiny FLUX model as people have it for ComfyUI: the same weights as a folder, in files of the published names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from tiny_flux import TEXT_LENGTH, WORDS, tiny_lora, tiny_transformer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from reflect_core.generators.flux_corrector.folder import write_folder
from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.shapes.tokenizer import write_word_tokenizer
from reflect_core.types import Pair, Request

NAMES = {"transformer": "flux1-dev", "vae": "ae", "text_encoder": "clip_l", "text_encoder_2": "t5xxl_fp16"}
SETTINGS = {"defaults": {"width": 32, "height": 32, "steps": 3, "guidance": 3.5},
            "options": {"condition_size": 16, "max_sequence_length": TEXT_LENGTH}}
CHECKPOINT = {"transformer": "model.diffusion_model.", "vae": "vae.",
              "text_encoder": "text_encoders.clip_l.transformer.",
              "text_encoder_2": "text_encoders.t5xxl.transformer."}
"""Prefixes of ComfyUI's all-in-one checkpoints."""
FP8 = torch.float8_e4m3fn


def write_base(folder: Path, real_words: bool = False, **changes) -> Path:
    """A whole model as a folder, of FLUX.1's kind in all that no shape tells: CLIP's end mark and heads, the
    autoencoder's groups, scale and shift. `real_words`: with room for all of CLIP's and T5's."""
    words = write_word_tokenizer(folder / "tokenizer", [WORDS], "clip", max_length=TEXT_LENGTH)
    words_2 = write_word_tokenizer(folder / "tokenizer_2", [WORDS], "t5", max_length=TEXT_LENGTH)
    torch.manual_seed(5)
    sizes = (49408, 77, 32128) if real_words else (len(words), TEXT_LENGTH, len(words_2))
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=sizes[0], hidden_size=64, intermediate_size=37, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=sizes[1], projection_dim=64, bos_token_id=0, eos_token_id=2, pad_token_id=1))
    t5 = T5EncoderModel(T5Config(vocab_size=sizes[2], d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2,
                                 feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False))
    vae = AutoencoderKL(
        latent_channels=16, block_out_channels=(32, 64, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159)
    sizes = dict(in_channels=64, attention_head_dim=32, num_attention_heads=2, joint_attention_dim=64,
                 pooled_projection_dim=64, axes_dims_rope=(4, 14, 14))
    transformer = tiny_transformer(**sizes | changes)
    random = torch.Generator().manual_seed(9)
    for name, weight in transformer.named_parameters():  # norms are all ones else, and could be mistaken for each other
        if "norm_" in name:
            weight.copy_(1 + 0.3 * torch.randn(weight.shape, generator=random))
    guided = transformer.config.guidance_embeds
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided)
    return write_folder(folder, transformer=transformer, vae=vae, text_encoder=clip, text_encoder_2=t5,
                        scheduler=scheduler, lora=tiny_lora(transformer), settings=SETTINGS)


def original_transformer(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusers' tensors by the names of FLUX's authors: the way back of what the library does, written for itself."""
    made = {}

    def put(theirs, *mine):
        for ending in ("weight", "bias"):
            if f"{mine[0]}.{ending}" in state:
                scale = ending == "weight" and ".norm." in f".{theirs}." and theirs.endswith("_norm")
                made[f"{theirs}.{'scale' if scale else ending}"] = torch.cat([state[f"{m}.{ending}"] for m in mine])

    for theirs, mine in (("time_in", "timestep_embedder"), ("vector_in", "text_embedder"),
                         ("guidance_in", "guidance_embedder")):
        for layer, number in (("in_layer", 1), ("out_layer", 2)):
            put(f"{theirs}.{layer}", f"time_text_embed.{mine}.linear_{number}")
    put("img_in", "x_embedder")
    put("txt_in", "context_embedder")
    put("final_layer.linear", "proj_out")
    for ending in ("weight", "bias"):
        scale, shift = state[f"norm_out.linear.{ending}"].chunk(2)
        made[f"final_layer.adaLN_modulation.1.{ending}"] = torch.cat([shift, scale])
    for i in range(len({k.split(".")[1] for k in state if k.startswith("transformer_blocks.")})):
        b, block = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for stream, norm, mlp, qkv, out, extra in (
                ("img", "norm1", "ff", ("to_q", "to_k", "to_v"), "to_out.0", ""),
                ("txt", "norm1_context", "ff_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out",
                 "added_")):
            put(f"{block}.{stream}_mod.lin", f"{b}.{norm}.linear")
            put(f"{block}.{stream}_attn.qkv", *(f"{b}.attn.{name}" for name in qkv))
            put(f"{block}.{stream}_attn.proj", f"{b}.attn.{out}")
            put(f"{block}.{stream}_attn.norm.query_norm", f"{b}.attn.norm_{extra}q")
            put(f"{block}.{stream}_attn.norm.key_norm", f"{b}.attn.norm_{extra}k")
            put(f"{block}.{stream}_mlp.0", f"{b}.{mlp}.net.0.proj")
            put(f"{block}.{stream}_mlp.2", f"{b}.{mlp}.net.2")
    for i in range(len({k.split(".")[1] for k in state if k.startswith("single_transformer_blocks.")})):
        b, block = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        put(f"{block}.modulation.lin", f"{b}.norm.linear")
        put(f"{block}.linear1", *(f"{b}.attn.to_{n}" for n in "qkv"), f"{b}.proj_mlp")
        put(f"{block}.linear2", f"{b}.proj_out")
        put(f"{block}.norm.query_norm", f"{b}.attn.norm_q")
        put(f"{block}.norm.key_norm", f"{b}.attn.norm_k")
    return made


def original_vae(state: dict[str, torch.Tensor], stages: int = 3) -> dict[str, torch.Tensor]:
    """diffusers' autoencoder by the names of its authors: attention as convolutions, the way up counted from above."""
    made = {}
    for key, tensor in state.items():
        for mine, theirs in (("mid_block.resnets.0.", "mid.block_1."), ("mid_block.resnets.1.", "mid.block_2."),
                             ("mid_block.attentions.0.", "mid.attn_1."), ("downsamplers.0.", "downsample."),
                             ("upsamplers.0.", "upsample."), ("conv_shortcut.", "nin_shortcut."),
                             ("resnets.", "block."), ("down_blocks.", "down."), ("conv_norm_out.", "norm_out."),
                             ("group_norm.", "norm."),
                             ("to_q.", "q."), ("to_k.", "k."), ("to_v.", "v."), ("to_out.0.", "proj_out.")):
            key = key.replace(mine, theirs)
        if "up_blocks." in key:
            before, number, rest = key.partition("up_blocks.")[0], *key.partition("up_blocks.")[2].split(".", 1)
            key = f"{before}up.{stages - 1 - int(number)}.{rest}"
        if ".attn_1." in key and key.endswith("weight") and ".norm." not in key:
            tensor = tensor[:, :, None, None]
        made[key] = tensor
    return made


def component_tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of every component of a folder by the names that its single file has."""
    stems = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
             "text_encoder": "model", "text_encoder_2": "model"}
    loaded = {name: load_file(folder / name / f"{stem}.safetensors") for name, stem in stems.items()}
    loaded["transformer"] = original_transformer(loaded["transformer"])
    loaded["vae"] = original_vae(loaded["vae"])
    loaded["text_encoder_2"].pop("encoder.embed_tokens.weight", None)
    return loaded


def write_files(base: Path, out: Path, prefixes: dict[str, str] | None = None) -> dict[str, Path]:
    """Component -> its file; with prefixes all in one checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = component_tensors(base)
    if prefixes is not None:
        file = out / "flux1-dev-all.safetensors"
        save_file({prefixes[name] + key: tensor.contiguous() for name, part in tensors.items()
                   for key, tensor in part.items()}, file)
        return dict.fromkeys(tensors, file)
    for name, part in tensors.items():
        save_file({key: tensor.contiguous() for key, tensor in part.items()}, out / f"{NAMES[name]}.safetensors")
    return {name: out / f"{NAMES[name]}.safetensors" for name in tensors}


def as_kontext(base: Path, folder: Path) -> Path:
    """A copy whose index says that it is an editor: FLUX.1 Kontext has FLUX.1-dev's parts."""
    shutil.copytree(base, folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("FluxPipeline", "FluxKontextPipeline"))
    return folder


def tokenizers(base: Path) -> dict[str, Path]:
    return {name: base / name for name in ("tokenizer", "tokenizer_2")}


def load(base: Path, files: dict[str, Path], transformer: Path | None = None, **changes) -> FluxCorrector:
    """The generator of single files with the base's LoRA and tokenizers; `transformer` in place of the files' own."""
    others = {name: path for name, path in files.items() if name != "transformer"}
    return FluxCorrector.from_folder(transformer or files["transformer"], lora=base / "lora",
                                     parts=others | tokenizers(base), **SETTINGS["options"] | changes)


def request(context=()):
    return Request("two red circle left of a blue square", 3, 32, 32, 2, 3.5, context=context)


def drawn(generator):
    """A plain picture's latents and a corrected one's, so that autoencoder, both encoders and LoRA have a say.

    Weights are put into memory of their own first: where a file's header ends decides how they are aligned, and that
    decides the last bits of a product.
    """
    for part in generator.parts.values():
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()
    first = generator.draw([request()])[0].picture
    latents = generator.draw_latents([request(), request((Pair("make it blue", picture=first),))])
    return [np.asarray(first)] + [x.float().numpy() for x in latents]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(drawn(a), drawn(b), strict=True))


def packed_kind(key: str, tensor: torch.Tensor, kind: str) -> str:
    """As city96's converter has it: matrices packed, all that is small in fp32."""
    return kind if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 and "bias" not in key else "F32"


def write_gguf(path: Path, tensors: dict[str, torch.Tensor], kind: str, architecture: str = "flux",
               name: str | None = None) -> dict[str, torch.Tensor]:
    """A GGUF file by gguf's own writer, and what its tensors stand for."""
    import gguf

    writer, meant = gguf.GGUFWriter(path, architecture), {}
    if name is not None:
        writer.add_name(name)
    for key, tensor in tensors.items():
        q = gguf.GGMLQuantizationType[packed_kind(key, tensor, kind)]
        data = gguf.quants.quantize(tensor.numpy().astype(np.float32), q)
        writer.add_tensor(key, data, raw_dtype=q)
        meant[key] = torch.from_numpy(np.ascontiguousarray(gguf.quants.dequantize(data, q)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant
