"""Fetch a published set from the Hugging Face hub: what is needed of it, when somebody says so, and resumed.

All is huggingface_hub's own public API, so that HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, a login and its way of taking
up a broken connection hold here as everywhere. Nothing else in the library downloads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from ..types import UserError
from .published import Source, published_set, repository

VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.fp32.*", "*.non_ema.*")
"""The same weights once more, which nobody asks for by these names."""


@dataclass(frozen=True)
class Share:
    """One repository's files of a set."""

    source: Source
    revision: str
    """The commit of which they are."""
    files: dict[str, int]
    """Name in the repository -> bytes."""
    licence: str
    """As the repository's card names it, beside what is known of it."""
    to: Path | None
    """Its folder; None for the Hugging Face cache."""

    @property
    def size(self) -> int:
        return sum(self.files.values())

    @property
    def lacking(self) -> dict[str, int]:
        """The files that are not in the folder yet; of the cache huggingface_hub knows more than their sizes say."""
        if self.to is None:
            return self.files
        return {name: size for name, size in self.files.items() if _size(self.to / _inner(self.source, name)) != size}


def plan(preset: str, to: str | Path | None = None) -> list[Share]:
    """What there is to fetch, asked of the hub. Raises UserError where it cannot be reached or gives nothing.

    `preset`: the name of a published set, or the id of a repository, with a folder of it behind it or without.
    `to`: ComfyUI, its models folder or a folder of one's own; below it everything lies as in ComfyUI's models.
    """
    from huggingface_hub import HfApi

    root = None if to is None else _models(Path(to).expanduser())
    shares = []
    for source in (repository(preset),) if "/" in preset else published_set(preset).sources:
        with _said(source):
            info = HfApi().model_info(source.repository, files_metadata=True)
        patterns = _patterns(source)
        files = {one.rfilename: one.size or 0 for one in info.siblings or ()
                 if any(fnmatch(one.rfilename, pattern) for pattern in patterns)
                 and not any(fnmatch(one.rfilename, pattern) for pattern in VARIANTS)}
        if not source.file:
            source, files = _of_any_kind(source, files)
        wanted = _inside(source, source.file)
        if wanted not in files:
            other = next((name.removesuffix("/config.json") for name in files if name.endswith("/config.json")), None)
            cure = f"{source.repository}/{other}" if other and not source.inside else "a newer version of Reflect"
            raise UserError(f"{source.repository} has no {wanted}; expected it, as {preset!r} needs it; try {cure}, or "
                            "another mirror")
        card = getattr(info, "card_data", None)
        licence = (card.get("license_name") or card.get("license")) if card else None
        shares.append(Share(source, info.sha or "main", files, str(licence or "none is stated"),
                            None if root is None else root / source.kind / source.name))
    return shares


def check_room(shares: list[Share]) -> None:
    """UserError unless the disk has room for what is still to come."""
    from huggingface_hub import constants

    needed = sum(sum(share.lacking.values()) for share in shares)
    at = next((share.to for share in shares if share.to is not None), Path(constants.HF_HUB_CACHE))
    cached = 0 if shares[0].to is not None else sum(_in_cache(share) for share in shares)
    while not at.exists():
        if at == at.parent:  # a drive of Windows that there is not
            raise UserError(f"{at}: no such drive; expected one with room for {said_bytes(needed - cached)}; try "
                            "another --to, or HF_HOME")
        at = at.parent
    free = shutil.disk_usage(at).free
    if needed - cached > free:
        raise UserError(f"{at} has {said_bytes(free)} left, and {said_bytes(needed - cached)} are still to come; "
                        "expected room for all of it; try another disk with --to, or HF_HOME")


def fetch(share: Share, quiet: bool = False) -> Path:
    """Download a share, without the files of it that an earlier attempt has fetched; returns its folder.

    Raises UserError if the connection fails for good; what is there is kept, and the next call goes on with it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    source, how = share.source, {}
    # Of a folder inside a repository the files lie deeper than they shall, and are moved when all are there.
    halfway = share.to if share.to is None or not source.inside else share.to.with_name(f".{share.to.name}.download")
    if share.to is not None:
        if not share.lacking:
            return share.to
        how["local_dir"] = str(halfway)
    try:
        with _said(source):
            # No revision: the cache would keep no note of what 'main' is, and nobody would find it by its name.
            folder = Path(snapshot_download(source.repository, allow_patterns=[escape(name) for name in share.files],
                                            **how))
    finally:
        if quiet and shown:
            enable_progress_bars()
    for name, size in share.files.items():
        if _size(folder / name) != size:
            raise UserError(f"{folder / name}: has {_size(folder / name)} bytes; expected {size}; try the same command "
                            "again")
    if halfway != share.to:
        for name in share.files:
            end = share.to / _inner(source, name)
            end.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / name, end)
        shutil.rmtree(halfway)
        folder = share.to
    return folder


def said_bytes(number: int) -> str:
    """33.7 GB, 464 MB, 12 kB."""
    for unit, of in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= of:
            return f"{number / of:.1f} {unit}" if unit == "GB" else f"{number / of:.0f} {unit}"
    return f"{number} bytes"


def _models(to: Path) -> Path:
    return to / "models" if (to / "models").is_dir() and (to / "comfy").is_dir() else to


def _of_any_kind(source: Source, files: dict[str, int]) -> tuple[Source, dict[str, int]]:
    """What a repository holds that is no published set: a model that draws, or a judge."""
    if _inside(source, "model_index.json") not in files:
        return replace(source, kind="LLM", file="config.json"), files
    # Beside the components' folders lie the same weights once more, in the single files of their makers.
    twice = [name for name in files if name.endswith(".safetensors") and "/" not in _inner(source, name)]
    return replace(source, file="model_index.json"), {n: size for n, size in files.items() if n not in twice}


def _inside(source: Source, name: str) -> str:
    return f"{source.inside}/{name}" if source.inside else name


def _patterns(source: Source) -> list[str]:
    return [_inside(source, pattern) for pattern in source.patterns]


def _inner(source: Source, name: str) -> str:
    return name.removeprefix(f"{source.inside}/") if source.inside else name


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else -1


def _in_cache(share: Share) -> int:
    """Bytes of a share that the Hugging Face cache has whole."""
    from huggingface_hub import try_to_load_from_cache

    return sum(size for name, size in share.files.items()
               if isinstance(try_to_load_from_cache(share.source.repository, name, revision=share.revision), str))


_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "huggingface_hub", "hf_xet")
"""Modules whose errors are the network's; httpx2 is one of them."""


@contextmanager
def _said(source: Source) -> Iterator[None]:
    """What goes wrong between here and the hub, in one line with its cure."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    page = f"{constants.ENDPOINT}/{source.repository}"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{source.repository}: cannot be downloaded, as HF_HUB_OFFLINE is set; expected it unset for "
                        "this command; try it without, or --models with a folder that has the weights")
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{source.repository}: is given only to those who accept its licence; expected a login that "
                        f"has; try to accept it at {page} and then 'hf auth login'") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{source.repository}: is not at {constants.ENDPOINT}, or not for you to see; expected it "
                        f"there; try 'hf auth login', or another mirror with HF_ENDPOINT ({page})") from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", "an error")
        raise UserError(f"{page}: the hub answered {code}; expected the files; try again later, or a mirror with "
                        "HF_ENDPOINT") from error
    except OSError as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{source.repository}: the download stopped ({type(error).__name__}: {said}); what is there is "
                        "kept; try the same command again, which goes on with it, or a mirror with HF_ENDPOINT"
                        ) from error
    except Exception as error:  # of the library that huggingface_hub asks the network with, whichever it is
        if isinstance(error, UserError) or not type(error).__module__.startswith(_NETWORK):
            raise
        raise UserError(f"{source.repository}: the download stopped ({type(error).__name__}); what is there is kept; "
                        "try the same command again, which goes on with it, or a mirror with HF_ENDPOINT") from error
