"""The vault: which value each alias stands for, encrypted, for whoever must answer a customer by name.

A workspace has none until it is asked for. Its file lies beside the pseudonym key in ``.tilth`` and goes into no ledger,
snapshot, export or backup; its own key lies outside the workspace, in a file that its owner alone may read or in
``TILTH_VAULT_KEY``. An entry is sealed with AES-256-GCM (NIST SP 800-38D) under a nonce of its own, and its identity,
the keyed hash that the ledger knows too, is authenticated with it: no entry can be read, changed or put in another's
place without the key. Whoever opens the vault is noted in the ledger before anything is shown.

Refused: a key inside the workspace or readable by others, a wrong key, an entry that was tampered with. Not told: that
somebody who may write the file took an entry out, as erasing a person does.
"""

from __future__ import annotations

import base64
import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from curation.errors import ConflictError, IntegrityError, MissingExtra, UsageError, storage_errors
from curation.pii.aliases import Alias
from curation.workspace import Workspace

FILE = ".tilth/vault"
KEY_VARIABLE = "TILTH_VAULT_KEY"
_FORMAT = "tilth-vault-1"
_KEY_BYTES, _NONCE_BYTES = 32, 12

Id = tuple[str, str]
"""Entity type and keyed hash of a value, as the ledger registers its alias."""


class Entry(NamedTuple):
    """An alias and the value that it stands for."""

    entity_type: str
    alias: str
    value: str


@dataclass(frozen=True)
class Vault:
    """An open vault: where it lies, the salt that tells it from others, and its key."""

    path: Path
    salt: str
    key: bytes

    def add(self, entries: Sequence[tuple[Id, Entry]]) -> None:
        """Seal the entries and append them, synced; the disk has them when this returns. None writes nothing."""
        if entries:
            with storage_errors(self.path), _locked(self.path), self.path.open("a", encoding="utf-8") as file:
                _append(file, "".join(self._sealed(*entry) + "\n" for entry in entries))

    def entries(self) -> dict[Id, Entry]:
        """Every entry, opened. Raises :class:`IntegrityError` for one that was tampered with."""
        return {_id(line): self._opened(line, number) for number, line in _lines(self.path)}

    def _sealed(self, id: Id, entry: Entry) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        body = json.dumps(entry, ensure_ascii=True).encode()
        sealed = nonce + _cipher(self.key).encrypt(nonce, body, self._about(id))
        return json.dumps({"type": id[0], "hash": id[1], "sealed": base64.b64encode(sealed).decode()})

    def _opened(self, line: dict[str, str], number: int) -> Entry:
        from cryptography.exceptions import InvalidTag

        try:
            sealed = base64.b64decode(line["sealed"], validate=True)
            nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return Entry(*json.loads(_cipher(self.key).decrypt(nonce, body, self._about(_id(line)))))
        except (InvalidTag, ValueError, KeyError, TypeError):
            raise _tampered(self.path, number) from None

    def _about(self, id: Id) -> bytes:
        return "\0".join((_FORMAT, self.salt, *id)).encode()


class Keeper:
    """Takes down whose alias is whose while texts are scrubbed, and hands it to the vault in batches."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._known = {id: entry.alias for id, entry in vault.entries().items()}
        self._new: dict[Id, Entry] = {}

    def note(self, alias: Alias, value: str) -> None:
        """Take down one alias; what is in the vault already is passed over."""
        id = (alias.entity_type, alias.hash)
        if self._known.get(id) != alias.alias:
            self._known[id] = alias.alias
            self._new[id] = Entry(alias.entity_type, alias.alias, value)

    def flush(self) -> None:
        """Write what was taken down. Before the ledger hears of the aliases: what a kill leaves is then written again."""
        self._vault.add(list(self._new.items()))
        self._new.clear()


def is_on(root: Path) -> bool:
    """Whether the workspace has a vault."""
    return (root / FILE).is_file()


def enable(workspace: Workspace, key_file: Path | None) -> Path:
    """Make an empty vault, and its key where ``key_file`` is not there yet; with ``None`` the key comes from
    ``TILTH_VAULT_KEY``. The ledger notes who did it. Returns the vault's path.

    Raises :class:`ConflictError` where there is one, :class:`UsageError` for a key that may not be used.
    """
    path = workspace.root / FILE
    if path.exists():
        raise ConflictError(
            "the workspace has a vault", where=str(path), next="Use it, or `tilth vault destroy` it"
        )
    _cipher_class()
    where = key_file.expanduser().resolve() if key_file else None
    if where is not None and where.is_relative_to(workspace.root.resolve()):
        raise UsageError(
            "the key would lie inside the workspace, and travel with it",
            where=str(where),
            next="Name a file elsewhere",
        )
    if where is not None and not where.exists():
        with storage_errors(where):
            where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_private(where, secrets.token_hex(_KEY_BYTES) + "\n")
    key = _key(where)
    salt = secrets.token_hex(16)
    header = {"format": _FORMAT, "salt": salt, "check": _check(key, salt), "key_file": str(where or "")}
    with storage_errors(path):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write_private(path, json.dumps(header) + "\n")
    workspace.ledger.event("vault enabled", _mark(salt))
    return path


def opened(root: Path) -> Vault:
    """The vault with its key. Raises :class:`UsageError` without a vault or key, or with another key, and
    :class:`IntegrityError` where the file is none."""
    path = root / FILE
    header = _header(path)
    key = _key(Path(header["key_file"]) if header["key_file"] else None)
    if not hmac.compare_digest(_check(key, header["salt"]), header["check"]):
        raise UsageError(
            "the key is not the one that this vault was made with",
            where=header["key_file"] or KEY_VARIABLE,
            next="Put the right key back from your backup",
        )
    return Vault(path, header["salt"], key)


def keeper(workspace: Workspace) -> Keeper | None:
    """A keeper where the workspace has a vault. Raises as :func:`opened` does: nothing is scrubbed past a vault."""
    return Keeper(opened(workspace.root)) if is_on(workspace.root) else None


def shown(workspace: Workspace, aliases: Collection[str]) -> list[Entry]:
    """The entries of the aliases, in their order; a name of several words is looked up word by word. The ledger hears of
    it first. Raises :class:`UsageError` for an alias that the vault does not hold."""
    vault = opened(workspace.root)
    by_alias = {entry.alias.casefold(): entry for entry in vault.entries().values()}
    wanted = [
        alias for given in aliases for alias in ([given] if given.casefold() in by_alias else given.split())
    ]
    if missing := [alias for alias in wanted if alias.casefold() not in by_alias]:
        raise UsageError(
            f"the vault holds no alias {missing[0]!r}",
            where=str(workspace.root / FILE),
            next="Give aliases as the scrubbed texts have them; `tilth vault fill` adds those of earlier scans",
        )
    workspace.ledger.event("vault opened", _mark(vault.salt), {"aliases": wanted})
    return [by_alias[alias.casefold()] for alias in wanted]


def exported(workspace: Workspace, path: Path) -> int:
    """Write every entry to a file that only its owner may read, as JSON lines, and return how many. The ledger hears of it
    first. Raises :class:`ConflictError` where the file is there and :class:`UsageError` inside the workspace."""
    if path.exists():
        raise ConflictError("the file is there already", where=str(path), next="Name another file")
    if path.resolve().is_relative_to(workspace.root.resolve()):
        raise UsageError(
            "values would lie beside their aliases", where=str(path), next="Name a file elsewhere"
        )
    vault = opened(workspace.root)
    entries = list(vault.entries().values())
    workspace.ledger.event("vault exported", _mark(vault.salt), {"entries": len(entries)})
    with storage_errors(path):
        _write_private(path, "".join(json.dumps(entry._asdict()) + "\n" for entry in entries))
    return len(entries)


def destroy(workspace: Workspace) -> int:
    """Take the vault away and return how many entries it held; no key is needed, and the key stays where it is."""
    path = workspace.root / FILE
    entries = held(workspace.root)
    workspace.ledger.event("vault destroyed", _mark(_header(path)["salt"]), {"entries": entries})
    with storage_errors(path):
        path.unlink()
    return entries


def held(root: Path) -> int:
    """How many entries the vault holds; no key is needed. Raises :class:`UsageError` where there is no vault."""
    _header(root / FILE)
    return len({_id(line) for _, line in _lines(root / FILE)})


def forget(root: Path, ids: Collection[Id], *, dry_run: bool = False) -> int:
    """Take entries out and return how many there were; no key is needed. Without a vault there are none."""
    path = root / FILE
    if not ids or not path.is_file():
        return 0
    with storage_errors(path), _locked(path):
        lines = [line for _, line in _lines(path)]
        kept = [line for line in lines if _id(line) not in ids]
        if not dry_run and len(kept) < len(lines):
            body = "".join(json.dumps(line) + "\n" for line in (_header(path), *kept))
            partial = path.with_name(".vault.partial")
            partial.unlink(missing_ok=True)
            _write_private(partial, body)
            os.replace(partial, path)
    return len(lines) - len(kept)


def _cipher_class() -> Callable[[bytes], Any]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise MissingExtra("vault", "cryptography") from None
    return AESGCM


def _cipher(key: bytes) -> Any:
    return _cipher_class()(key)


def _key(path: Path | None) -> bytes:
    """The key from a file, or from the environment where there is none."""
    said, where = os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    if path is not None:
        where = str(path)
        if not path.is_file():
            raise UsageError(
                "the key of the vault is missing", where=where, next="Put it back from your backup"
            )
        if path.stat().st_mode & 0o077:
            raise UsageError(
                "the key of the vault may be read by others", where=where, next=f"chmod 600 {path}"
            )
        said = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        key = bytes.fromhex(said)
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        what = "is missing" if not said else f"is not {_KEY_BYTES * 2} hexadecimal digits"
        raise UsageError(f"the key of the vault {what}", where=where, next="Give --key-file, or set it")
    return key


def _check(key: bytes, salt: str) -> str:
    """Tells a wrong key from a tampered entry, and nothing about the key."""
    return hmac.digest(key, f"{_FORMAT} key {salt}".encode(), "sha256").hex()


def _mark(salt: str) -> str:
    """By what name the ledger knows a vault."""
    return f"vault {salt[:8]}"


def _header(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UsageError(
            "the workspace has no vault", where=str(path), next="Make one: tilth vault enable --key-file FILE"
        )
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
        if header["format"] == _FORMAT and all(
            isinstance(header[k], str) for k in ("salt", "check", "key_file")
        ):
            return {name: header[name] for name in ("format", "salt", "check", "key_file")}
    except (ValueError, KeyError, TypeError):
        pass
    raise _tampered(path, 1)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The sealed entries with their line numbers. What a kill left of a last line is passed over: it is written again."""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.readline()
        for number, line in enumerate(file, 2):
            if line.endswith("\n"):
                yield number, _read(path, number, line)


def _read(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        told = json.loads(line)
        return {name: str(told[name]) for name in ("type", "hash", "sealed")}
    except (ValueError, KeyError, TypeError):
        raise _tampered(path, number) from None


def _id(line: dict[str, str]) -> Id:
    return line["type"], line["hash"]


def _tampered(path: Path, number: int) -> IntegrityError:
    return IntegrityError(
        "the vault is not as it was written",
        where=f"{path}:{number}",
        next="Put it back from your backup, or `tilth vault destroy` it and fill a new one",
    )


def _write_private(path: Path, text: str) -> None:
    """Write a new file that only its owner may read, synced."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        _append(file, text)


def _append(file: Any, text: str) -> None:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Nobody else writes the vault; what a kill left of a last line is taken away."""
    with path.with_name(path.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        yield
