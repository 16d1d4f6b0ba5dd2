"""ReflectionFlow's Image-Verifier on a small random Qwen2.5-VL: both layouts, against a plain computation."""

import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_rewards import picture
from tiny_verifier import CHAT, SECTIONS, TOKEN, merged, trained_tensors, write_checkpoint, write_tiny_qwen
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from reflect_core.types import UserError
from reflect_core.verifiers.rewards.chat import Patches
from reflect_core.verifiers.rewards.image_verifier import TEMPLATE, ImageVerifier
from reflect_core.verifiers.rewards.verifier_folder import find_checkpoint

PROMPT = "a red circle"
PICTURES = [picture(1, (140, 90)), picture(2, (64, 64)), picture(3, (140, 90))]
LAYOUTS = {"full": ("full", {}), "full, new names": ("full", {"old": False}), "full under peft": ("full", {"peft":
           True}), "adapter": ("adapter", {}), "adapter, new names": ("adapter", {"old": False})}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, base):
    return write_checkpoint(tmp_path_factory.mktemp("verifier"), base, "adapter")


def load(folder, base, **options):
    return ImageVerifier.from_folder(folder, torch.float32, base=base, **options)


def pil_processor(base):
    names = ("Qwen2VLImageProcessorPil", "Qwen2VLImageProcessor")
    return getattr(transformers, next(n for n in names if hasattr(transformers, n))).from_pretrained(base)


def plainly(base, prompt, pictures, most=112 * 112):
    """What the official code computes, written down once more: the whole model, one picture at a time."""
    weights, lora, trained = trained_tensors(base, 3)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base).eval()
    model.resize_token_embeddings(len(trained["model.language_model.embed_tokens.weight"]))
    all_weights = {**merged(weights, lora), **trained}
    head = all_weights.pop("rm_head.weight")
    model.load_state_dict(all_weights, strict=False)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([TOKEN], special_tokens=True)
    text = ("<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>" + TEMPLATE.replace("{prompt}", prompt) +
            "<|im_end|>\n<|im_start|>assistant\n")
    out = []
    for one in pictures:
        size = Patches(most).size(one)
        seen = pil_processor(base)(images=one.resize(size[::-1], 3), return_tensors="pt")
        count = int(seen["image_grid_thw"].prod()) // 4
        ids = torch.tensor([tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * count),
                                      add_special_tokens=False).input_ids])
        types = {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
        with torch.no_grad():
            states = model(input_ids=ids, pixel_values=torch.as_tensor(seen["pixel_values"]),
                           image_grid_thw=torch.as_tensor(seen["image_grid_thw"]), output_hidden_states=True,
                           **(types if transformers.__version__ >= "5" else {})).hidden_states[-1]
        at = ids[0].tolist().index(tokenizer.convert_tokens_to_ids(TOKEN))
        out.append(float(states[0, at] @ head[0]))
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_layouts_are_what_was_trained(name, tmp_path, base):
    layout, how = LAYOUTS[name]
    verifier = load(write_checkpoint(tmp_path / "v", base, layout, **how), base)
    assert verifier.raw(PROMPT, PICTURES) == pytest.approx(plainly(base, PROMPT, PICTURES), abs=2e-5)
    assert layout in verifier.about and "step 7" in verifier.about


def test_the_score_is_a_sigmoid_of_the_normalised_reward(checkpoint, base):
    verifier = load(checkpoint, base)
    verdicts = verifier.judge(PROMPT, PICTURES)
    for verdict, raw in zip(verdicts, verifier.raw(PROMPT, PICTURES)):
        z = (raw - 0.3) / 0.5
        assert verdict.details["raw"] == pytest.approx(raw, abs=1e-6)
        assert verdict.details["normalised"] == pytest.approx(z, abs=1e-6)
        assert verdict.score == pytest.approx(1 / (1 + math.exp(-z))) and not verdict.accepted
        assert "our own words" in verdict.details["about"]
    assert len({v.score for v in verdicts}) == 3
    middle = sorted(v.score for v in verdicts)[1]
    strict = load(checkpoint, base, threshold=middle - 1e-6)
    assert sum(v.accepted for v in strict.judge(PROMPT, PICTURES)) == 2
    json.dumps([v.details for v in verdicts])


def test_without_normalisation_the_raw_reward_counts(tmp_path, base):
    sections = {k: v for k, v in SECTIONS.items() if k != "inference_config"}
    folder = write_checkpoint(tmp_path / "v", base, "adapter", sections=sections)
    verdict = load(folder, base).judge(PROMPT, PICTURES)[0]
    assert verdict.details["normalised"] == verdict.details["raw"]


def test_words_matter_and_cannot_end_the_turn(checkpoint, base):
    verifier = load(checkpoint, base)
    first, other = (verifier.raw(words, PICTURES[:1])[0] for words in (PROMPT, "a blue circle"))
    assert abs(first - other) > 1e-4
    for evil in ("<|im_end|>", "<|image_pad|>", TOKEN):
        assert math.isfinite(verifier.raw(f"red {evil} circle", PICTURES[:1])[0])


def test_pictures_of_one_size_are_judged_together(checkpoint, base):
    verifier = load(checkpoint, base, batch=2)
    calls = []
    verifier.model.register_forward_hook(lambda module, given, kept, made: calls.append(kept["input_ids"].shape[0]),
                                         with_kwargs=True)
    together = verifier.raw(PROMPT, PICTURES * 2)
    assert calls == [2, 2, 2]
    assert together == pytest.approx([verifier.raw(PROMPT, [one])[0] for one in PICTURES] * 2, abs=1e-5)


@pytest.mark.parametrize("size", [(140, 90), (20, 300), (28, 28), (333, 500), (14, 14)])
def test_patches_are_those_of_transformers(base, size):
    one, patches = picture(4, size), Patches.from_folder(base, 112 * 112)
    made, grid = patches(one)
    height, width = patches.size(one)
    expected = pil_processor(base)(images=one.resize((width, height), 3), return_tensors="pt")
    assert torch.equal(made, torch.as_tensor(expected["pixel_values"]))
    assert list(grid) == torch.as_tensor(expected["image_grid_thw"])[0].tolist()
    assert height % 28 == width % 28 == 0 and height * width <= 112 * 112 + 28 * 28 * 4


def test_a_template_is_an_option_and_may_lie_beside_the_checkpoint(tmp_path, base):
    folder = write_checkpoint(tmp_path / "v", base, "adapter")
    ours = load(folder, base).raw(PROMPT, PICTURES[:1])
    (folder / "prompt_template.txt").write_text("rate {text_prompt}\n")
    beside = load(folder, base)
    assert beside.template == f"rate {{text_prompt}} {TOKEN}" and "prompt_template.txt" in beside.about
    assert beside.words("a {prompt} {text_prompt}") == f"rate a {{prompt}} {{text_prompt}} {TOKEN}"
    given = load(folder, base, template="rate {prompt}")
    same = given.raw(PROMPT, PICTURES[:1])
    assert "given" in given.about and same == pytest.approx(beside.raw(PROMPT, PICTURES[:1]), abs=1e-5)
    assert same != pytest.approx(ours, abs=1e-3)
    with pytest.raises(UserError, match="expected one, where the prompt goes"):
        load(folder, base, template="rate it")


def test_the_step_that_is_taken_is_said(tmp_path, base):
    folder = write_checkpoint(tmp_path / "v", base, "adapter", step=7)
    write_checkpoint(folder, base, "adapter", step=20, seed=5)
    highest, asked = find_checkpoint(folder), find_checkpoint(folder, 7)
    assert (highest.step, asked.step) == (20, 7)
    assert highest.about == "adapter, step 20 (there are also 7)" and asked.folder.name == "checkpoint-7"
    assert find_checkpoint(folder / "checkpoint-7").step is None  # the folder itself, the config beside it
    with pytest.raises(UserError, match="has no checkpoint-9; expected one of the steps 7, 20"):
        find_checkpoint(folder, 9)


def edit(file, change):
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def sections_without(folder, **changed):
    (folder / "model_config.json").write_text(json.dumps({**SECTIONS, **changed}))


ADAPTER, REST = "adapter_model.safetensors", "non_lora_state_dict.safetensors"
UNDER = "base_model.model."
LATE = {"reward_token": "last", "use_special_tokens": False}
DAMAGE = {
    "no model_config": (lambda f, c: (f / "model_config.json").unlink(), "model_config.json: no such file"),
    "three outputs": (lambda f, c: sections_without(f, model_config={"output_dim": 3}), "output_dim is 3"),
    "read at the end": (lambda f, c: sections_without(f, model_config=LATE), "read at 'last'"),
    "no deviation": (lambda f, c: sections_without(f, inference_config={"VQ_mean": 1, "VQ_std": 0}), "above 0"),
    "a pickle of the rest": (lambda f, c: (c / REST).rename(c / "non_lora_state_dict.pth"),
                             "non_lora_state_dict.pth: is a pickle.*weights_only=True"),
    "no rest": (lambda f, c: (c / REST).unlink(), "non_lora_state_dict.safetensors: no such"),
    "a pickle of all": (lambda f, c: (c / ADAPTER).rename(c / "model.pth"),
                        "model.pth: is a pickle.*model.safetensors"),
    "cut short": (lambda f, c: (c / ADAPTER).write_bytes(b"123"), "not a whole safetensors"),
    "no head": (lambda f, c: edit(c / REST, lambda t: t.pop(f"{UNDER}rm_head.weight")), "lack rm_head.weight"),
    "no embedding": (lambda f, c: edit(c / REST, lambda t: t.pop(f"{UNDER}model.embed_tokens.weight")),
                     "reward token's row"),
    "half a LoRA": (lambda f, c: edit(c / ADAPTER, lambda t: t.pop(sorted(t)[0])), "no A and B"),
    "another head": (lambda f, c: edit(c / REST, lambda t: t.update({f"{UNDER}rm_head.weight": torch.zeros(1, 8)})),
                     r"expected \(1, 32\)"),
    "a strange tensor": (lambda f, c: edit(c / REST, lambda t: t.update({f"{UNDER}model.what": torch.zeros(1)})),
                         "model.language_model.what .* base has no such tensor"),
    "a strange LoRA": (lambda f, c: edit(c / ADAPTER, lambda t: t.update({
        f"{UNDER}model.layers.9.mlp.lora_{which}.weight": torch.zeros(4, 4) for which in "AB"})),
        "LoRA for model.language_model.layers.9.mlp, and the base has no such weight"),
    "DoRA": (lambda f, c: (c / "adapter_config.json").write_text(json.dumps({"use_dora": True, "lora_alpha": 8})),
             "DoRA"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_with_a_checkpoint_is_said(name, tmp_path, base):
    damage, said = DAMAGE[name]
    folder = write_checkpoint(tmp_path / "v", base, "adapter")
    damage(folder, folder / "checkpoint-7")
    with pytest.raises(UserError, match=said) as caught:
        load(folder, base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change, said", [
    (lambda t: t.pop("model.layers.0.mlp.up_proj.weight"), "up_proj.weight is missing"),
    (lambda t: t.update({"model.layers.0.more.weight": torch.zeros(2)}), "more.weight is missing, too many"),
    (lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4)}), "does not fit|another shape"),
])
def test_a_full_checkpoint_must_be_whole(change, said, tmp_path, base):
    folder = write_checkpoint(tmp_path / "v", base, "full")
    edit(folder / "checkpoint-7" / "model.safetensors", change)
    with pytest.raises(UserError, match=said):
        load(folder, base)


def test_a_base_is_needed_and_named(checkpoint):
    with pytest.raises(UserError, match="Qwen/Qwen2.5-VL-7B-Instruct; try base=FOLDER"):
        ImageVerifier.from_folder(checkpoint)


def test_settings_of_the_adapter(tmp_path, base, checkpoint):
    """peft's own file counts before model_config.json; alpha 8 of rank 4 is a scale of 2, rsLoRA of 4."""
    folder = write_checkpoint(tmp_path / "v", base, "adapter",
                              sections={**SECTIONS, "peft_lora_config": {"lora_alpha": 1}})
    place = folder / "checkpoint-7"
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, "bias": "none"}))
    here = load(folder, base).raw(PROMPT, PICTURES[:1])
    assert here == pytest.approx(load(checkpoint, base).raw(PROMPT, PICTURES[:1]), abs=1e-5)
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4, "use_rslora": True}))
    assert load(folder, base).raw(PROMPT, PICTURES[:1]) == pytest.approx(here, abs=1e-5)
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4}))
    assert load(folder, base).raw(PROMPT, PICTURES[:1]) != pytest.approx(here, abs=1e-4)
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 4,
                                                           "alpha_pattern": {"q_proj": 8, "o_proj": 8}}))
    assert load(folder, base).raw(PROMPT, PICTURES[:1]) == pytest.approx(here, abs=1e-5)


def test_what_peft_saves_is_what_peft_computes(tmp_path, base):
    """LoRA on linear layers and on the embedding, saved by peft itself."""
    peft = pytest.importorskip("peft")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(base)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, target_modules=[
        "q_proj", "down_proj", "embed_tokens"]))
    folder = write_checkpoint(tmp_path / "v", base, "adapter")
    place = folder / "checkpoint-7"
    torch.manual_seed(0)
    model.save_pretrained(place, save_embedding_layers=False)
    head = torch.randn(1, 32)
    save_file({"base_model.model.rm_head.weight": head}, place / "non_lora_state_dict.safetensors")
    verifier = load(folder, base)
    with torch.no_grad():
        ids = torch.tensor([[3, 9, 12, 20, verifier.token]])
        expected = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, -1] @ head[0]
        got = verifier.head(verifier.model(input_ids=ids).last_hidden_state[0, -1])
    assert float(got) == pytest.approx(float(expected), abs=2e-5)


def test_chat_template_of_the_processor(tmp_path, base, checkpoint):
    """Some repositories keep it in chat_template.json only."""
    import shutil
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template")
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="chat_template.json: no such file"):
        load(checkpoint, copy)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": CHAT}))
    got, expected = (load(checkpoint, where).raw(PROMPT, PICTURES[:1]) for where in (copy, base))
    assert got == pytest.approx(expected, abs=1e-5)


def test_bf16_and_places(checkpoint, base):
    plain, half = load(checkpoint, base), ImageVerifier.from_folder(checkpoint, base=base)
    assert half.model.dtype == torch.bfloat16 and half.head.weight.dtype == torch.float32
    a, b = plain.raw(PROMPT, PICTURES), half.raw(PROMPT, PICTURES)
    assert b == half.raw(PROMPT, PICTURES) and max(abs(x - y) for x, y in zip(a, b)) < 0.5
    asked = []
    half.places.manager = lambda name, pixels: asked.append((name, pixels)) or "cpu"
    half.raw(PROMPT, PICTURES)
    assert [name for name, _ in asked] == ["verifier"] * 2 and all(pixels > 0 for _, pixels in asked)
    assert list(half.parts) == ["verifier"]
