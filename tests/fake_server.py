"""A judge's server on loopback that speaks the OpenAI-compatible protocol, sees the pictures' colour, and can fail.

What it answers depends on the picture that is in the request, so that an answer that was attached to another
picture is seen: asked yes or no it is as sure of 'yes' as the picture's mean red is of 255.
"""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from reflect_core.vlm.server import Server, ServerOptions

FAULTS = ("timeout", "429", "500", "cut", "html", "wrong shape", "empty", "huge")
CHECKS = [{"about": "object", "question": "Is there a ball?"}, {"about": "colour", "question": "Is the ball red?"}]


class FakeServer:
    """`fault(number)`: which of `FAULTS` the request of that number meets, or None. `logprobs`: it says how sure it
    is. `schema`: it keeps to schemas; else it answers in prose at first. `words(document, red)`: its text.
    `hook(document)`: what else it answers, as (status, JSON) or (status, JSON, headers), or None."""

    def __init__(self, latency=0.0, fault: Callable[[int], str | None] = lambda number: None, logprobs=True,
                 schema=True, models=("fake-vl",), words=None, key=None, refuses=(), sees=True, hang=30.0,
                 most_logprobs=20, hook=None):
        self.latency, self.fault, self.logprobs, self.schema = latency, fault, logprobs, schema
        self.models, self.words, self.key, self.refuses, self.sees = list(models), words, key, tuple(refuses), sees
        self.hang, self.most_logprobs, self.hook = hang, most_logprobs, hook
        self.stray = 404, {"detail": "Not Found"}
        """Its answer outside of /v1."""
        self.lock = threading.Lock()
        self.number = self.now = self.most = 0
        self.documents: list[dict] = []
        self.met: list[str] = []
        self.headers: list[dict] = []
        self.stopped = threading.Event()
        self.status: tuple[int, str] | None = None

    @contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield self
        finally:
            self.stopped.set()
            server.shutdown()
            server.server_close()
            thread.join()

    @property
    def asked(self) -> list[dict]:
        """Documents of questions about pictures, without those of a probe."""
        return [d for d in self.documents if "mostly" not in json.dumps(d)]

    def answer(self, document) -> dict:
        red, text = mean_red(document), last_text(document)
        p = red / 255 if red is not None and self.sees else 0.5
        words = self.words(document, red) if self.words else None
        if words is None:
            words = self._words(document, text, p)
        message = {"role": "assistant", "content": words}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        if document.get("logprobs") and self.logprobs:
            p = min(max(p, 1e-6), 1 - 1e-6)
            top = [("Yes", 0.6 * p), (" yes", 0.35 * p), ("No", 0.9 * (1 - p)), ("no", 0.05 * (1 - p)), ("I", 0.05)]
            choice["logprobs"] = {"content": [{"token": words, "top_logprobs": [
                {"token": t, "logprob": math.log(max(q, 1e-9))} for t, q in top]}]}
        return {"choices": [choice], "model": document["model"],
                "usage": {"prompt_tokens": 100, "completion_tokens": len(words.split())}}

    def _words(self, document, text, p) -> str:
        schema = (document.get("response_format") or {}).get("json_schema", {}).get("schema", {}).get("properties", {})
        if not self.schema and "JSON" in str(document) and "not as it should be" not in text:
            return "Gladly! Here is what I think of it, in prose."
        if "questions that somebody" in str(document):
            return json.dumps({"questions": CHECKS})
        if "colour" in schema:
            return json.dumps({"colour": "red", "whole": True})
        if schema:
            mark = {"explanation": f"it is {p:.2f} red", "score": round(10 * p)}
            return json.dumps({name: mark for name in schema})
        if "yes or no" in str(document):
            return "Yes" if p >= 0.5 else "No"
        return f"Add red to the picture of {round(255 * p)}"

    def _handler(fake):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                if not self.path.startswith("/v1/"):
                    return self._send(*fake.stray)
                fake.headers.append(dict(self.headers))
                if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                    return self._send(401, {"error": {"message": f"Wrong key: {self.headers.get('Authorization')}"}})
                self._send(200, {"object": "list", "data": [{"id": name} for name in fake.models]})

            def do_POST(self):
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with fake.lock:
                    number, fake.number = fake.number, fake.number + 1
                    fake.now += 1
                    fake.most = max(fake.most, fake.now)
                    fake.documents.append(document)
                    fake.headers.append(dict(self.headers))
                try:
                    time.sleep(fake.latency)
                    self._answer(document, fake.fault(number))
                finally:
                    with fake.lock:
                        fake.now -= 1

            def _answer(self, document, fault):
                if not self.path.startswith("/v1/"):
                    return self._send(*fake.stray)
                if fault:
                    fake.met.append(fault)
                if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                    return self._send(401, {"error": {"message": f"Wrong key: {self.headers.get('Authorization')}"}})
                if document["model"] not in fake.models:
                    return self._send(404, {"error": {"message": f"The model `{document['model']}` does not exist"}})
                if fake.hook and (said := fake.hook(document)):
                    return self._send(*said)
                if fake.status:
                    return self._send(fake.status[0], {"error": {"message": fake.status[1]}})
                if document.get("top_logprobs", 0) > fake.most_logprobs:
                    most = f"Requested sample logprobs of 20, max allowed: {fake.most_logprobs}"
                    return self._send(400, {"error": {"message": most}})
                for name in fake.refuses:
                    if name in document:
                        return self._send(400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
                if fault == "timeout":
                    fake.stopped.wait(fake.hang)
                    return self.close_connection is True
                if fault == "429":
                    return self._send(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.01"})
                if fault == "500":
                    return self._send(500, {"error": "oops"})
                if fault == "cut":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.wfile.flush()
                    self.close_connection = True
                    return self.connection.shutdown(2)
                if fault == "html":
                    return self._raw(b"<html><body>Bad gateway</body></html>", "text/html")
                if fault == "wrong shape":
                    return self._send(200, {"choices": [{"message": {"content": None}}]})
                if fault == "empty":
                    return self._raw(b"")
                if fault == "huge":
                    return self._send(200, {"choices": [{"message": {"content": "a" * 10_000_000}}]})
                self._send(200, fake.answer(document))

            def _send(self, status, data, headers=()):
                self._raw(json.dumps(data).encode(), "application/json", status, headers)

            def _raw(self, body, kind="application/json", status=200, headers=()):
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(body)))
                    for name, value in dict(headers).items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body)
                except OSError:
                    self.close_connection = True

        return Handler


def mean_red(document) -> float | None:
    """Of the picture in a request; None if there is none."""
    for message in document["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                picture = Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1), Image.Resampling.BOX)
                return picture.getpixel((0, 0))[0]
    return None


def last_text(document) -> str:
    content = document["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def reds(count, side=64):
    """Pictures that are told apart by how red they are."""
    return [Image.new("RGB", (side, side), (4 * k if count <= 64 else k, 40, 90)) for k in range(count)]


def says(status, message, **beside):
    """A server's error as OpenAI's looks, for a hook."""
    return status, {"error": {"message": message, **beside}}


def replies(content, reason="stop", **beside):
    """A reply, for a hook."""
    return 200, {"choices": [{"message": {"role": "assistant", "content": content, **beside}, "finish_reason": reason}],
                 "usage": {"prompt_tokens": 100, "completion_tokens": 1}}


def red_of(verdict) -> int:
    return round(verdict.score * 255 / 4)


def server_at(url, **options) -> Server:
    """A client of a fake server that is not long in trying again."""
    return Server(ServerOptions(url, **{"model": "fake-vl", "pause": 0.01, "picture_format": "png", **options}))
