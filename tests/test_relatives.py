"""FLUX.1-dev's near relatives have its names and shapes: they are told by the file's name and by its header."""

import shutil
import warnings

import pytest
from command import inside
from flux_files import as_kontext, component_tensors, load, tokenizers, write_base, write_files, write_gguf
from safetensors.torch import load_file, save_file

from reflect_core.generators.flux_corrector.pipeline import FluxCorrector
from reflect_core.generators.flux_corrector.sources import find_sources
from reflect_core.types import UserError

KONTEXT = ("flux1-dev-kontext_fp8_scaled", "flux1-kontext-dev", "FLUX.1-Kontext-dev", "fluxKontextDev_v1",
           "FLUXKontext", "flux1-kontext-dev-Q8_0", "fluxkontextdev")
DEV = ("flux1-dev", "my-kontextual-style", "flux1-dev-fp8", "FLUX.1-dev_bf16", "contextflux", "kreative-flux",
       "fluxmixture", "t5", "flux_dev_distilled", "hyperrealistic-flux", "flux1-dev-Q4_K_S")
"""Of no relative: a word is a word."""


def sources(base, files, file):
    others = {name: path for name, path in files.items() if name != "transformer"}
    return find_sources(file, others | tokenizers(base))


def with_header(files, file, **about):
    save_file(load_file(files["transformer"]), file, metadata={key.replace("__", "."): v for key, v in about.items()})
    return file


@pytest.mark.parametrize("name", KONTEXT)
def test_a_kontext_is_refused_with_its_cures(base, files, tmp_path, name):
    file = shutil.copy(files["transformer"], tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match="is FLUX.1 Kontext by its name.*; expected.*; try.*--model kontext.*another n"):
        sources(base, files, file)
    with pytest.raises(UserError, match="--model kontext"):  # as a part, and before anybody asks for the others
        find_sources(base, {"transformer": file})
    with pytest.raises(UserError, match="--model kontext"):
        find_sources(file)


@pytest.mark.parametrize("name", DEV)
def test_an_innocent_name_is_neither_refused_nor_warned_about(base, files, tmp_path, name):
    file = shutil.copy(files["transformer"], tmp_path / f"{name}.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sources(base, files, file)["transformer"].path == file


def test_another_name_is_the_way_round_it_and_folders_are_not_asked(base, files, tmp_path):
    folder = tmp_path / "kontext tests [1]"
    folder.mkdir()
    (folder / "mine.safetensors").symlink_to(shutil.copy(files["transformer"], tmp_path / "flux1-kontext.safetensors"))
    assert load(base, files, folder / "mine.safetensors").max_context == 1


@pytest.mark.parametrize("architecture", ["Flux.1-dev/kontext", "flux-1-kontext-dev"])
def test_a_header_that_says_kontext_is_believed(base, files, tmp_path, architecture):
    file = with_header(files, tmp_path / "mine.safetensors", modelspec__architecture=architecture)
    with pytest.raises(UserError, match="as its header says .modelspec.architecture.*--model kontext") as caught:
        sources(base, files, file)
    assert "another name" not in str(caught.value), "which would not help"


@pytest.mark.parametrize("name, about, said", [
    ("flux1-krea-dev_fp8_scaled", {}, "is FLUX.1 Krea by its name"),
    ("flux1DevSchnellMerge", {}, "FLUX.1-schnell, or has some of it"), ("fluxFusionMix_v2", {}, "is a merge by its"),
    ("flux.1-dev-hyper-8steps", {}, "a few steps"), ("flux-dev-de-distill-Q8_0", {}, "without distilled guidance"),
    ("mine", {"modelspec__title": "FLUX.1 Krea dev"}, "is FLUX.1 Krea as its header says .modelspec.title"),
    ("mine", {"modelspec__title": "a Kontext, perhaps"}, "is FLUX.1 Kontext as its header says"),
    ("mine", {"modelspec__merged_from": "a, b"}, "is a merge, as its header says .modelspec.merged_from")])
def test_others_are_warned_about(base, files, tmp_path, name, about, said):
    file = with_header(files, tmp_path / f"{name}.safetensors", **about)
    with pytest.warns(UserWarning, match=f"{said}.*may correct worse on it; try FLUX.1-dev's own") as warned:
        sources(base, files, file)
    assert len(warned) == 1


def test_what_takes_no_guidance_is_said_to_be_as_schnell(tmp_path):
    base = write_base(tmp_path / "base", guidance_embeds=False)
    files = write_files(base, tmp_path)
    with pytest.warns(UserWarning, match="takes no guidance, as FLUX.1-schnell, which is made for 4 steps"):
        sources(base, files, files["transformer"])


def test_a_gguf_says_what_it_is_by_its_own_names(base, files, tmp_path):
    pytest.importorskip("gguf")
    write_gguf(tmp_path / "mine.gguf", component_tensors(base)["transformer"], "F16", name="FLUX.1 Krea [dev]")
    with pytest.warns(UserWarning, match="is FLUX.1 Krea as its header says .general.name"):
        sources(base, files, tmp_path / "mine.gguf")


def test_the_transformer_of_an_editors_folder_is_none_for_a_corrector(base, tmp_path):
    editor = as_kontext(base, tmp_path / "editor")
    with pytest.raises(UserError, match="is FLUX.1 Kontext as its model_index.json says"):
        FluxCorrector.from_folder(base, parts={"transformer": editor})
    assert find_sources(base, {"vae": editor})["transformer"].folder == base / "transformer"


def test_on_the_command_line(base, files, tmp_path, capsys):
    words = [word for name, path in {**files, **tokenizers(base)}.items() if name != "transformer"
             for word in ("--part", f"{name}={path}")]
    draw = ["--lora", base / "lora", "--policy", "best_of_n", "--pictures", "1", "--steps", "1", "--size", "64",
            "--option", "max_sequence_length=12", "--option", "condition_size=16", "--quiet"]
    kontext = shutil.copy(files["transformer"], tmp_path / "flux1-dev-kontext_fp8_scaled.safetensors")
    said = inside(capsys, "run", "a red circle", "--model", kontext, *words, "--out", tmp_path / "no", *draw)
    assert "--model kontext" in said.error
    krea = shutil.copy(files["transformer"], tmp_path / "flux1-krea-dev.safetensors")
    done = inside(capsys, "run", "a red circle", "--model", krea, *words, "--out", tmp_path / "run", *draw)
    assert done.code in (0, 3) and done.err.count("warning: ") == 1 and "is FLUX.1 Krea by its name" in done.err
