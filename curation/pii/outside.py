"""Models that somebody else made, as layers: how they are named, where they lie, and which one it is that lies there.

A layer ``KIND:MODEL`` is ``spacy:`` with the name of an installed pipeline or a folder, or ``transformers:`` or
``gliner:`` with a folder. Nothing here imports a library that runs a model, and nothing is ever downloaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path

from curation.records import canonical_json, digest

PACKAGES = {
    "spacy": ("spacy",),
    "transformers": ("transformers", "tokenizers", "torch"),
    "gliner": ("gliner", "transformers", "torch"),
}
"""The kinds of model, and the packages whose versions decide what a model of the kind finds."""

_BLOCK = 1 << 20
_PACKAGE = re.compile(r"[A-Za-z_]\w*")


def split(layer: str) -> tuple[str, str] | None:
    """Kind and model of a layer from outside; None for any other.

    >>> split("spacy:en_core_web_sm"), split("names"), split("spacy:")
    (('spacy', 'en_core_web_sm'), None, None)
    """
    kind, _, model = layer.partition(":")
    return (kind, model) if kind in PACKAGES and model else None


def located(layers: Sequence[str], root: Path) -> tuple[str, ...]:
    """The layers with the folders among them made absolute below ``root``; names of packages stay names."""
    return tuple(_located(layer, root) for layer in layers)


def _located(layer: str, root: Path) -> str:
    told = split(layer)
    if told is None:
        return layer
    kind, model = told
    path = root / Path(model).expanduser()
    return f"{kind}:{path.resolve()}" if kind != "spacy" or path.is_dir() else layer


def folder(layer: str) -> Path | None:
    """The folder that holds the model of a layer; None where there is none, or the layer is not from outside."""
    told = split(layer)
    if told is None:
        return None
    kind, model = told
    if Path(model).is_dir():
        return Path(model)
    if kind != "spacy" or not _PACKAGE.fullmatch(model):
        return None
    spec = util.find_spec(model)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def identity(layer: str) -> dict[str, str]:
    """What a layer is, wherever it lies: kind, digest of the model's files, and the versions of what runs it.

    An empty text stands for what is missing, so that the identity changes when it comes.
    """
    kind = layer.partition(":")[0]
    at = folder(layer)
    versions = {package: _version(package) for package in PACKAGES[kind]}
    return {"kind": kind, "files": files_digest(at) if at else "", **versions}


def files_digest(at: Path) -> str:
    """Digest of the names and bytes of all files below a folder, compiled Python apart. Read again only where a size
    or a time of change is another one."""
    stamp = tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in _files(at))
    return _digest(at, stamp)


@lru_cache(maxsize=16)
def _digest(at: Path, stamp: tuple[tuple[str, int, int], ...]) -> str:
    told = [[Path(name).relative_to(at).as_posix(), _hash(Path(name))] for name, *_ in stamp]
    return digest(canonical_json(told))


def _files(at: Path) -> Iterator[Path]:
    for path in sorted(at.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _hash(path: Path) -> str:
    made = sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            made.update(block)
    return made.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
