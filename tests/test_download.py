"""`reflect download` against a hub on loopback: what is needed and no more, asked first, resumed."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ENVIRONMENT, ROOT
from fake_hub import Hub
from flux_files import write_base
from tiny_vlm import write_tiny_qwen

from reflect_core.presets.published import published_set
from reflect_core.vlm.local import Local, LocalOptions

BASE, LORA = "black-forest-labs/FLUX.1-dev", "diffusion-cot/FLUX-Corrector"
SANA, CHECKPOINT = "Efficient-Large-Model/Sana_1600M_1024px_MultiLing_diffusers", "jacklishufan/reflect-dit"
EYE = "google/siglip-large-patch16-384"
COMMAND = [sys.executable, "-c", """
import sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000  # else what is short of 10 MB is written at once, and nothing is there to resume
from reflect_core.cli import main
sys.exit(main(["download", *sys.argv[1:]]))"""]
UNNEEDED = ("flux1-dev.safetensors", "ae.safetensors", "README.md", "transformer/other.bin", "dev_grid.jpg",
            "transformer/diffusion_pytorch_model.fp16.safetensors",
            "vae/diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
TOKEN = "hf_thisisasecretthatnobodyshallread"


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    base = write_base(folder / "base")
    shutil.move(base / "lora", folder / "corrector")
    (base / "reflect.json").rename(folder / "reflect.json")
    for unneeded in UNNEEDED:
        (base / unneeded).write_bytes(b"not needed" * 1000)
    (folder / "corrector" / "README.md").write_text("not needed")
    return {BASE: base, LORA: folder / "corrector"}


@pytest.fixture
def hub(flux):
    running = Hub(dict(flux))
    yield running
    running.close()


def environment_of(hub, home, **environment):
    env = {**ENVIRONMENT, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
           "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", **environment}
    env.pop("HF_HUB_OFFLINE", None) if "HF_HUB_OFFLINE" not in environment else None
    return env


def download(hub, home, *words, answers="", **environment):
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True,
                          env=environment_of(hub, home, **environment), cwd=ROOT, timeout=100, input=answers)
    assert TOKEN not in done.stdout + done.stderr and "Traceback" not in done.stderr, done.stderr
    return done


def test_nothing_comes_before_somebody_says_yes(hub, tmp_path):
    for answers in ("", "n\n", "what?\n"):
        done = download(hub, tmp_path, "flux-corrector", answers=answers)
        assert done.returncode == 3 and "nothing was downloaded" in done.stdout
    assert "a-licence (FLUX.1 [dev] Non-Commercial License)" in done.stdout
    assert "transformer/diffusion_pytorch_model.safetensors" in done.stdout and "in all. Download? [y/N]" in done.stderr
    assert not hub.sent


def test_what_is_needed_comes_and_is_found_by_name(hub, flux, tmp_path):
    done = download(hub, tmp_path, "flux-corrector", answers="y\n")
    assert done.returncode == 0, done.stderr
    assert "--model flux-corrector" in done.stdout
    assert not set(UNNEEDED) & set(hub.sent)
    assert set(hub.sent) == {n for n in hub.files(BASE) if n.endswith((".json", ".safetensors"))
                             and n not in UNNEEDED} | {"pytorch_lora_weights.safetensors"}
    env = {**ENVIRONMENT, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    env.pop("REFLECT_MODELS", None)
    drawn = subprocess.run([sys.executable, "-m", "reflect_core", "run", "a red circle", "--model", "flux-corrector",
                            "--pictures", "1", "--steps", "1", "--size", "64", "--option", "condition_size=16",
                            "--option", "max_sequence_length=12", "--json", "--quiet", "--out", str(tmp_path / "run")],
                           capture_output=True, text=True, env=env, cwd=ROOT, timeout=100)
    assert drawn.returncode in (0, 3), drawn.stderr
    before = dict(hub.sent)
    assert download(hub, tmp_path, "flux-corrector", "--yes").returncode == 0 and hub.sent == before, "not twice"


def resumed_at(hub):
    return [int(headers["Range"].removeprefix("bytes=").split("-")[0]) for command, _, headers in hub.requests
            if command == "GET" and "Range" in headers]


def check_whole(hub, folders):
    for repository, folder in folders.items():
        for name in hub.sent.keys() & hub.files(repository).keys():
            assert Path(folder, name).read_bytes() == hub.files(repository)[name].read_bytes()


def test_a_connection_that_breaks_is_taken_up_where_it_was(hub, tmp_path):
    hub.cut = 3
    done = download(hub, tmp_path, "flux-corrector", "--yes", "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 0 and said["downloaded"] and hub.cut == 0
    assert len(resumed_at(hub)) == 3 and min(resumed_at(hub)) > 0
    check_whole(hub, said["folders"])


@pytest.mark.parametrize("to", [None, "folder"])
def test_after_a_kill_only_what_is_not_whole_comes_again(hub, tmp_path, to):
    """Some versions of huggingface_hub go on within a file, others begin that one again."""
    words = ["flux-corrector", "--yes", "--json", *(() if to is None else ("--to", str(tmp_path / to)))]
    hub.stall.set()
    running = subprocess.Popen([*COMMAND, *words], env=environment_of(hub, tmp_path), cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert hub.stalled.wait(60)
    time.sleep(1)
    running.kill()
    running.wait()
    sizes = {name: p.stat().st_size for name, p in hub.files(BASE).items()}
    whole = {name for name, sent in hub.sent.items() if sent == sizes[name]}
    assert whole and whole != set(hub.sent)
    hub.stall.clear()
    done = download(hub, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert all(hub.sent[name] == sizes[name] for name in whole)
    check_whole(hub, json.loads(done.stdout)["folders"])


@pytest.mark.parametrize("as_comfyui", [True, False])
def test_into_a_folder_as_comfyui_has_them(hub, tmp_path, as_comfyui):
    to = tmp_path / "to"
    if as_comfyui:
        (to / "comfy").mkdir(parents=True)
        (to / "models").mkdir()
    done = download(hub, tmp_path / "home", "flux-corrector", "--yes", "--to", to)
    assert done.returncode == 0 and f"--models {to}" in done.stdout, done.stderr
    models = to / "models" if as_comfyui else to
    assert (models / "diffusers" / "FLUX.1-dev" / "model_index.json").is_file()
    assert (models / "loras" / "FLUX-Corrector" / "pytorch_lora_weights.safetensors").is_file()
    from reflect_core.presets.choice import ModelChoice
    from reflect_core.presets.roots import Roots
    assert ModelChoice("flux-corrector", roots=Roots([to])).load().max_context == 1
    before = dict(hub.sent)
    again = download(hub, tmp_path / "home", "flux-corrector", "--yes", "--to", to)
    assert again.returncode == 0 and hub.sent == before and "here already" in again.stdout


def test_reflect_dit_is_put_together_from_three_repositories(hub, tmp_path):
    from tiny_sana import write_tiny_sana

    sana, plain = write_tiny_sana(tmp_path / "sana"), write_tiny_sana(tmp_path / "plain", reflect=False)
    shutil.copytree(sana / "transformer", tmp_path / "checkpoint" / "dit" / "transformer")
    (tmp_path / "checkpoint" / "dit" / "other.safetensors").write_bytes(b"not needed")
    hub.repositories |= {SANA: plain, CHECKPOINT: tmp_path / "checkpoint", EYE: sana / "image_encoder"}
    done = download(hub, tmp_path / "home", "reflect-dit", "--yes", "--to", tmp_path / "to")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "to" / "reflect").iterdir()) == ["reflect-dit"]
    from reflect_core.presets.choice import ModelChoice
    from reflect_core.presets.roots import Roots
    choice = ModelChoice("reflect-dit", roots=Roots([tmp_path / "to"]), options={"image_tokens": 16})
    assert choice.load().max_context == 3
    before = dict(hub.sent)
    again = download(hub, tmp_path / "home", "reflect-dit", "--yes", "--to", tmp_path / "to")
    assert again.returncode == 0 and hub.sent == before


def test_of_sanas_repository_comes_one_set_of_weights(hub, tmp_path):
    """Its files by name, as its pages on the hub list them: fp32 shards of the transformer, which the checkpoint takes
    the place of, bf16 of Gemma, and the same again in fp16."""
    once = ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
            "text_encoder/model.safetensors.index.json",
            *(f"text_encoder/model-0000{n}-of-00002.safetensors" for n in (1, 2)), "tokenizer/tokenizer.model",
            *(f"tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config", "special_tokens_map"))]
    again = ["transformer/config.json", "transformer/diffusion_pytorch_model.safetensors.index.json",
             *(f"transformer/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)),
             "transformer/diffusion_pytorch_model.fp16.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors",
             "text_encoder/model.safetensors.index.fp16.json", "README.md", "LICENSE.txt", ".gitattributes",
             *(f"text_encoder/model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2))]
    checkpoint = ["dit/transformer/config.json"]
    for repository, names in ((SANA, once + again), (CHECKPOINT, checkpoint), (EYE, ["config.json"])):
        for name in names:
            file = tmp_path / repository / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x")
        hub.repositories[repository] = tmp_path / repository
    done = download(hub, tmp_path / "home", "reflect-dit", answers="n\n")
    share = done.stdout.partition(CHECKPOINT)[0]
    assert {line.split()[-1] for line in share.splitlines() if line.startswith("    ")} == set(once)
    assert "6.5 GB" in published_set("reflect-dit").base.size and f"{len(once)} files" in share


def test_errors_say_what_to_do(hub, tmp_path):
    done = download(hub, tmp_path, "flux-corrector", "--yes", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE is set" in done.stderr
    hub.gated = (BASE,)
    done = download(hub, tmp_path, "flux-corrector", "--yes")
    assert done.returncode == 2 and f"accept it at {hub.url}/{BASE} and then 'hf auth login'" in done.stderr
    done = download(hub, tmp_path, "reflect-dit", "--yes")
    assert done.returncode == 2 and f"is not at {hub.url}" in done.stderr
    hub.close()
    done = download(hub, tmp_path, "flux-corrector", "--yes")
    assert done.returncode == 2 and "try the same command again" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_full_disk_is_told_before_anything_comes(hub, tmp_path, monkeypatch, capsys):
    from reflect_core.presets import download as module
    from reflect_core.types import UserError

    shares = [module.Share(source, "a", {"x": 10**15}, "", tmp_path / source.name)
              for source in module.published_set("flux-corrector").sources]
    with pytest.raises(UserError, match="2000000.0 GB are still to come; expected room"):
        module.check_room(shares)


def test_a_folder_of_a_repository_by_its_id(hub, tmp_path):
    """As ReflectionFlow's reflector and Reflect-DiT's judge are published."""
    write_tiny_qwen(tmp_path / "repository" / "infer" / "30000", shards=True)
    (tmp_path / "repository" / "infer" / "30000" / "training_args.bin").write_bytes(b"not needed")
    (tmp_path / "repository" / "infer" / "other.json").write_text("{}")
    hub.repositories["Some/Generator"] = tmp_path / "repository"
    done = download(hub, tmp_path / "home", "Some/Generator", "--yes")
    assert done.returncode == 2 and "try Some/Generator/infer/30000" in done.stderr
    done = download(hub, tmp_path / "home", "Some/Generator/infer/30000", "--yes", "--to", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "LLM" / "Generator"
    assert Local.from_folder(LocalOptions(str(folder))).name == "Generator"
    assert {p.name for p in folder.iterdir()} == {p.name for p in (
        tmp_path / "repository" / "infer" / "30000").iterdir()} - {"training_args.bin"}
    done = download(hub, tmp_path / "home", "Some/Generator/infer/30000", "--yes")
    cached = Path(done.stdout.rstrip().rpartition("--judge ")[2])
    assert done.returncode == 0 and Local.from_folder(LocalOptions(str(cached))).name == "30000"
    assert "'Some/' is no repository" in download(hub, tmp_path / "home", "Some/", "--yes").stderr


MAIN = "reflect_core/__main__.py"


@pytest.mark.parametrize("how", [["-m", "reflect_core"], [MAIN], ["-I", MAIN]])
def test_from_the_packs_folder_with_a_python_that_has_not_installed_it(tmp_path, how):
    """The last is how the Python of ComfyUI's portable build looks for modules: not where it is called."""
    (tmp_path / "my nodes").mkdir()
    pack = tmp_path / "my nodes" / "reflect-1.0"
    shutil.copytree(ROOT / "reflect_core", pack / "reflect_core",
                    ignore=shutil.ignore_patterns("*.safetensors", "*.png", "results", "__pycache__"))
    main = pack / "reflect_core" / "cli" / "__init__.py"
    main.write_text(main.read_text() + "\nprint('from', __file__)\n")
    env = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, *how, "download", "--help"], capture_output=True, text=True, cwd=pack,
                          env=env, timeout=100)
    assert done.returncode == 0 and "usage: reflect download" in done.stdout, done.stderr
    assert Path(done.stdout.splitlines()[0].removeprefix("from ")).resolve() == main


def test_only_published_sets(hub, tmp_path):
    done = download(hub, tmp_path, "shapes-flux")
    assert done.returncode == 2 and "flux-corrector" in done.stderr and not hub.requests


def test_a_repository_by_its_id(hub, tmp_path):
    """One that draws, and a judge's, which has no model_index.json."""
    judge = write_tiny_qwen(tmp_path / "judge", shards=True)
    (judge / "pytorch_model.bin").write_bytes(b"not needed")
    before = dict(hub.sent)
    hub.repositories["Some/Tiny-VL"] = judge
    done = download(hub, tmp_path / "home", BASE, "--yes", "--to", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "models" / "diffusers" / "FLUX.1-dev" / "model_index.json").is_file()
    assert not {"flux1-dev.safetensors", "ae.safetensors", *UNNEEDED} & (hub.sent.keys() - before.keys()), "twice"
    done = download(hub, tmp_path / "home", "Some/Tiny-VL", "--yes", "--to", tmp_path / "models")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "models" / "LLM" / "Tiny-VL"
    assert len(list(folder.glob("*.safetensors"))) > 2 and not list(folder.glob("*.bin"))
    assert Local.from_folder(LocalOptions(str(folder))).name == "Tiny-VL"
    assert f"--judge {folder}" in done.stdout
    done = download(hub, tmp_path / "home", "no/such", "--yes")
    assert done.returncode == 2 and "no/such: is not at" in done.stderr
