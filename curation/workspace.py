"""A workspace: its configuration, its ledger, its artifacts and its key, opened together; and what comes in.

The functions here join the ledger to the formats, one function per command. They decide nothing about rows: that is
the stages' work.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import secrets
from collections import Counter
from collections.abc import Callable, Sized
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation import config as configuration
from curation import formats, intake, records
from curation.artifacts import Store
from curation.collector import without_collector
from curation.errors import ConflictError, UsageError, storage_errors
from curation.ledger import Added, Ledger, Passage

Progress = Callable[[str, int, int | None], None]
"""Told what is being done, how many are done, and of how many (``None`` where nobody knows)."""

KEY_FILE = ".tilth/pseudonym.key"
GUIDE = """\
Labeling functions of this workspace: every .py file here is searched for them.

    from curation.voting import labeling_function

    @labeling_function(classes=["billing", "claims"])
    def mentions_an_invoice(row):
        return "billing" if "invoice" in row.prompt.lower() else None

Try one at once:  tilth vote --sample 20
"""


def silent(what: str, done: int, total: int | None) -> None:
    """A :data:`Progress` that says nothing."""


@dataclass
class Workspace:
    """An open workspace. Close it, or use it in a ``with`` statement."""

    config: configuration.Config
    ledger: Ledger
    store: Store
    actor: str

    @property
    def root(self) -> Path:
        """The folder of ``tilth.toml``."""
        return self.config.root

    @cached_property
    def key(self) -> bytes:
        """The secret that pseudonyms are made with: 32 bytes, in a file that only its owner may read."""
        return read_key(self.root)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger."""
        self.ledger.close()


def init(root: Path, *, actor: str, name: str | None = None, dry_run: bool = False) -> list[str]:
    """Make a workspace in ``root`` and return the names of the files made; what is there already is refused.

    Raises :class:`ConflictError` where ``root`` is a workspace already.
    """
    if (root / configuration.FILE).exists():
        raise ConflictError(
            "this is a workspace already", where=str(root), next="Use it, or name another folder"
        )
    made = [configuration.FILE, "ledger.db", KEY_FILE, "labeling_functions/README.md", ".gitignore"]
    if dry_run:
        return made
    name = name or _slug(root.resolve().name)
    with storage_errors(root):
        (root / "labeling_functions").mkdir(parents=True, exist_ok=True)
        _write_key(root)
        (root / "labeling_functions/README.md").write_text(GUIDE, encoding="utf-8")
        (root / ".gitignore").write_text(".tilth/\nledger.db*\nartifacts/\n", encoding="utf-8")
        url = configuration.absolute_url(configuration.WorkspaceSection().ledger, root)
        Ledger.create(url, workspace=name, actor=actor).close()
        # Last, since this file is what makes the folder a workspace.
        (root / configuration.FILE).write_text(configuration.TEMPLATE.format(name=name), encoding="utf-8")
    return made


def open_workspace(root: Path, *, actor: str) -> Workspace:
    """Open the workspace at ``root``; the ledger is created where the configuration names an empty database."""
    config = configuration.load(root)
    book = Ledger.open(config.ledger_url, workspace=config.workspace.name, actor=actor, create=True)
    return Workspace(config, book, Store(config.artifacts_path), actor)


def _slug(name: str) -> str:
    kept = "".join(c if c.isalnum() and c.isascii() else "-" for c in name.lower()).strip("-")
    return kept[:64] or "workspace"


def _write_key(root: Path) -> None:
    path = root / KEY_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.exists():
        return
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))


def read_key(root: Path) -> bytes:
    """The workspace's pseudonym key. Raises :class:`UsageError` where it is gone: another key, other pseudonyms."""
    path = root / KEY_FILE
    if not path.is_file():
        raise UsageError(
            "the pseudonym key is missing",
            where=str(path),
            next="Put it back from your backup; a new key would give every person a new alias",
        )
    return bytes.fromhex(path.read_text(encoding="ascii").strip())


OUTCOMES = ("accepted", "unchanged", "quarantined")


@dataclass(frozen=True)
class Ingested:
    """What one ingest did: rows counted by outcome, and how the file was read."""

    ingest: str
    format: str
    why: str
    accepted: int
    unchanged: int
    quarantined: int


def ingest(
    workspace: Workspace,
    path: Path,
    *,
    mapping: formats.Mapping | None = None,
    format: str | None = None,
    trust: str = "candidate",
    source: str = "main",
    eval_set: str | None = None,
    dry_run: bool = False,
    processes: int = 1,
    progress: Progress = silent,
) -> Ingested:
    """Read a file into the ledger: ``accepted + unchanged + quarantined`` is the number of its rows.

    ``source`` names where the rows come from, not the file: overlapping exports of one source find their records
    again. ``trust`` says how far the source's own completions are believed. With ``eval_set`` the rows are reserved as
    an evaluation set that nothing is trained on. A row that cannot be read, or whose id is known with another text, is
    quarantined with file, line, byte offset and reason. Killed half-way, the same command goes on where it stopped.
    With ``dry_run`` the rows are compared with the ledger and nothing is written; an id that stands twice in the file,
    in different batches, then counts as accepted twice.
    With ``processes`` above 1 a large file is read in a process of its own while rows are stored.
    """
    if trust not in records.SOURCE_TRUST:
        raise UsageError(f"trust {trust!r} is none of {', '.join(records.SOURCE_TRUST)}", where="--trust")
    mapping = mapping or formats.Mapping()
    shape = formats.sniff(path, format)
    if path.is_file() and not path.stat().st_size:
        raise UsageError("the file is empty", where=str(path), next="Check the export that made it")
    book = workspace.ledger
    total = Counter[str]()
    origin = intake.Source(source, trust, book.source_author(source))
    batches = intake.prepared(path, mapping, shape, origin, processes=processes)
    if dry_run:
        for prepared in batches:
            total += _counted(book.expected(prepared.rows), prepared.bad)
            progress("reading", total.total(), None)
        return Ingested("", shape.name, shape.why, *(total[name] for name in OUTCOMES))
    # Read before the ledger hears of it: a field that is not there leaves no ingest behind for `--undo` to find.
    first = list(islice(batches, 1))
    number = book.begin_ingest(
        source=source,
        file_name=path.name,
        file_digest=_file_digest(path),
        format=shape.name,
        rule={"mapping": asdict(mapping), "format": shape.name, "trust": trust},
        trust=trust,
    )
    reserved: list[str] = []
    with without_collector():
        for prepared in chain(first, batches):
            total += _store(book, number, path.name, prepared)
            if eval_set:
                reserved += prepared.rows.ids
            progress("reading", total.total(), None)
    if eval_set and reserved:
        book.reserve(eval_set, [(record, "test") for record in dict.fromkeys(reserved)])
    book.end_ingest(number)
    return Ingested(number, shape.name, shape.why, *(total[name] for name in OUTCOMES))


def _store(book: Ledger, number: str, file: str, prepared: intake.Prepared) -> Counter[str]:
    """Store one batch, and set aside what could not be read or contradicts what is known; rows by outcome."""
    added = book.add_rows(number, prepared.rows)
    if bad := [*prepared.bad, *prepared.conflicts(file, added.conflicts)]:
        book.add_quarantine(number, bad)
    return _counted(added, prepared.bad)


def _counted(added: Added, bad: Sized) -> Counter[str]:
    """Rows by outcome: one that contradicts a known record is set aside like one that could not be read."""
    return Counter(
        dict(zip(OUTCOMES, (added.accepted, added.unchanged, len(added.conflicts) + len(bad)), strict=True))
    )


def _file_digest(path: Path) -> str:
    """The digest of the file's content, unpacked where it is compressed, so that both count as one file."""
    hasher = hashlib.sha256()
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        file: Any = stack.enter_context(gzip.open(raw)) if path.suffix == ".gz" else raw
        while chunk := file.read(1 << 20):
            hasher.update(chunk)
    return hasher.hexdigest()


def ingest_passages(workspace: Workspace, path: Path) -> int:
    """Read a text or Markdown document into passages, chunked by heading; returns how many are new."""
    before = {passage.id for passage in workspace.ledger.passages()}
    found = [
        Passage(
            id=records.digest(records.canonical_json([p.document, p.version, p.heading, p.text])),
            document=p.document,
            version=p.version,
            heading=tuple(p.heading),
            body=p.text,
        )
        for p in formats.passages(path)
    ]
    workspace.ledger.add_passages(found)
    return len({passage.id for passage in found} - before)


def status(workspace: Workspace) -> dict[str, Any]:
    """What the ledger holds, counted: the numbers behind ``tilth status``."""
    book = workspace.ledger
    counts = book.counts()
    return {
        "workspace": workspace.config.workspace.name,
        "ledger": safe_url(book.url),
        **counts,
    }


def safe_url(url: str) -> str:
    """A database's URL without its password.

    >>> safe_url("postgresql+psycopg://ana:secret@db/tilth")
    'postgresql+psycopg://ana:***@db/tilth'
    """
    return re.sub(r"//([^:/@]*):[^@/]*@", r"//\1:***@", url)


def view(workspace: Workspace, *, rule: str | None, kinds: set[str] | None = None) -> pa.Table:
    """The whole VIEW as one table (scrubbed under ``rule``, raw with ``None``); for the stages that need the set."""
    pages = [page.table for page in workspace.ledger.view_pages(scrub_rule=rule, kinds=kinds)]
    return pa.concat_tables(pages) if pages else records.VIEW.empty_table()
