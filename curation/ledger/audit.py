"""Proof that history was not changed, and the one change that is allowed: erasing a text.

Every transaction's row holds the digest of all rows it wrote and a link to the chain before it, so an edited, deleted,
added or reordered row breaks a link. Whoever can write to the database can also forge the whole chain: keep its head
elsewhere. Nothing here repairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import Table

from curation.errors import UsageError, storage_errors
from curation.ledger import schema
from curation.ledger.rows import Audit
from curation.ledger.store import Reader, Store, chain_digest, chained_bytes, content_digest
from curation.records import digest

_PAGE = 50_000


class Audits(Store):
    """The chain's verification, erasure, and the export of everything."""

    def audit(self, head: str | None = None) -> Audit:
        """Read every row again and check the chain; ``head`` is one noted earlier, which must still be part of it."""
        with self._read() as reader:
            contents, rows, problems = _contents(reader)
            links = reader.all(
                "SELECT seq, workspace, actor, time, command, content, chain FROM transactions ORDER BY seq"
            )
        before = ""
        for position, link in enumerate(links, 1):
            problems += _check_link(tuple(link), before, position, contents.pop(link[0], []))
            before = link[6]
        problems += [f"rows of transaction {tx} stand without it" for tx in sorted(contents)]
        if head is not None and head not in {link[6] for link in links} | {""}:
            problems.append(f"the head {head} is no longer part of the chain")
        return Audit(len(links), rows, before, tuple(problems))

    def head(self) -> str:
        """The end of the chain: note it elsewhere, and no earlier row can be forged unseen. Empty at first."""
        with self._read() as reader:
            return reader.value("SELECT chain FROM transactions ORDER BY seq DESC LIMIT 1") or ""

    def erase_payloads(self, digests: Sequence[str]) -> int:
        """Erase texts for good, wherever they are used, and return how many there were. Rows and digests stay.

        ``UsageError`` for a digest that the ledger never held. Backups made before hold the text still.
        """
        wanted = list(dict.fromkeys(digests))
        with self._write("erase") as writer:
            if writer.sqlite:
                writer.run("PRAGMA secure_delete=ON")  # overwrite the freed pages, not only forget them
            held = writer.rows_in("SELECT digest, body IS NULL FROM payloads WHERE digest {items}", wanted)
            missing = set(wanted) - {row[0] for row in held}
            if missing:
                raise UsageError(
                    f"the ledger holds no text {min(missing)!r}", next="Give digests as records() lists them"
                )
            standing = [row[0] for row in held if not row[1]]
            for text in standing:
                writer.run(
                    "UPDATE payloads SET body = NULL, erased_tx = :tx WHERE digest = :d", tx=writer.tx, d=text
                )
            writer.insert(schema.erasures, [(text,) for text in standing])
            return len(standing)

    def export_all(self, folder: str | Path) -> dict[str, int]:
        """Write every table as ``<table>.jsonl`` into a folder and return the rows of each; texts are plain."""
        target = Path(folder)
        counts: dict[str, int] = {}
        with storage_errors(target), self._read() as reader:
            target.mkdir(parents=True, exist_ok=True)
            for table in schema.TABLES:
                counts[table.name] = _export(reader, table, target / f"{table.name}.jsonl")
        return counts


def _contents(reader: Reader) -> tuple[dict[int, list[tuple[str, int, str]]], int, list[str]]:
    """What each transaction wrote, as (table, count, digest), read back; and the payloads that are not themselves."""
    contents: dict[int, list[tuple[str, int, str]]] = {}
    problems: list[str] = []
    total = 0
    for table in schema.LOGGED:
        open_tx, hasher, count = None, hashlib.blake2b(digest_size=16), 0
        for rows in pages(reader, table):
            total += len(rows)
            problems += _wrong_texts(reader, table, rows)
            for tx, run in _runs(rows):
                if tx != open_tx:
                    _close(contents, table, open_tx, count, hasher)
                    open_tx, hasher, count = tx, hashlib.blake2b(digest_size=16), 0
                hasher.update(chained_bytes(table, run))
                count += len(run)
        _close(contents, table, open_tx, count, hasher)
    return contents, total, problems


def _close(
    contents: dict[int, list[tuple[str, int, str]]], table: Table, tx: int | None, count: int, hasher: Any
) -> None:
    if tx is not None:
        contents.setdefault(tx, []).append((table.name, count, hasher.hexdigest()))


def _runs(rows: list[tuple[Any, ...]]) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
    """Stretches of rows of one transaction, in order."""
    start = 0
    for index in range(1, len(rows) + 1):
        if index == len(rows) or rows[index][1] != rows[start][1]:
            yield rows[start][1], rows[start:index]
            start = index


def pages(reader: Reader, table: Table, key: str = "seq") -> Iterator[list[tuple[Any, ...]]]:
    """All rows of a numbered table, all columns, in order, a page at a time."""
    columns = ", ".join(f'"{c.name}"' for c in table.columns)
    after = -(2**62)
    while True:
        found = reader.all(
            f'SELECT {columns} FROM "{table.name}" WHERE {key} > :after ORDER BY {key} LIMIT {_PAGE}',
            after=after,
        )
        if not found:
            return
        yield [tuple(row) for row in found]
        after = found[-1][0]


def _wrong_texts(reader: Reader, table: Table, rows: list[tuple[Any, ...]]) -> list[str]:
    if table.name != "payloads":
        return []
    wrong = [
        f"the text {row[2]} is not the one that was stored"
        for row in rows
        if row[3] is not None and digest(bytes(row[3])) != row[2]
    ]
    gone = [row[2] for row in rows if row[3] is None]
    erased = {row[0] for row in reader.rows_in("SELECT digest FROM erasures WHERE digest {items}", gone)}
    return wrong + [f"the text {text} is gone, and nobody erased it" for text in gone if text not in erased]


def _check_link(
    link: tuple[Any, ...], before: str, position: int, parts: list[tuple[str, int, str]]
) -> list[str]:
    problems = []
    if link[0] != position:
        problems.append(f"transaction {position} is missing")
    if content_digest(parts) != link[5]:
        problems.append(f"rows of transaction {link[0]} ({link[4]} by {link[2]} at {link[3]}) were changed")
    if chain_digest(before, link[:6]) != link[6]:
        problems.append(f"the chain is broken at transaction {link[0]} ({link[4]} by {link[2]} at {link[3]})")
    return problems


def _export(reader: Reader, table: Table, path: Path) -> int:
    names = [str(c.name) for c in table.columns]
    count = 0
    with path.open("wb") as out:
        for rows in (
            pages(reader, table)
            if "seq" in table.c
            else [[tuple(r) for r in reader.all(f'SELECT * FROM "{table.name}"')]]
        ):
            out.writelines(
                orjson.dumps(dict(zip(names, row, strict=True)), default=_plain) + b"\n" for row in rows
            )
            count += len(rows)
    return count


def _plain(value: Any) -> Any:
    """A payload as text; bytes that are no text (a quarantined raw line) as hexadecimal digits."""
    raw = bytes(value)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"hex": raw.hex()}
