"""Erasing one data subject everywhere, and saying where they cannot be reached any more.

A person is named by what stands in the texts (a name, an address, a number), by the key or group of their records, or as
an annotator. Their texts are emptied in the ledger and in every artifact; digests stay, so that the chain and the
snapshots still verify. Weights and files that left the workspace are listed: nobody can take a text out of them.

The subject's own words never reach the ledger, the receipt or a message: they are known by a keyed hash.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

from curation import snapshot, vault
from curation.errors import UsageError
from curation.pii.aliases import Aliaser, name_words
from curation.pii.fold import fold
from curation.records import canonical_json, digest
from curation.workspace import Workspace

ARTIFACTS = ("snapshots", "scores", "votes", "probabilities", "clusters")
SHORTEST = 3


@dataclass(frozen=True)
class Subject:
    """Who is to be forgotten. ``values`` are looked for as whole words in any case, ``records`` and ``groups`` are
    identities that the workspace knows, ``annotators`` are people by name."""

    values: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    annotators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.values or self.records or self.groups or self.annotators):
            raise UsageError("nobody is named", next="Give a value, --record, --group or --annotator")
        short = [value for value in self.values if len(value.strip()) < SHORTEST]
        if short:
            raise UsageError(
                f"a value of fewer than {SHORTEST} characters would match half the workspace",
                next="Give the whole name, address or number",
            )


@dataclass(frozen=True)
class Receipt:
    """What an erasure did, or would do: counts and opaque names alone, so that it may be kept and shown.

    ``adapters`` were trained on a snapshot that held a row of the subject, ``exports`` are files written from one, and
    ``tasks`` went to people: none of them can be emptied from here. ``remaining`` counts records whose key, group or
    tags name the subject: they stand in the ledger's rows and keep their place in the chain. ``vault`` counts entries
    that told whose an alias is.
    """

    subject: str
    records: tuple[str, ...] = ()
    texts: int = 0
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    annotators: int = 0
    adapters: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    remaining: int = 0
    vault: int = 0
    dry_run: bool = False
    digest: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain values."""
        return asdict(self)


def erase(workspace: Workspace, subject: Subject, *, dry_run: bool = False) -> Receipt:
    """Forget a person, and return the receipt; it is noted in the ledger too. Killed half-way, call it again.

    Artifacts come first: as long as the ledger knows which records are meant, what is left undone can be found.
    Raises :class:`UsageError` for a record or annotator that the workspace does not know.
    """
    book = workspace.ledger
    texts, records = _found(workspace, subject)
    people = _annotators(workspace, subject)
    held = _artifacts(workspace, records)
    mine = sorted(texts | book.texts_of(records))
    concerned = set(held.get("snapshots", ()))
    made = Receipt(
        subject=_mark(workspace, subject),
        records=tuple(sorted(records)),
        texts=len(mine),
        artifacts=held,
        annotators=len(people),
        adapters=tuple(a.digest for a in book.adapters() if a.snapshot in concerned),
        exports=_exports(workspace, concerned),
        tasks=_tasks(workspace, records),
        remaining=_beside(workspace, subject),
        vault=vault.forget(workspace.root, kept := _in_vault(workspace, subject, records), dry_run=True),
        dry_run=dry_run,
    )
    if dry_run:
        return made
    vault.forget(workspace.root, kept)
    for kind, names in held.items():
        for name in names:
            snapshot.empty_rows(workspace.store.path(kind, name), records)
    if mine:
        book.erase_payloads(mine)
    for author in people:
        book.erase_author(author)
    sealed = Receipt(**{**asdict(made), "digest": digest(canonical_json(asdict(made)))})
    book.event("erased", sealed.subject, sealed.as_dict())
    return sealed


def _mark(workspace: Workspace, subject: Subject) -> str:
    """The subject under the workspace's key: the same person has the same mark, and nobody else can tell who it is."""
    said = canonical_json([sorted(map(_plain, part)) for part in asdict(subject).values()])
    return hmac.new(workspace.key, b"erasure\0" + said, sha256).hexdigest()[:32]


def _plain(text: str) -> str:
    return " ".join(fold(text).text.casefold().split())


def mentions(values: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text holds one of the values as a whole word, however it is spaced, cased or disguised.

    >>> mentions(["Jane Doe"])("to JANE  DOE."), mentions(["Ann"])("Annual report")
    (True, False)
    """
    wanted = [plain for value in values if (plain := _plain(value))]

    def found(text: str) -> bool:
        plain = _plain(text) if wanted else ""
        return any(_stands(plain, value) for value in wanted)

    return found


def _stands(text: str, value: str) -> bool:
    at = text.find(value)
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(value) : at + len(value) + 1]
        if not (before.isalnum() and value[0].isalnum()) and not (after.isalnum() and value[-1].isalnum()):
            return True
        at = text.find(value, at + 1)
    return False


def _found(workspace: Workspace, subject: Subject) -> tuple[set[str], set[str]]:
    """The texts that mention the subject, and every record that is about them."""
    book = workspace.ledger
    is_about = mentions(subject.values)
    texts = (
        {d for d, body in book.standing_texts() if is_about(body.decode("utf-8", "replace"))}
        if subject.values
        else set()
    )
    records = book.records_using(sorted(texts)) if texts else set()
    if subject.records:
        known = set(book.records(list(subject.records))["record"].to_pylist())
        if missing := sorted(set(subject.records) - known):
            raise UsageError(
                f"there is no record {missing[0]!r}", next="Give ids as `tilth curate --explain` does"
            )
        records |= known
    if subject.groups:
        records |= {record for record, group in book.groups().items() if group in subject.groups}
    # A rewritten text of a record that was erased before may be listed nowhere else: found again by its record.
    return texts, records


def _annotators(workspace: Workspace, subject: Subject) -> list[str]:
    wanted = {_plain(name) for name in (*subject.annotators, *subject.values)}
    people = [a for a in workspace.ledger.authors() if a.name is not None and a.kind in ("person", "curator")]
    found = [a for a in people if _plain(a.name or "") in wanted]
    named = {_plain(a.name or "") for a in found}
    if missing := [name for name in subject.annotators if _plain(name) not in named]:
        raise UsageError(f"{len(missing)} of the annotators named are not known", next="See: tilth people")
    return [a.id for a in found]


def _in_vault(workspace: Workspace, subject: Subject, records: set[str]) -> set[vault.Id]:
    """What the vault may hold of the subject: the named values as any type, each word of a name by itself, and whatever
    was replaced in the subject's records and in no other."""
    if not vault.is_on(workspace.root):
        return set()
    known = workspace.ledger.aliases()
    hashed = Aliaser(workspace.key).hash
    values = {*subject.values, *(word for value in subject.values for word in name_words(value))}
    types = {alias.entity_type for alias in known}
    mine, others = _replacements(workspace, records)
    alone = {word for text in mine - others for word in (text, *text.split())} - {
        word for text in others for word in (text, *text.split())
    }
    return {(kind, hashed(kind, value)) for kind in types for value in values} | {
        (alias.entity_type, alias.hash) for alias in known if alias.alias in alone
    }


def _replacements(workspace: Workspace, records: set[str]) -> tuple[set[str], set[str]]:
    """What stands for values in these records, and in all others."""
    mine: set[str] = set()
    others: set[str] = set()
    found = workspace.ledger.decisions(stage="scrub")
    for record, evidence in zip(found["record"].to_pylist(), found["evidence"].to_pylist(), strict=True):
        told = {
            span["replacement"] for span in json.loads(evidence).get("spans", ()) if "replacement" in span
        }
        (mine if record in records else others).update(told)
    return mine, others


def _artifacts(workspace: Workspace, records: set[str]) -> dict[str, list[str]]:
    """The artifacts that hold text of the records, by kind."""
    if not records:
        return {}
    store = workspace.store
    found = {
        kind: [name for name in store.list(kind) if snapshot.holders(store.path(kind, name), records)]
        for kind in ARTIFACTS
    }
    return {kind: names for kind, names in found.items() if names}


def _exports(workspace: Workspace, snapshots: set[str]) -> tuple[str, ...]:
    events = workspace.ledger.events(kind="exported")
    return tuple(dict.fromkeys(str(e.detail.get("path", "")) for e in events if e.subject in snapshots))


def _tasks(workspace: Workspace, records: set[str]) -> tuple[str, ...]:
    """Channels and numbers of the tasks that showed a record to people."""
    book = workspace.ledger
    shown = {s.id for record in sorted(records) for s in book.showings(record=record)} if records else set()
    return tuple(sorted(f"{task.channel}:{task.remote}" for task in book.tasks() if task.showing in shown))


def _beside(workspace: Workspace, subject: Subject) -> int:
    is_about = mentions(subject.values)
    return len({record for record, text in workspace.ledger.told_beside() if is_about(text)})


def parsed(
    values: Sequence[str], records: Sequence[str], groups: Sequence[str], people: Sequence[str]
) -> Subject:
    """A subject from lists, such as a command's options."""
    return Subject(tuple(values), tuple(records), tuple(groups), tuple(people))
