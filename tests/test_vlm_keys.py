"""Keys of servers, which go to theirs and nowhere else, and the addresses of servers."""

from __future__ import annotations

import pytest
from fake_server import FakeServer, reds, server_at

from reflect_core.judges import find_judge
from reflect_core.types import UserError
from reflect_core.vlm.keys import check_url, find_key, key_variable
from reflect_core.vlm.transport import is_near


def test_the_key_goes_to_its_server_and_nowhere_else(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("REFLECT_KEY_127_0_0_1", "sesame-1234")
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-you")
    with FakeServer(key="sesame-1234").running() as fake:
        judge = find_judge(fake.url, {"pause": 0.01})
        told = judge.prepare("a red ball")
        judge.actors().verifier.judge("a red ball", reds(2))
    assert all(h["Authorization"] == "Bearer sesame-1234" for h in fake.headers)
    everything = repr((told, judge.settings(), judge.__dict__, judge.chat, judge.actors().verifier.asked))
    assert "sesame" not in everything and "not-for-you" not in repr((fake.headers, fake.documents))


def test_a_server_that_repeats_the_key_does_not_get_it_into_a_message(monkeypatch):
    monkeypatch.setenv("REFLECT_KEY_127_0_0_1", "sesame-1234")
    with FakeServer(key="another").running() as fake:
        with pytest.raises(UserError) as error:
            find_judge(fake.url, {"pause": 0.01, "model": "fake-vl"}).prepare("a red ball")
    assert "sesame" not in str(error.value) and "(the key)" in str(error.value)


def test_a_server_may_spell_the_key_as_json_can(monkeypatch):
    monkeypatch.setenv("REFLECT_KEY_127_0_0_1", "se/same+1234")
    for spelled in ("se/same+1234", r"se\/same+1234", r"se\u002fsame\u002B1234"):
        body = ('{"error": {"message": "Wrong key: %s"}}' % spelled).encode()
        with FakeServer().running() as fake:
            chat = server_at(fake.url)
            assert b"same" not in chat.transport._clean(body) and b"Wrong key: (the key)" in chat.transport._clean(body)


@pytest.mark.parametrize("url, near", [
    ("http://127.0.0.1:1/v1", True), ("http://localhost/v1", True), ("http://[::1]/v1", True),
    ("http://ollama/v1", True), ("http://192.168.1.9/v1", True), ("http://10.0.0.2/v1", True),
    ("http://100.64.3.4/v1", True), ("http://box.local/v1", True),
    ("https://api.openai.com/v1", False), ("http://8.8.8.8/v1", False)])
def test_what_is_near(url, near):
    assert is_near(url) == near


def test_what_is_near_is_asked_without_a_proxy(monkeypatch):
    """A proxy would see pictures and key in the open."""
    monkeypatch.setenv("REFLECT_KEY_127_0_0_1", "sesame-1234")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with FakeServer().running() as proxy, FakeServer(key="sesame-1234").running() as fake:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert server_at(fake.url).models() == ["fake-vl"]
        assert not proxy.headers and fake.headers
        assert server_at("http://judge.invalid/v1", attempts=1).models() == [], "from afar it is the proxy that answers"


def test_a_proxy_with_a_slip_keeps_its_password_to_itself(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://user:s3#cret@proxy:3128")
    with pytest.raises(UserError, match="or that of a proxy, cannot be read") as error:
        server_at("http://judge.invalid/v1", attempts=1).models()
    assert "s3" not in str(error.value)


@pytest.mark.parametrize("name", ["http:/user:s3cret@h", "user:s3cret@h", "HTTP://user:s3cret@h", "https:user:s3cret@h",
                                  "http//user:s3cret@h/v1", "http://user:s3?cret@h", "http://us@er:s3#cret@h/v1",
                                  "ftp://user:s3cret@h"])
def test_an_address_with_a_slip_keeps_its_password_to_itself(name):
    with pytest.raises(UserError) as error:
        find_judge(name)
    assert "s3" not in str(error.value) and "cret" not in str(error.value) and "expected" in str(error.value)


def test_variables_of_keys(monkeypatch):
    assert key_variable("https://api.openai.com/v1") == "OPENAI_API_KEY"
    assert key_variable("http://my-box.local:8000/v1") == "REFLECT_KEY_MY__BOX_LOCAL"
    hosts = ["api.example.com", "api-example.com", "api.ex.ample.com", "a--b.c", "a_b.c", "[::1]", "x.a-b", "xn--a.b"]
    assert len({key_variable(f"https://{host}/v1") for host in hosts}) == len(hosts)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert find_key("https://api.openai.com/v1") == "k"
    assert find_key("https://api.openai.com.evil.example/v1") is None
    with pytest.raises(UserError, match="in the open"):
        find_key("http://api.openai.com/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "two words\n")
    with pytest.raises(UserError, match="holds no key"):
        find_key("https://api.openai.com/v1")


@pytest.mark.parametrize("url", ["", "localhost:1234", "ftp://x/v1", "http://", "http://user:pw@host/v1", "http://h/v1?key=abc",
                                 "http://h:99999999/v1", "http://[::1"])
def test_addresses_that_are_none(url):
    with pytest.raises(UserError) as error:
        check_url(url)
    assert "pw" not in str(error.value) and "abc" not in str(error.value)


@pytest.mark.parametrize("url, clean", [("http://127.0.0.1:1234/v1/", "http://127.0.0.1:1234/v1"),
                                        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
                                        ("http://[::1]:8000/v1", "http://[::1]:8000/v1")])
def test_addresses(url, clean):
    assert check_url(url) == clean
