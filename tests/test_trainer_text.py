"""Text encoders that are trained on sentences alone, so that a word's state says what stands around it."""

import json

import pytest
import torch
from tiny_training import inside, write_config

from reflect_core.shapes.prompt import parse
from trainer.config import load_config
from trainer.shapes import sentences
from trainer.tasks.common import token_ids
from trainer.tasks.text import AROUND, TextTask, around, load_text, pooled
from trainer.triplets import MARKER


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The result of a run that is long enough for a few hundred sentences, and its log."""
    from trainer.train import main

    folder = tmp_path_factory.mktemp("text")
    file = write_config(folder, "text", steps=300, batch=16, lr=4e-3, warmup=20, ema=0.95, sample_every=300,
                        model={"text_length": 48, "width": 64, "layers": 2}, data={"sentences": 2000})
    assert main(["--config", str(file)]) == 0
    return folder / "text"


def states(parts, text):
    with torch.no_grad():
        return parts["text_encoder_2"](token_ids(parts["tokenizer_2"], [text], 48)).last_hidden_state[0]


def change(parts, one, other, word):
    """How much the state of a word differs between two sentences, of its size."""
    a, b = states(parts, one)[word], states(parts, other)[word]
    return float((a - b).norm() / a.norm())


def test_words_know_what_stands_around_them(trained):
    parts = load_text(trained / "result")
    assert change(parts, "a red circle and a blue star", "a blue circle and a red star", 2) > 0.25  # circle
    assert change(parts, "a circle left of a square", "a circle right of a square", 1) > 0.25
    assert change(parts, "a circle left of a square", "a circle right of a square", 5) > 0.1  # square
    figures = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    first, last = [line for line in figures if "around" in line]
    assert first["around"] < 0.2 and last["around"] > 0.8 and last["sentence"] > first["sentence"] + 0.2


def test_places_around_a_word():
    ids = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0]])
    found = around(ids)
    assert found.shape == (2, 4, len(AROUND)) and AROUND[5:7] == (-1, 1)
    assert found[0, :, 5].tolist() == [0, 5, 6, 7] and found[0, :, 6].tolist() == [6, 7, 0, 0]
    assert found[1, 0].tolist() == [0] * len(AROUND) and found[0, 3, AROUND.index(-3)] == 5


def test_clip_pools_the_same_without_the_padding(trained):
    parts = load_text(trained / "result")
    ids = token_ids(parts["tokenizer"], ["a red circle", "two stars above a blue square"], 77)
    with torch.no_grad():
        torch.testing.assert_close(pooled(parts["text_encoder"], ids), parts["text_encoder"](ids).pooler_output)


def test_sentences_are_prompts_with_and_without_a_reflection():
    prompts, told = sentences(200, 3)
    assert (prompts, told) == sentences(200, 3) and prompts != sentences(200, 4)[0]
    for prompt, text in zip(prompts, told):
        assert parse(prompt) and text.startswith(prompt)
    assert sum(MARKER in text for text in told) > 150


def test_every_other_text_of_t5_has_a_reflection_and_none_of_clip(tmp_path):
    task = TextTask(load_config(write_config(tmp_path, "text", model={"text_length": 48, "width": 32, "layers": 1})))
    clip, t5 = task.ids
    marker = [words.get_vocab()[MARKER.lower()] for words in (task.parts["tokenizer"], task.parts["tokenizer_2"])]
    assert not (clip == marker[0]).any() and not (t5[::2] == marker[1]).any()
    assert (t5[1::2] == marker[1]).any(1).float().mean() > 0.7


@pytest.mark.parametrize("harm, said", [
    (lambda text: (text / "text_encoder" / "config.json").unlink(), "expected a folder with text encoders"),
    (lambda text: (text / "tokenizer_2" / "tokenizer.json").unlink(), "expected the result folder of a text run"),
    (lambda text: (text / "text_encoder_2" / "model.safetensors").write_bytes(b"\x80\x04"), "model.safetensors"),
    (lambda text: forget(text / "tokenizer_2" / "tokenizer.json", "circle"), "does not know circle; expected every"),
])
def test_what_is_no_result_of_a_text_run(harm, said, tmp_path, capsys):
    for task in ("vae", "text"):
        assert inside(capsys, "--config", write_config(tmp_path, task)).code == 0
    harm(tmp_path / "text" / "result")
    result = inside(capsys, "--config", write_config(tmp_path, "base"))
    assert result.code == 2 and said in result.error and not list((tmp_path / "base").glob("bank-*"))


def forget(file, word):
    known = json.loads(file.read_text())
    known["model"]["vocab"]["dragon"] = known["model"]["vocab"].pop(word)
    file.write_text(json.dumps(known))


def test_a_width_that_cannot_be(tmp_path, capsys):
    file = write_config(tmp_path, "text", model={"text_length": 48, "width": 36})
    assert "model.width is 36; expected a multiple of 8" in inside(capsys, "--config", file).error
