"""The data card: a README whose YAML head ``datasets`` and the hub read, and whose body people read.

Rendered from counts and facts alone; it repeats no row. Texts that come from data (names of sources, reasons)
are escaped, so that none of them can add a heading, a cell or a link.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from curation.records import EXAMPLES

_SIZES = (
    ("n<1K", 10**3),
    ("1K<n<10K", 10**4),
    ("10K<n<100K", 10**5),
    ("100K<n<1M", 10**6),
    ("1M<n<10M", 10**7),
)


def render(
    manifest: Mapping[str, Any], files: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
) -> bytes:
    """The README of a snapshot: ``files`` maps each split to its shards, ``sizes`` each path to its bytes."""
    parts = ["---", *_head(manifest, files, sizes), "---", "", *_body(manifest)]
    return ("\n".join(parts) + "\n").encode()


def size_category(rows: int) -> str:
    """The hub's bucket for a number of rows.

    >>> size_category(1_000)
    '1K<n<10K'
    """
    return next((name for name, end in _SIZES if rows < end), "n>10M")


def _head(
    manifest: Mapping[str, Any], files: Mapping[str, Sequence[str]], sizes: Mapping[str, int]
) -> Iterable[str]:
    card = manifest.get("card", {})
    yield f"pretty_name: {_quoted(card.get('title', 'Tilth snapshot'))}"
    if card.get("license"):
        yield f"license: {_quoted(card['license'])}"
    yield from _list("language", card.get("languages", ()))
    yield from _list("tags", ["tilth", *card.get("tags", ())])
    yield from _list("task_categories", card.get("task_categories", ["text-generation"]))
    yield from _list("size_categories", [size_category(manifest["rows"])])
    yield from ("configs:", "- config_name: default", "  data_files:")
    for split in files:
        yield f"  - split: {split}"
        yield f"    path: data/{split}-*"
    yield from ("dataset_info:", "  features:", *_features(EXAMPLES, "  "), "  splits:")
    for split, facts in manifest["splits"].items():
        yield f"  - name: {split}"
        yield f"    num_bytes: {facts['bytes']}"
        yield f"    num_examples: {facts['rows']}"
    yield f"  download_size: {sum(sizes.values())}"
    yield f"  dataset_size: {sum(facts['bytes'] for facts in manifest['splits'].values())}"


def _features(fields: Iterable[pa.Field], indent: str) -> Iterable[str]:
    for field in fields:
        yield f"{indent}- name: {field.name}"
        if not pa.types.is_list(field.type):
            yield f"{indent}  dtype: {_dtype(field.type)}"
        elif pa.types.is_struct(field.type.value_type):
            yield f"{indent}  list:"
            yield from _features(list(field.type.value_type), f"{indent}  ")
        else:
            yield f"{indent}  list: {_dtype(field.type.value_type)}"


def _dtype(kind: pa.DataType) -> str:
    return "float64" if pa.types.is_float64(kind) else str(kind)


def _list(key: str, values: Sequence[str]) -> Iterable[str]:
    if values:
        yield f"{key}:"
        yield from (f"- {_quoted(value)}" for value in values)


def _quoted(text: str) -> str:
    """A JSON text, which is a YAML scalar whatever it holds."""
    return json.dumps(str(text))


def _plain(value: Any) -> str:
    """A value for the body: one line, with what Markdown or HTML would read as markup made harmless."""
    text = " ".join(str("" if value is None else value).split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, safe)
    return "".join(f"\\{c}" if c in "\\`*_[]|!#" else c for c in text)


def _body(manifest: Mapping[str, Any]) -> Iterable[str]:
    card = manifest.get("card", {})
    yield f"# {_plain(card.get('title', 'Tilth snapshot'))}"
    yield ""
    if card.get("description"):
        yield from (_plain(card["description"]), "")
    yield from (f"Snapshot `{manifest['name']}`, {manifest['rows']:,} rows.", "")
    parent = manifest.get("parent")
    yield from (f"It follows `{_plain(parent)}`." if parent else "It follows no earlier snapshot.", "")
    yield from _section(
        "Splits", ("split", "rows", "weight: sum", "mean", "least", "most"), _splits(manifest)
    )
    yield from _section("Sources", ("source", "rows"), manifest["sources"].items())
    kinds = manifest["author_kinds"].items()
    yield from _section("Who stands behind the completions", ("kind of author", "rows"), kinds)
    yield from _section("Stages", ("stage", "rows in", "rows out", "reasons"), _stages(manifest))
    yield from _section("Personal data", ("fact", "value"), _facts(manifest.get("pii")))
    yield from _section("Leaks into evaluation", ("fact", "value"), _facts(manifest.get("leakage")))
    yield from _section("Agreement between people", ("fact", "value"), _facts(manifest.get("agreement")))
    gates = [(g["gate"], g["status"], g["detail"]) for g in manifest["gates"]]
    yield from _section("Gates", ("gate", "status", "in words"), gates)
    yield from _HOW_TO_LOAD


_HOW_TO_LOAD = (
    "## How to load",
    "",
    "```python",
    "from datasets import load_dataset",
    "",
    'rows = load_dataset("path/to/this/folder")',
    "```",
    "",
    "`prompt` and `completion` are what a model is trained on, each row counted by `weight`; `messages`",
    "holds the same prompt by role. `labels`, `authors`, `functions`, `arm` and `round` say where a row",
    "comes from. `manifest.json` lists every file with its SHA-256.",
)


def _section(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterable[str]:
    rows = list(rows)
    yield from (f"## {title}", "")
    if not rows:
        yield from ("Nothing was recorded.", "")
        return
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(_cell(value) for value in row)} |"
    yield ""


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else _plain(value)


def _splits(manifest: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    for split, facts in manifest["splits"].items():
        weight = facts["weight"]
        mean = weight["sum"] / facts["rows"]
        yield split, facts["rows"], weight["sum"], mean, weight["least"], weight["most"]


def _stages(manifest: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    for stage in manifest.get("stages", ()):
        reasons = sorted(stage.get("reasons", {}).items(), key=lambda item: (-item[1], item[0]))
        words = "; ".join(f"{reason}: {count:,}" for reason, count in reasons)
        yield stage["stage"], stage.get("in"), stage.get("out"), words


def _facts(facts: Mapping[str, Any] | None) -> Iterable[tuple[str, Any]]:
    for key, value in (facts or {}).items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name}: {count}" for name, count in sorted(value.items()))
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        yield key.replace("_", " "), value
