"""Which key goes to which server: from the environment only, and by the server's name.

A key has no place in a workflow, a record or on a command line, which are shared and logged. Nor may
they say which key goes where: a workflow from a stranger could then send any key anywhere. So each
server has a variable of its own, and its key goes to no other.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from ..types import UserError

WELL_KNOWN = {"api.openai.com": "OPENAI_API_KEY", "openrouter.ai": "OPENROUTER_API_KEY",
              "generativelanguage.googleapis.com": "GEMINI_API_KEY", "api.mistral.ai": "MISTRAL_API_KEY",
              "api.together.xyz": "TOGETHER_API_KEY", "api.groq.com": "GROQ_API_KEY",
              "dashscope-intl.aliyuncs.com": "DASHSCOPE_API_KEY", "dashscope.aliyuncs.com": "DASHSCOPE_API_KEY"}
"""The variables that these services' own tools read."""


def check_url(url: str) -> str:
    """A server's address without the slash at its end. UserError for one that is none, or holds a secret."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise UserError("the judge's server has an address that cannot be read; expected one such as "
                        "http://127.0.0.1:1234/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"the judge's server is {shown(url)!r}; expected an address such as http://127.0.0.1:1234/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(f"the judge's server is {shown(url)!r}, with a name, a password or a query in it; expected "
                        f"none, since records hold it; try the environment variable {key_variable(url)} for a key")
    try:
        port = parts.port
    except ValueError:
        raise UserError(f"the judge's server is {shown(url)!r}; expected a port from 1 to 65535") from None
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def key_variable(url: str) -> str:
    """The environment variable that may hold the server's key. No two hosts have the same: what tells api-x.com from
    api.x.com is who owns it."""
    host = (urlsplit(url).hostname or "").lower()
    if host in WELL_KNOWN:
        return WELL_KNOWN[host]
    if not re.fullmatch(r"[a-z0-9]+([.-]+[a-z0-9]+)*", host) or ".." in host or ".-" in host or "-." in host:
        return f"REFLECT_KEYHEX_{host.encode().hex().upper()}"
    return "REFLECT_KEY_" + host.upper().replace("-", "__").replace(".", "_")


def find_key(url: str) -> str | None:
    """The server's key, or None. UserError for one that cannot be sent, or would be sent in the open."""
    name = key_variable(url)
    key = os.environ.get(name, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"the environment variable {name} holds no key: expected letters, digits and marks without "
                        "spaces; try to copy it again")
    if urlsplit(url).scheme == "http" and urlsplit(url).hostname in WELL_KNOWN:
        raise UserError(f"the key in {name} would go over http, in the open; expected https; try https:{url[5:]}")
    return key


def echo_of(key: str) -> re.Pattern[bytes]:
    """The key as JSON may write it: with a backslash before a mark, or with numbers for letters."""
    return re.compile(b"".join(b"(?:" + re.escape(c).encode() + rb"|\\" + re.escape(c).encode()
                               + rb"|\\u(?i:%04x))" % ord(c) for c in key))


def shown(url: str) -> str:
    """An address, or what was meant to be one, without what may be a secret in it."""
    url = url.strip()
    if "@" in url:  # a password may hold any mark, and be anywhere where a slash is missing
        return f"{url.partition('://')[0]}://...@..." if "://" in url.partition("@")[0] else "...@..."
    return url.partition("?")[0].partition("#")[0][:200]
