"""The real ComfyUI, for the benchmark and the tests: found, started with folders of its own, asked over HTTP.

A checkout is looked for in COMFYUI_PATH, then two folders above a pack that lies in `custom_nodes/`, then
where comfy-cli puts it. Its own Python is used if a virtual environment lies in it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SKIP = "no ComfyUI here: set COMFYUI_PATH to a checkout of Comfy-Org/ComfyUI, or put one at ~/comfy/ComfyUI"
NEEDED = ("main.py", "nodes.py", "comfy_execution")


def find_comfyui() -> Path | None:
    """The first place that holds a ComfyUI."""
    named = os.environ.get("COMFYUI_PATH")
    places = [Path(named)] if named else []
    if ROOT.parent.name == "custom_nodes":
        places.append(ROOT.parents[1])
    places += [Path.home() / "comfy" / "ComfyUI", Path.home() / "Documents" / "comfy" / "ComfyUI"]
    return next((p for p in places if all((p / name).exists() for name in NEEDED)), None)


def python_of(comfyui: Path) -> str:
    for name in (".venv", "venv"):
        for python in (comfyui / name / "bin" / "python", comfyui / name / "Scripts" / "python.exe"):
            if python.exists():
                return str(python)
    return sys.executable


LAUNCH = """
import os, runpy, sys
# A torchvision that was built for another torch lacks these; declaring them is enough to import it.
import torch
library = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                 "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):
    try:
        library.define(operator)
    except RuntimeError:
        pass
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass
class Ran:
    """What came of a prompt."""

    outputs: dict[str, Any]
    """By node, as ComfyUI keeps it."""
    executed: list[str]
    """Ids of the nodes that ran, copies with their own, in order."""
    error: dict[str, Any] | None
    interrupted: bool
    bytes: int
    """Of websocket messages."""
    seconds: float
    texts: list[str] = field(default_factory=list)
    """Progress texts, as they came."""

    def text(self, node: str) -> str:
        return self.outputs[node]["text"][0]


class Engine:
    """A running ComfyUI. Use it in a `with`."""

    def __init__(self, comfyui: Path, base: Path, *arguments: str, pack: Path = ROOT,
                 extra: dict[str, str] | None = None) -> None:
        self.base, self.port = base, _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (base / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes" / "reflect").symlink_to(pack, target_is_directory=True)
        for name, code in (extra or {}).items():
            (base / "custom_nodes" / name).write_text(code, encoding="utf-8")
        launch = base / "launch.py"
        launch.write_text(LAUNCH, encoding="utf-8")
        self.log = base / "log.txt"
        command = [python_of(comfyui), str(launch), str(comfyui / "main.py"), "--cpu", "--listen", "127.0.0.1",
                   "--port", str(self.port), "--base-directory", str(base), "--database-url",
                   f"sqlite:///{base}/user/comfyui.db", "--disable-auto-launch", "--preview-method", "auto",
                   "--disable-api-nodes", *arguments]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=base)

    def __enter__(self) -> Engine:
        for _ in range(600):
            try:
                self.get("/system_stats")
                return self
            except (urllib.error.URLError, ConnectionError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.2)
        self.close()
        raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, data: Any) -> Any:
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def run(self, prompt: dict[str, Any], interrupt=None, seconds: float = 300) -> Ran:
        """Queue a prompt and wait for its end. `interrupt(message)` is asked after each message whether to cancel.

        AssertionError with ComfyUI's answer if the prompt is not taken.
        """
        import websocket

        client = uuid.uuid4().hex
        socket_ = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client}", timeout=seconds)
        began = time.monotonic()
        queued = self.post("/prompt", {"prompt": prompt, "client_id": client,
                                       "extra_data": {"extra_pnginfo": {"workflow": {"nodes": []}}}})
        assert "prompt_id" in queued, queued
        id, ran = queued["prompt_id"], Ran({}, [], None, False, 0, 0.0)
        asked = False
        while True:
            message = socket_.recv()
            ran.bytes += len(message)
            if isinstance(message, bytes):
                if message[:4] == b"\x00\x00\x00\x03":
                    length = int.from_bytes(message[4:8], "big")
                    ran.texts.append(message[8 + length:].decode())
                continue
            message = json.loads(message)
            kind, data = message["type"], message.get("data", {})
            if kind == "executing" and data.get("prompt_id") == id:
                if data["node"] is None:
                    break
                ran.executed.append(data["node"])
            elif kind == "execution_error" and data.get("prompt_id") == id:
                ran.error = data
            elif kind == "execution_interrupted" and data.get("prompt_id") == id:
                ran.interrupted = True
            if interrupt is not None and not asked and interrupt(message):
                asked = True
                self.post("/interrupt", {"prompt_id": id})
        ran.seconds = time.monotonic() - began
        socket_.close()
        for _ in range(50):
            history = self.get(f"/history/{id}")
            if id in history:
                ran.outputs = history[id]["outputs"]
                break
            time.sleep(0.1)
        return ran

    def picture(self, shown: dict[str, str]):
        """A picture that a node showed or saved."""
        import io

        from PIL import Image

        where = f"/view?filename={shown['filename']}&subfolder={shown['subfolder']}&type={shown['type']}"
        picture = Image.open(io.BytesIO(self.fetch(where)))
        picture.load()
        return picture


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
