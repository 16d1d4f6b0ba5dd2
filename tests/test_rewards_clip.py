"""CLIPScore, PickScore and aesthetic heads on small random models, against what transformers computes by itself."""

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, safe_open, save_file
from tiny_rewards import HEADS, SIDE, picture, write_head, write_tiny_clip, write_tiny_siglip
from tokenizers import Tokenizer
from transformers import AutoTokenizer, CLIPModel, SiglipModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from reflect_core.types import UserError
from reflect_core.verifiers.rewards.aesthetic import Aesthetic, read_head
from reflect_core.verifiers.rewards.clip_score import ClipScore
from reflect_core.verifiers.rewards.encoder import Encoder, features
from reflect_core.verifiers.rewards.ensemble import Ensemble
from reflect_core.verifiers.rewards.pick_score import PickScore
from reflect_core.verifiers.rewards.pixels import Pixels
from reflect_core.verifiers.rewards.verdicts import sigmoid

PROMPT = "a red circle left of a blue star"
LONG = " ".join(["red circle left of blue star"] * 20) + " green square"
PICTURES = [picture(1), picture(2, (90, 40)), picture(3, (33, 71)), picture(4, (200, 200)), picture(5, (17, 19))]
KINDS = {"clip": (write_tiny_clip, CLIPModel), "siglip": (write_tiny_siglip, SiglipModel)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    return {kind: write(root / kind) for kind, (write, _) in KINDS.items()}


def pil_processor(kind, folder):
    names = {"clip": ("CLIPImageProcessorPil", "CLIPImageProcessor"),
             "siglip": ("SiglipImageProcessorPil", "SiglipImageProcessor")}[kind]
    return getattr(transformers, next(n for n in names if hasattr(transformers, n))).from_pretrained(folder)


@pytest.fixture
def plain(folders):
    """kind, text, pictures -> logits (B,) of the whole model as transformers computes them, one picture at a time."""
    def logits(kind, text, pictures):
        model = KINDS[kind][1].from_pretrained(folders[kind]).eval()
        tokenizer, processor = AutoTokenizer.from_pretrained(folders[kind]), pil_processor(kind, folders[kind])
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=model.config.text_config.
                        max_position_embeddings, padding="max_length" if kind == "siglip" else False).input_ids
        with torch.no_grad():
            return [model(input_ids=ids, pixel_values=torch.as_tensor(
                processor(images=one, return_tensors="pt").pixel_values)).logits_per_image.item() for one in pictures]
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (90, 40), (33, 71), (20, 20), (32, 32), (31, 200), (50, 77), (77, 50)])
def test_pixels_are_those_of_transformers(folders, kind, size):
    one = picture(7, size)
    expected = torch.as_tensor(pil_processor(kind, folders[kind])(images=one, return_tensors="pt").pixel_values)
    assert torch.equal(Pixels.from_folder(folders[kind])([one]), expected)


def test_clip_score_is_the_paper_s(folders, plain):
    reward = ClipScore.from_folder(folders["clip"])
    verdicts = reward.judge(PROMPT, PICTURES)
    cosines = [logit / math.exp(4.6052) for logit in plain("clip", f"A photo depicts {PROMPT}", PICTURES)]
    assert [v.details["raw"] for v in verdicts] == pytest.approx(cosines, abs=1e-5)
    assert [v.score for v in verdicts] == [min(2.5 * max(v.details["raw"], 0), 1) for v in verdicts]
    assert [reward.score(raw) for raw in (-0.3, 0.0, 0.1, 0.3, 0.41, 0.9)] == pytest.approx([0, 0, 0.25, 0.75, 1, 1])
    assert not any(v.accepted for v in verdicts) and len({v.details["raw"] for v in verdicts}) == 5
    bare = ClipScore.from_folder(folders["clip"], prefix="")
    assert bare.raw(PROMPT, PICTURES)[0] == pytest.approx(
        [logit / math.exp(4.6052) for logit in plain("clip", PROMPT, PICTURES)], abs=1e-5)


def test_features_of_both_majors_of_transformers():
    tensor = torch.ones(2, 3)
    assert features(tensor) is tensor and features(BaseModelOutputWithPooling(pooler_output=tensor)) is tensor


def test_siglip_gives_its_own_probability(folders, plain, monkeypatch):
    reward, read = ClipScore.from_folder(folders["siglip"]), []
    kind, call = type(reward.encoder.tokenizer), type(reward.encoder.tokenizer).__call__
    monkeypatch.setattr(kind, "__call__", lambda self, text, **how: read.append(text) or call(self, text, **how))
    verdicts = reward.judge(PROMPT.upper(), PICTURES)
    assert set(read) == {PROMPT}  # a tokenizer need not do that itself
    expected = [1 / (1 + math.exp(-logit)) for logit in plain("siglip", PROMPT, PICTURES)]
    assert [v.score for v in verdicts] == pytest.approx(expected, abs=1e-5)


def test_pick_score_is_a_probability_of_being_picked(folders, plain):
    reward = PickScore.from_folder(folders["clip"], reference=30)
    verdicts, logits = reward.judge(PROMPT, PICTURES), plain("clip", PROMPT, PICTURES)
    assert [v.details["raw"] for v in verdicts] == pytest.approx(logits, abs=1e-3)
    a, b = (v.details["raw"] for v in verdicts[:2])
    # Of two pictures the odds are those that the paper's softmax gives.
    odds = [v.score / (1 - v.score) for v in verdicts]
    assert odds[0] / (odds[0] + odds[1]) == pytest.approx(math.exp(a) / (math.exp(a) + math.exp(b)))
    assert reward.score(30) == 0.5 and PickScore.from_folder(folders["clip"]).score(21) == 0.5
    steps = [reward.score(value / 4) for value in range(40, 180)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("name, numbers", HEADS.items())
def test_an_aesthetic_head_reads_the_unit_vector(folders, tmp_path, name, numbers):
    kind = "clip" if name == "layers" else "siglip"
    file = write_head(tmp_path / "head.safetensors", 16 if kind == "clip" else 24, name)
    reward = Aesthetic.from_folder(folders[kind], head=file)
    tensors = load_file(file)
    assert sorted(tensors) == sorted(f"{name}.{n}.{what}" for n in numbers for what in ("weight", "bias"))
    model, processor = KINDS[kind][1].from_pretrained(folders[kind]).eval(), pil_processor(kind, folders[kind])
    for one, verdict in zip(PICTURES, reward.judge(PROMPT, PICTURES)):
        with torch.no_grad():
            pixels = torch.as_tensor(processor(images=one, return_tensors="pt").pixel_values)
            x = model.vision_model(pixels).pooler_output
            x = model.visual_projection(x) if kind == "clip" else x
        x = x / x.norm()
        for n in numbers:
            x = x @ tensors[f"{name}.{n}.weight"].T + tensors[f"{name}.{n}.bias"]
        assert verdict.details["raw"] == pytest.approx(x.item(), abs=1e-5)
    assert [reward.score(raw) for raw in (0, 1, 5.5, 10, 11)] == [0, 0, 0.5, 1, 1]
    assert reward.raw("another prompt", PICTURES) == reward.raw(PROMPT, PICTURES)


def test_a_tokenizer_in_two_files_and_an_old_config(tmp_path, folders, plain, monkeypatch):
    """As published: the text's end is found where it is, long or short."""
    folder = write_tiny_clip(tmp_path / "clip", letters=True)
    reward = PickScore.from_folder(folder)
    monkeypatch.setitem(folders, "clip", folder)
    for text in ("a red circle", "red " * 60):
        assert reward.raw(text, PICTURES)[0] == pytest.approx(plain("clip", text, PICTURES), abs=1e-3)
    tokenizer = reward.encoder.tokenizer
    ids = tokenizer("a red circle").input_ids
    assert (ids[0], ids[-1], len(ids)) == (52, 53, 12) and max(ids) == 53
    (folder / "merges.txt").unlink()
    with pytest.raises(UserError, match="clip"):
        PickScore.from_folder(folder)


def test_published_names(folders, tmp_path):
    """What the small models are saved with is what the published repositories hold."""
    def names(folder):
        with safe_open(str(folder / "model.safetensors"), "pt") as file:
            return set(file.keys())
    block = {f"encoder.layers.0.{part}.{what}" for part in ("layer_norm1", "mlp.fc1", "self_attn.q_proj")
             for what in ("weight", "bias")}
    expected = {f"{side}_model.{name}" for side in ("text", "vision") for name in block} | {"logit_scale"}
    assert expected | {"visual_projection.weight", "text_projection.weight", "vision_model.pre_layrnorm.weight",
                       "text_model.embeddings.token_embedding.weight"} <= names(folders["clip"])
    assert expected | {"logit_bias", "vision_model.head.probe", "text_model.head.weight"} <= names(folders["siglip"])


def count_calls(encoder, monkeypatch):
    calls = {"pictures": [], "texts": 0}
    image, text = encoder.model.get_image_features, encoder.model.get_text_features

    def pictures(pixel_values):
        calls["pictures"].append(len(pixel_values))
        return image(pixel_values=pixel_values)

    def texts(input_ids):
        calls["texts"] += 1
        return text(input_ids=input_ids)
    monkeypatch.setattr(encoder.model, "get_image_features", pictures)
    monkeypatch.setattr(encoder.model, "get_text_features", texts)
    return calls


def test_rewards_share_an_encoder_and_nothing_is_encoded_twice(folders, tmp_path, monkeypatch):
    shared = {}
    head = write_head(tmp_path / "head.safetensors", 16)
    members = {"clip": ClipScore.from_folder(folders["clip"], prefix="", batch=3, shared=shared),
               "pick": PickScore.from_folder(folders["clip"], shared=shared),
               "looks": Aesthetic.from_folder(folders["clip"], head=head, shared=shared),
               "siglip": ClipScore.from_folder(folders["siglip"], shared=shared)}
    assert len(shared) == 2 and len({id(m.encoder) for m in members.values()}) == 2
    calls = count_calls(members["clip"].encoder, monkeypatch)
    ensemble = Ensemble(members)
    first = ensemble.judge(PROMPT, PICTURES)
    assert calls == {"pictures": [3, 2], "texts": 1}
    again = ensemble.judge(PROMPT, [PICTURES[4], PICTURES[0].copy(), picture(9)])
    assert calls == {"pictures": [3, 2, 1], "texts": 1}
    assert [again[0].score, again[1].score] == [first[4].score, first[0].score]
    ensemble.judge("a star", PICTURES)
    assert calls == {"pictures": [3, 2, 1], "texts": 2}
    assert ensemble.judge(PROMPT, []) == []


def test_one_picture_twice_in_a_call_is_encoded_once(folders, monkeypatch):
    reward = ClipScore.from_folder(folders["clip"])
    calls = count_calls(reward.encoder, monkeypatch)
    twice = reward.judge(PROMPT, [PICTURES[0], PICTURES[0]])
    assert calls["pictures"] == [1] and twice[0] == twice[1]


def test_embeddings_outlive_a_full_cache(folders, monkeypatch):
    reward = ClipScore.from_folder(folders["clip"])
    expected = reward.judge(PROMPT, PICTURES)
    small = ClipScore.from_folder(folders["clip"])
    small.encoder._pictures.size = 2
    got = small.judge(PROMPT, PICTURES)
    assert [v.score for v in got] == pytest.approx([v.score for v in expected], abs=1e-5)
    assert len(small.encoder._pictures.values) == 2


@pytest.mark.parametrize("kind, most", [("clip", 77), ("siglip", 16)])
def test_a_long_prompt_is_cut_and_told(folders, plain, kind, most):
    reward = ClipScore.from_folder(folders[kind], prefix="")
    verdict = reward.judge(LONG, PICTURES[:1])[0]
    lost = LONG.split()[most - 2 if kind == "clip" else most - 1 :]  # all but the tokens at its ends
    assert f"takes {most} tokens of " in verdict.details["note"]
    assert verdict.details["note"].endswith(f": {' '.join(lost)[:60]!r}")
    logit = reward.encoder.scale * verdict.details["raw"] + reward.encoder.bias
    assert logit == pytest.approx(plain(kind, LONG, PICTURES[:1])[0], abs=1e-3)
    assert "note" not in reward.judge(PROMPT, PICTURES[:1])[0].details


@pytest.mark.parametrize("kind", KINDS)
def test_bf16_is_near_and_keeps_the_scale(folders, kind):
    """In bf16 a stored scale of 4.6052 would be read as 4.59, and 100 as 98.9."""
    full = Encoder.from_folder(folders[kind])
    half = Encoder.from_folder(folders[kind], torch.bfloat16)
    assert half.model.dtype == torch.bfloat16 and (half.scale, half.bias) == (full.scale, full.bias)
    assert half.pictures(PICTURES).dtype == torch.float32
    assert (half.pictures(PICTURES) - full.pictures(PICTURES)).abs().max() < 0.05
    once = half.pictures(PICTURES)
    half._pictures.values.clear()
    assert torch.equal(half.pictures(PICTURES), once)


def test_acceptance_needs_a_threshold(folders):
    free = ClipScore.from_folder(folders["siglip"]).judge(PROMPT, PICTURES)
    middle = sorted(v.score for v in free)[2]
    verdicts = ClipScore.from_folder(folders["siglip"], threshold=middle).judge(PROMPT, PICTURES)
    assert [v.accepted for v in verdicts] == [v.score >= middle for v in free]
    assert sum(v.accepted for v in verdicts) == 3
    for wrong in (1.5, -0.1, True, float("nan")):
        with pytest.raises(UserError, match="from 0 to 1"):
            ClipScore.from_folder(folders["siglip"], threshold=wrong)


def test_a_manager_places_each_module_once(folders, tmp_path):
    shared = {}
    head = write_head(tmp_path / "head.safetensors", 16)
    ensemble = Ensemble({"clip": ClipScore.from_folder(folders["clip"], shared=shared),
                         "looks": Aesthetic.from_folder(folders["clip"], head=head, shared=shared),
                         "siglip": ClipScore.from_folder(folders["siglip"], shared=shared)})
    assert sorted(ensemble.parts) == ["clip.image_encoder", "siglip.image_encoder"]
    asked = []
    ensemble.places.manager = lambda name, pixels: asked.append((name, pixels)) or "cpu"
    ensemble.judge(PROMPT, PICTURES)
    assert asked == [("clip.image_encoder", 0), ("clip.image_encoder", 5 * SIDE * SIDE),
                     ("siglip.image_encoder", 0), ("siglip.image_encoder", 5 * SIDE * SIDE)]
    ensemble.places.manager = None
    assert shared and all(encoder.places.manager is None for encoder in shared.values())


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def settings(file, **changed):
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changed}))


def add_words(folder, count):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"word{i}" for i in range(count)])
    tokenizer.save(str(folder / "tokenizer.json"))


WEIGHTS = "model.safetensors"
DAMAGE = {
    "another model": (lambda f: settings(f / "config.json", model_type="bert"), "expected 'clip' or 'siglip'"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "a pickle only": (lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
                      "pytorch_model.bin: is a pickle.*weights_only=True.*model.safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:500]), "not a whole safetensors"),
    "no preprocessor": (lambda f: (f / "preprocessor_config.json").unlink(), "preprocessor_config.json: no such file"),
    "another size": (lambda f: settings(f / "preprocessor_config.json", size=64, crop_size=64), "64x64.*takes 32x32"),
    "no crop": (lambda f: settings(f / "preprocessor_config.json", do_center_crop=False), "without a centre crop"),
    "not scaled": (lambda f: settings(f / "preprocessor_config.json", do_rescale=False), "do_rescale false"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.*processor=FOLDER"),
    "too many tokens": (lambda f: add_words(f, 9), r"tokenizer has \d+ tokens, and the model \d+"),
    "a tensor less": (lambda f: edit(f / WEIGHTS, lambda t: t.pop("visual_projection.weight")),
                      "lack visual_projection"),
    "a tensor more": (lambda f: edit(f / WEIGHTS, lambda t: t.update({"vision_model.more": torch.zeros(2)})),
                      "vision_model.more"),
    "no scale": (lambda f: edit(f / WEIGHTS, lambda t: t.pop("logit_scale")), "logit_scale"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_folder_is_said(name, tmp_path):
    damage, said = DAMAGE[name]
    folder = write_tiny_clip(tmp_path / "clip")
    damage(folder)
    with pytest.raises(UserError, match=said) as caught:
        ClipScore.from_folder(folder)
    assert "\n" not in str(caught.value)


def test_other_formats_beside_safetensors_are_not_read(tmp_path):
    """As in openai/clip-vit-large-patch14, which has four."""
    folder = write_tiny_clip(tmp_path / "clip")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(b"not a model")
    ClipScore.from_folder(folder)


def test_numbers_of_places_that_older_files_hold(tmp_path, folders):
    """OpenAI's file has them as tensors; they are counted, not learned."""
    folder = write_tiny_clip(tmp_path / "clip")
    edit(folder / WEIGHTS, lambda t: t.update({f"{side}_model.embeddings.position_ids": torch.arange(number)[None]
                                               for side, number in (("text", 77), ("vision", 17))}))
    expected = ClipScore.from_folder(folders["clip"]).raw(PROMPT, PICTURES)[0]
    assert ClipScore.from_folder(folder).raw(PROMPT, PICTURES)[0] == pytest.approx(expected, abs=1e-6)


def test_shards(tmp_path, folders):
    folder = write_tiny_clip(tmp_path / "clip")
    model = CLIPModel.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    got = PickScore.from_folder(folder)
    whole = PickScore.from_folder(folders["clip"])
    assert got.encoder.scale == whole.encoder.scale
    assert got.raw(PROMPT, PICTURES)[0] == pytest.approx(whole.raw(PROMPT, PICTURES)[0], abs=1e-4)
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name}: no such file"):
        PickScore.from_folder(folder)


def test_a_processor_of_another_folder(tmp_path, folders):
    """PickScore's repository may come without a tokenizer: the one of CLIP-H is the same."""
    folder = write_tiny_clip(tmp_path / "pick")
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / name).unlink()
    got = PickScore.from_folder(folder, processor=folders["clip"])
    expected = PickScore.from_folder(folders["clip"]).raw(PROMPT, PICTURES)[0]
    assert got.raw(PROMPT, PICTURES)[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop("layers.4.bias"), "layer 4 does not follow"),
    (lambda t: t.pop("layers.2.weight"), "layer 2 does not follow"),
    (lambda t: t.update({"layers.2.weight": torch.zeros(128, 99)}), "layer 2 does not follow"),
    (lambda t: (t.pop("layers.7.weight"), t.pop("layers.7.bias")), "ends in 16 numbers"),
    (lambda t: t.update({"norm.weight": torch.zeros(1)}), "has norm.weight"),
])
def test_a_head_must_be_whole(tmp_path, change, said):
    file = write_head(tmp_path / "head.safetensors", 16)
    edit(file, change)
    with pytest.raises(UserError, match=said):
        read_head(file)


def test_a_head_goes_with_its_encoder(tmp_path, folders):
    with pytest.raises(UserError, match="embeddings of 768 numbers, and the encoder .* makes 16"):
        Aesthetic.from_folder(folders["clip"], head=write_head(tmp_path / "head.safetensors", 768))
    with pytest.raises(UserError, match="no such file"):
        Aesthetic.from_folder(folders["clip"], head=tmp_path / "none.safetensors")
    pickle = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    pickle.write_bytes(b"x")
    with pytest.raises(UserError, match=r"is a pickle.*torch.load\('.*MSE.pth'.*linearMSE.safetensors"):
        Aesthetic.from_folder(folders["clip"], head=pickle)


def test_the_recipe_makes_what_is_read(tmp_path):
    """The command in the error, run as it is written."""
    import subprocess
    head = tmp_path / "head.safetensors"
    tensors = load_file(write_head(head, 16))
    pickle = tmp_path / "sac+logos.pth"
    torch.save(tensors, pickle)
    with pytest.raises(UserError) as caught:
        read_head(pickle)
    subprocess.run(str(caught.value).split("trust the file: ")[1], shell=True, check=True)
    made = load_file(tmp_path / "sac+logos.safetensors")
    assert made.keys() == tensors.keys() and all(torch.equal(made[k], tensors[k]) for k in made)


def test_a_model_that_gives_no_number(folders):
    reward = ClipScore.from_folder(folders["clip"])
    reward.encoder.model.visual_projection.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="gave nan .* try dtype float32"):
        reward.judge(PROMPT, PICTURES)


def test_pick_score_is_of_clip(folders):
    with pytest.raises(UserError, match="expected CLIP's"):
        PickScore.from_folder(folders["siglip"])


def test_sigmoid_of_anything():
    assert [sigmoid(v) for v in (-1e6, 0.0, 1e6)] == [pytest.approx(0, abs=1e-300), 0.5, 1.0]
    assert sigmoid(-3.0) == pytest.approx(1 - sigmoid(3.0))
