"""The server that the judges' README gives for NVILA: its code as it stands there, over a stand-in for the model."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from reflect_core.judges import find_judge
from reflect_core.types import UserError

README = Path(__file__).resolve().parents[1] / "reflect_core" / "judges" / "README.md"
STAND_IN = '''
import torch

class Tokenizer:
    def encode(self, word, add_special_tokens):
        return [{"yes": 3, "no": 7}[word]]

class Model:
    tokenizer = Tokenizer()
    def generate_content(self, parts):
        picture, text = parts
        assert "a red ball" in text or "red?" in text, text
        red = picture.resize((1, 1)).getpixel((0, 0))[0] / 255
        scores = torch.full((1, 10), -9.0)
        scores[0, 3], scores[0, 7] = 4 * red, 4 * (1 - red)
        return ("yes" if red > 0.5 else "no"), [scores]

class AutoModel:
    @staticmethod
    def from_pretrained(name, trust_remote_code, device_map):
        assert trust_remote_code and name == "some/model"
        return Model()
'''


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvila")
    code = re.search(r"<!-- nvila_server.py -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[1]
    (folder / "nvila_server.py").write_text(code)
    (folder / "transformers.py").write_text(STAND_IN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "nvila_server.py", "some/model", str(port)], cwd=folder,
                              env={**os.environ, "PYTHONPATH": str(folder)}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), 0.2).close()
                break
            except OSError:
                assert server.poll() is None, "the recipe does not run"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def test_the_recipe_answers_as_a_judge(address):
    judge = find_judge(address, {"ask": "match"})
    assert "the judge is nvila-verifier: scores from the first token's probabilities" in judge.prepare("a red ball")[0]
    pictures = [Image.new("RGB", (32, 32), (red, 0, 0)) for red in (0, 100, 255)]
    scores = [v.score for v in judge.actors().verifier.judge("a red ball", pictures)]
    assert scores == sorted(scores) and scores[0] < 0.1 and scores[2] > 0.9


def test_it_cannot_take_prompts_apart_and_that_is_said(address):
    with pytest.raises(UserError, match="ask=match|does not answer"):
        find_judge(address, {"ask": "checks", "attempts": 1, "timeout": 5}).prepare("a red ball")
