"""Models by name: published sets in folders, in ComfyUI and in the Hugging Face cache; single files on the command
line, on the record and in its replay."""

import json
import shutil
from pathlib import Path

import pytest
from command import inside
from flux_files import as_kontext, tokenizers

from reflect_core.presets.choice import ModelChoice, from_settings
from reflect_core.presets.locate import flux_parts, locate
from reflect_core.presets.roots import VARIABLE, Roots, find_roots
from reflect_core.types import UserError

DRAW = ["--pictures", "2", "--steps", "1", "--size", "64", "--option", "condition_size=16", "--option",
        "max_sequence_length=12", "--quiet", "--policy", "best_of_n"]


@pytest.fixture(autouse=True)
def nothing_elsewhere(monkeypatch, tmp_path):
    """No weights of whoever runs the tests."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache"))


def comfyui(folder, base, files, extra=False):
    """A ComfyUI with FLUX.1-dev in single files; with `extra` these lie where an extra_model_paths.yaml says."""
    root = folder / "ComfyUI"
    models = folder / "elsewhere" if extra else root / "models"
    names = ("unet", "clip", "VAE", "lora") if extra else ("diffusion_models", "text_encoders", "vae", "loras")
    unet, clip, vae, loras = (models / name for name in names)
    for place in (unet, clip / "flux", vae, loras / "FLUX-Corrector", root / "models" / "diffusers"):
        place.mkdir(parents=True)
    shutil.copy(files["transformer"], unet / "flux1-dev.safetensors")
    (unet / "flux1-dev-kontext_fp8_scaled.safetensors").write_bytes(b"")
    (unet / "aaa-flux1-fill-dev.safetensors").write_bytes(b"")
    shutil.copy(files["text_encoder"], clip / "clip_l.safetensors")
    shutil.copy(files["text_encoder_2"], clip / "flux" / "t5xxl_fp8_e4m3fn.safetensors")
    shutil.copy(files["vae"], vae / "ae.safetensors")
    shutil.copy(base / "lora" / "pytorch_lora_weights.safetensors", loras / "FLUX-Corrector")
    shutil.copytree(base / "tokenizer", root / "comfy" / "sd1_tokenizer")
    shutil.copytree(base / "tokenizer_2", root / "comfy" / "text_encoders" / "t5_tokenizer")
    if extra:
        (root / "extra_model_paths.yaml").write_text(
            f"mine:\n  base_path: {models}\n  unet: unet\n  clip: |\n    clip\n    no\n  vae: VAE\n  loras: lora\n")
    return root


@pytest.mark.parametrize("named", ["installation", "models", "yaml", "extra", "environment"])
def test_a_published_set_from_comfyuis_folders(base, files, tmp_path, monkeypatch, named):
    root = comfyui(tmp_path, base, files, extra=named in ("extra", "yaml"))
    roots = find_roots([{"models": root / "models", "yaml": root / "extra_model_paths.yaml"}.get(named, root)])
    if named == "yaml":  # on its own it says nothing of where the tokenizers are
        roots = Roots([root / "extra_model_paths.yaml", root])
    if named == "environment":
        monkeypatch.setenv(VARIABLE, f"{tmp_path}:{root}")
        roots = None
    choice = ModelChoice("flux-corrector", roots=roots, options={"condition_size": 16, "max_sequence_length": 12})
    assert choice.folder.name == "flux1-dev.safetensors" and choice.lora.name == "pytorch_lora_weights.safetensors"
    assert choice.parts["text_encoder_2"].name == "t5xxl_fp8_e4m3fn.safetensors" and len(choice.parts) == 5
    assert choice.policy == "reflection_flow" and choice.load().max_context == 1


@pytest.mark.parametrize("name, taken", [
    ("flux1-dev-Q8_0.gguf", True), ("flux1-dev-fp8.safetensors", True), ("flux1-dev-kontext_fp8.safetensors", False),
    ("flux1-dev-krea-bf16.safetensors", False), ("flux1-dev-schnell-4step.safetensors", False),
    ("flux1-dev-hyper-Q8_0.gguf", False), ("flux1-dev-de-distill.safetensors", False)])
def test_of_flux1_devs_relatives_none_is_taken_that_nobody_named(tmp_path, name, taken):
    (tmp_path / name).write_bytes(b"")
    assert ("transformer" in flux_parts(Roots([tmp_path]))) == taken


def test_a_published_set_as_folders(base, tmp_path):
    shutil.copytree(base, tmp_path / "FLUX.1-dev")
    with pytest.raises(UserError, match="missing: diffusion-cot/FLUX-Corrector.*464 MB.*reflect download flux-correct"):
        ModelChoice("flux-corrector", roots=Roots([tmp_path]))
    assert ModelChoice("flux-corrector", str(base / "lora"), roots=Roots([tmp_path])).folder == tmp_path / "FLUX.1-dev"
    (tmp_path / "FLUX-Corrector").mkdir()
    shutil.copy(base / "lora" / "pytorch_lora_weights.safetensors", tmp_path / "FLUX-Corrector")
    assert ModelChoice("flux-corrector", roots=Roots([tmp_path])).lora.parent.name == "FLUX-Corrector"


def cache(folder, repository, source, inside=""):
    """A repository in the layout of the Hugging Face cache."""
    top = folder / f"models--{repository.replace('/', '--')}"
    shutil.copytree(source, top / "snapshots" / "abc" / inside)
    (top / "refs").mkdir()
    (top / "refs" / "main").write_text("abc")
    return top / "snapshots" / "abc"


def test_from_the_hugging_face_cache(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = cache(tmp_path, "black-forest-labs/FLUX.1-dev", base)
    assert locate("black-forest-labs/FLUX.1-dev", Roots()).path == snapshot
    lora = cache(tmp_path, "diffusion-cot/FLUX-Corrector", base / "lora")
    found = locate("flux-corrector", Roots())
    assert found.path == snapshot and found.lora == lora / "pytorch_lora_weights.safetensors"
    with pytest.raises(UserError, match="no repository of that name is in the Hugging Face cache.*hf download a/b"):
        locate("a/b", Roots())


def test_reflect_dit_with_its_picture_encoder_in_a_repository_of_its_own(tmp_path, monkeypatch):
    from tiny_sana import write_tiny_sana
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    sana = write_tiny_sana(tmp_path / "sana")
    cache(tmp_path / "hub", "google/siglip-large-patch16-384", sana / "image_encoder")
    cache(tmp_path / "hub", "jacklishufan/reflect-dit", sana / "transformer", "dit/transformer")
    plain = write_tiny_sana(tmp_path / "plain", reflect=False)
    shutil.rmtree(plain / "image_encoder", ignore_errors=True)
    cache(tmp_path / "hub", "Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", plain)
    choice = ModelChoice("reflect-dit", options={"image_tokens": 16})
    assert choice.policy == "reflect_dit" and set(choice.parts) == {"image_encoder"}
    assert choice.load().max_context == 3
    again = from_settings(json.loads(json.dumps(choice.settings())))
    assert again.parts == choice.parts and again.fingerprint() == choice.fingerprint()
    # A repository of a whole model has any of its components.
    borrowed = ModelChoice(str(plain), parts={"vae": "Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers"})
    assert borrowed.parts["vae"].name == "abc" and borrowed.load().max_context == 0


def test_an_editor_is_a_folder_whole(base, tmp_path):
    editor = as_kontext(base, tmp_path / "kontext")
    with pytest.raises(UserError, match="a FluxKontextPipeline is a folder in diffusers layout; expected no --part"):
        ModelChoice(str(editor), parts={"vae": str(editor)}).load()


@pytest.mark.parametrize("name, said", [
    ("flux-corrector", "missing: black-forest-labs/FLUX.1-dev.*; and diffusion-cot.*looked in no folder, as neither"),
    ("reflect-dit", "google/siglip-large-patch16-384.*reflect-dit, its folder dit/transformer.*shapes-sana"),
    ("no-such", "neither a bundled model nor a folder; expected one of.*flux-corrector"),
    ("no/such.gguf", "no such file")])
def test_what_is_not_there(name, said):
    with pytest.raises(UserError, match=said):
        ModelChoice(name)


def test_roots_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match=f"no such folder.*--models and the variable {VARIABLE}"):
        Roots([tmp_path / "no"])
    (tmp_path / "extra_model_paths.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="extra_model_paths.yaml"):
        Roots([tmp_path / "extra_model_paths.yaml"])


def arguments(base, files):
    parts = {name: path for name, path in {**files, **tokenizers(base)}.items() if name != "transformer"}
    return ["--model", files["transformer"], "--lora", base / "lora",
            *(word for name, path in parts.items() for word in ("--part", f"{name}={path}"))]


def test_a_run_from_single_files_resumes_and_replays(base, files, tmp_path, capsys):
    done = inside(capsys, "run", "a red circle", *arguments(base, files), "--out", tmp_path / "run", "--json", *DRAW)
    assert done.code in (0, 3), done.err
    known = json.loads((tmp_path / "run" / "run.jsonl").read_text().splitlines()[0])["settings"]["model"]
    assert set(known["parts"]) == {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
    assert all(Path(path).is_absolute() for path in known["parts"].values())
    again = inside(capsys, "replay", tmp_path / "run", "--json", "--quiet")
    assert again.code == 0 and json.loads(again.out)["same_model"] is True
    moved = tmp_path / "moved"
    moved.mkdir()
    vae = shutil.copy(files["vae"], moved / "other-name.safetensors")
    again = inside(capsys, "replay", tmp_path / "run", "--part", f"vae={vae}", "--json", "--quiet")
    assert again.code == 0


def test_the_fingerprint_is_of_every_part(base, files, tmp_path):
    parts = {n: str(p) for n, p in {**files, **tokenizers(base)}.items() if n != "transformer"}
    whole = ModelChoice(str(files["transformer"]), str(base / "lora"), parts=parts)
    seen = {whole.fingerprint()}
    assert seen == {ModelChoice(str(files["transformer"]), str(base / "lora"), parts=parts).fingerprint()}
    for name in ("transformer", *parts):
        source = {**files, **tokenizers(base)}[name]
        other = tmp_path / name
        if source.is_dir():
            shutil.copytree(source, other)
            (other / "tokenizer_config.json").write_text((other / "tokenizer_config.json").read_text() + " ")
        else:
            other.write_bytes(source.read_bytes()[:-4] + b"\0\0\1\0")
        changed = {**parts, name: str(other)}
        path = changed.pop("transformer", str(files["transformer"]))
        seen.add(ModelChoice(path, str(base / "lora"), parts=changed).fingerprint())
    seen.add(ModelChoice(str(files["transformer"]), str(base / "lora"), options={"quantise": "fp8"},
                         parts=parts).fingerprint())
    assert len(seen) == 8


@pytest.mark.parametrize("words, said", [
    (["--part", "vae"], "--part 'vae'; expected NAME=PATH"), (["--part", "vae=/no/such"], "no such file or folder"),
    (["--models", "/no/such"], "no such folder"), (["--option", "quantise=fp4"], "expected one of none, fp8"),
    (["--option", "parts=1"], "one --part for each")])
def test_wrong_arguments(base, files, capsys, tmp_path, words, said):
    done = inside(capsys, "run", "a red circle", *arguments(base, files), *words, "--out", tmp_path / "o", *DRAW)
    assert said in done.error


def test_quantised_on_the_command_line(base, files, tmp_path, capsys):
    done = inside(capsys, "run", "a red circle", *arguments(base, files), "--out", tmp_path / "run", "--option",
                  "quantise=fp8", "--json", *DRAW)
    assert done.code in (0, 3), done.err
    assert inside(capsys, "replay", tmp_path / "run", "--quiet").code == 0
