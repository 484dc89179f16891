"""Artifacts: folders of files that exist as a whole or not at all, whatever is killed, full or failing.

An artifact is gathered where nobody looks (``.staging``), each file synced as it is written; its manifest,
with the size and SHA-256 of every file, is written last, and one rename then puts the whole folder in its
place. What has no manifest does not exist. Nothing here overwrites an artifact, follows a symbolic link,
leaves the root, or knows what the files mean. The interface is small on purpose: put, commit, list, path,
manifest, verify, remove.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from curation.errors import ConflictError, IntegrityError, UsageError, storage_errors

MANIFEST = "manifest.json"
ERASED = "erased.json"  # what was erased on request since; see curation.snapshot.erasing
SCHEMA = "tilth.artifact.1"
RECORDED = (
    "recorded"  # the manifest's key for times, hosts and versions: told, but not part of what is compared
)
_OURS = ("schema", "kind", "name", "files", "digest")
_STAGING = ".staging"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Names that Windows gives to devices, whatever their ending: a store must survive being copied there.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
_CHUNK = 1 << 20

Source = bytes | Path | Callable[["Sink"], object]
"""What a file is made of: its bytes, a file to copy, or a function that writes it."""


@dataclass(frozen=True)
class File:
    """What the manifest says of one file: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: str
    size: int


class Sink:
    """A file that is being written: enough of a binary file for ``pyarrow``, hashed as it goes.

    Writes are gathered to a mebibyte, so that a source may write a line at a time.
    """

    def __init__(self, handle: int) -> None:
        self._handle, self._hash, self._size = handle, hashlib.sha256(), 0
        self._held = bytearray()
        self.closed = False

    def write(self, data: bytes) -> int:
        """Take ``data``; returns its length."""
        self._held += data
        if len(self._held) >= _CHUNK:
            self.flush()
        return len(data)

    def flush(self) -> None:
        """Hand what is held to the operating system."""
        view = memoryview(bytes(self._held))
        self._held.clear()
        while view:
            done = os.write(self._handle, view)
            self._hash.update(view[:done])
            self._size += done
            view = view[done:]

    def tell(self) -> int:
        """Bytes taken so far."""
        return self._size + len(self._held)

    def close(self) -> None:
        """Nothing: whoever opened the file syncs and closes it."""

    def file(self) -> File:
        """The digest and the size of what was flushed."""
        return File(self._hash.hexdigest(), self._size)


def check_name(name: str, what: str = "name") -> str:
    """``name``, where it may name a folder here. Raises :class:`UsageError` for every other text."""
    if not _NAME.fullmatch(name) or _is_awkward(name):
        raise UsageError(
            f"{name!r} cannot be a {what}",
            next="Use up to 64 lower case letters, digits, '.', '_' or '-'; start with a letter or a digit",
        )
    return name


def check_path(relpath: str) -> str:
    """``relpath``, where it may name a file inside an artifact: plain parts joined by ``/``.

    Raises :class:`UsageError` for anything else, and for the manifest's own name.
    """
    parts = relpath.split("/")
    if relpath == MANIFEST or not all(_PART.fullmatch(part) and not _is_awkward(part) for part in parts):
        raise UsageError(
            f"{relpath!r} cannot be a file of an artifact",
            next="Use letters, digits, '.', '_' and '-', with '/' between folders",
        )
    return relpath


def _is_awkward(part: str) -> bool:
    return part.endswith(".") or part.split(".")[0].lower() in _DEVICES


class Store:
    """Artifacts below one folder of a local disk. ``kind`` is a shelf (``snapshots``, ``adapters``), ``name`` a book.

    An object belongs to one thread; any number of objects and processes may use one ``root``. Errors of the
    disk are raised as :class:`curation.errors.StorageFailed`, and leave nothing half-written in sight.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self._area: _Area | None = None
        self._staged: dict[tuple[str, str], dict[str, File]] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def put(self, kind: str, name: str, relpath: str, source: Source, *, expected: int | None = None) -> File:
        """Gather one file of an artifact to be: written and synced, and invisible until :meth:`commit`.

        ``expected`` is its size in bytes where the source cannot tell, for the message of a full disk. A
        second put of the same path replaces the first.
        """
        self._locate(kind, name)
        check_path(relpath)
        with storage_errors(self.root / kind / name, _size_of(source, expected)):
            path = self._open_area().folder(kind, name) / relpath
            path.parent.mkdir(parents=True, exist_ok=True)
            made = write_synced(path, source)
        self._staged.setdefault((kind, name), {})[relpath] = made
        return made

    def commit(self, kind: str, name: str, manifest: Mapping[str, Any]) -> Path:
        """Make the artifact exist, and return its folder: when this returns, it is on disk.

        ``manifest`` is any JSON object; what stands under its key ``recorded`` (times, versions) does not
        take part in comparisons. An artifact of this name with the same content is a success, whoever wrote
        it; with other content it stays, and :class:`ConflictError` is raised. Raises :class:`UsageError`
        where nothing was put. Whatever happens, what was put is forgotten: to try again, put it again.
        """
        final = self._locate(kind, name)
        files = self._staged.get((kind, name))
        if not files:
            raise UsageError("nothing was put, so there is nothing to commit", where=f"{kind}/{name}")
        try:
            text = render(kind, name, manifest, files)
            with storage_errors(final, len(text)):
                self._publish(kind, name, final, text)
        finally:
            self.discard(kind, name)
        return final

    def _publish(self, kind: str, name: str, final: Path, text: bytes) -> None:
        folder = self._open_area().folder(kind, name)
        write_synced(folder / MANIFEST, text)
        _sync_folders(folder)
        self._make_shelf(kind)
        if not _move(folder, final):
            _compare(final, text)
        # Also where another process moved it here: it may have died before its own sync.
        sync_folder(final.parent)

    def discard(self, kind: str, name: str) -> None:
        """Forget what was put under this name and not committed."""
        self._staged.pop((kind, name), None)
        if self._area is not None:
            shutil.rmtree(self._area.path / kind / name, ignore_errors=True)
        if not self._staged:
            self.close()

    def close(self) -> None:
        """Forget everything that was put and not committed. The object stays usable."""
        self._staged.clear()
        if self._area is not None:
            self._area.release()
            self._area = None

    def list(self, kind: str) -> builtins.list[str]:
        """The names of the artifacts of one kind, sorted; none where the shelf does not exist.

        A symbolic link is no artifact, whatever it points to.
        """
        shelf = self.root / check_name(kind, "kind")
        with storage_errors(shelf):
            if not shelf.is_dir():
                return []
            with os.scandir(shelf) as entries:
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            return sorted(name for name in folders if _NAME.fullmatch(name) and self.has(kind, name))

    def has(self, kind: str, name: str) -> bool:
        """Whether an artifact of this name exists."""
        with storage_errors(self.root):
            return (self._locate(kind, name) / MANIFEST).is_file()

    def path(self, kind: str, name: str) -> Path:
        """The folder of an artifact, to read. Raises :class:`UsageError` where there is none."""
        if not self.has(kind, name):
            raise UsageError(f"there is no {name!r} in {kind}", where=str(self.root))
        return self._locate(kind, name)

    def manifest(self, kind: str, name: str) -> dict[str, Any]:
        """The manifest of an artifact, checked against its own digest; see :func:`read_manifest`."""
        return read_manifest(self.path(kind, name), kind, name)

    def verify(self, kind: str, name: str, deep: bool = False) -> dict[str, Any]:
        """Check that an artifact is what was committed; returns its manifest. See :func:`verify_folder`."""
        return verify_folder(self.path(kind, name), deep=deep, kind=kind, name=name)

    def remove(self, kind: str, name: str) -> None:
        """Take an artifact away: one rename hides all of it, then its files go.

        Also removes a folder without a manifest that stands in the way. Raises :class:`UsageError` where
        nothing is.
        """
        folder = self._locate(kind, name)
        if not folder.is_dir():
            raise UsageError(f"there is no {name!r} in {kind}", where=str(self.root))
        with storage_errors(folder):
            os.rename(folder, self._open_area().path / f"removed-{secrets.token_hex(8)}")
            sync_folder(folder.parent)
        if not self._staged:
            self.close()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder for what need not survive, on the store's own disk; it goes when the block ends, or is swept."""
        with storage_errors(self.root):
            folder = self._open_area().path / f"scratch-{secrets.token_hex(8)}"
            folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if not self._staged:
                self.close()

    def sweep(self) -> int:
        """Delete what killed writers left behind; returns how many there were. Living writers are not touched."""
        with storage_errors(self.root):
            return _sweep(self.root / _STAGING)

    def _locate(self, kind: str, name: str) -> Path:
        shelf = self.root / check_name(kind, "kind")
        folder = shelf / check_name(name)
        with storage_errors(folder):
            for path in (shelf, folder):
                if path.is_symlink():
                    raise IntegrityError(
                        "a symbolic link stands where a folder belongs",
                        where=str(path),
                        next="Nothing behind it was read; delete the link",
                    )
        return folder

    def _open_area(self) -> _Area:
        if self._area is not None and self._area.owner != os.getpid():
            self._area = None  # a forked child leaves its parent's area alone
            self._staged.clear()
        if self._area is None:
            _make_durable(self.root)
            self._area = _Area.open(self.root / _STAGING)
        return self._area

    def _make_shelf(self, kind: str) -> None:
        (self.root / kind).mkdir(exist_ok=True)
        # Always, not only when made here: whoever made it may have died before its own sync.
        sync_folder(self.root)


@dataclass
class _Area:
    """One writer's private folder. A lock file beside it is held while the writer lives, so that others can tell."""

    path: Path
    lock: int
    owner: int = field(default_factory=os.getpid)

    @classmethod
    def open(cls, staging: Path) -> _Area:
        staging.mkdir(exist_ok=True)
        _sweep(staging)
        while True:
            path = staging / secrets.token_hex(8)
            lock = _take(path.with_suffix(".lock"), create=True)
            if lock is None:
                continue
            try:
                path.mkdir()
            except BaseException:
                os.close(lock)
                raise
            return cls(path, lock)

    def folder(self, kind: str, name: str) -> Path:
        folder = self.path / kind / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def release(self) -> None:
        """Delete the folder. What cannot be deleted now, the next writer sweeps: no error is raised."""
        shutil.rmtree(self.path, ignore_errors=True)
        try:
            os.unlink(self.path.with_suffix(".lock"))
        except OSError:
            pass
        finally:
            os.close(self.lock)


def _take(path: Path, *, create: bool) -> int | None:
    """An exclusive lock on ``path``, or ``None`` where a living writer holds it or it is gone."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    try:
        handle = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A sweeper may have unlinked the file between the opening and the lock: then this lock guards
        # nothing.
        if os.path.samestat(os.fstat(handle), os.stat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def _sweep(staging: Path) -> int:
    if not staging.is_dir():
        return 0
    names = {name.removesuffix(".lock") for name in os.listdir(staging)}
    return sum(_sweep_one(staging / name) for name in names)


def _sweep_one(path: Path) -> bool:
    """Delete one dead writer's folder and lock. A writer locks before it makes its folder, so no lock means dead."""
    lock_path = path.with_suffix(".lock")
    lock = _take(lock_path, create=False)
    if lock is None and lock_path.exists():
        return False
    try:
        shutil.rmtree(path, ignore_errors=True)
        lock_path.unlink(missing_ok=True)
    finally:
        if lock is not None:
            os.close(lock)
    return True


def render(kind: str, name: str, manifest: Mapping[str, Any], files: Mapping[str, File]) -> bytes:
    """The one spelling of a manifest: sorted keys, two spaces, and a digest of everything else in it.

    Raises :class:`UsageError` where ``manifest`` uses a key of the store's own, or cannot be JSON.
    """
    taken = sorted(set(manifest) & set(_OURS))
    if taken:
        raise UsageError(f"a manifest may not set {', '.join(taken)}", where=f"{kind}/{name}")
    listed = {path: {"sha256": file.sha256, "size": file.size} for path, file in files.items()}
    body = {**manifest, "schema": SCHEMA, "kind": kind, "name": name, "files": listed}
    try:
        return _spell({**body, "digest": _digest(body)})
    except TypeError as error:
        raise UsageError(
            f"the manifest cannot be written as JSON: {error}", where=f"{kind}/{name}"
        ) from error


def _spell(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_manifest(folder: Path, kind: str | None = None, name: str | None = None) -> dict[str, Any]:
    """The manifest of an artifact's folder, wherever it stands.

    Raises :class:`IntegrityError` where it is missing, unreadable, not byte for byte what was written, or of
    another kind or name than asked for.
    """
    path = folder / MANIFEST
    with storage_errors(path):
        if path.is_symlink() or not path.is_file():
            raise _broken(path, "there is no manifest, so there is no artifact")
        raw = path.read_bytes()
    try:
        found = orjson.loads(raw)
        body = {key: value for key, value in found.items() if key != "digest"}
        honest = (
            found["digest"] == _digest(body) and _spell(found) == raw and isinstance(found["files"], dict)
        )
    except (ValueError, KeyError, AttributeError, TypeError):
        honest = False
    if not honest:
        raise _broken(path, "the manifest is not what was written")
    if found["schema"] != SCHEMA:
        raise UsageError(
            f"the manifest has schema {found['schema']!r}; this version reads {SCHEMA!r}", where=str(path)
        )
    if (kind or found["kind"]) != found["kind"] or (name or found["name"]) != found["name"]:
        raise _broken(path, f"this is {found['kind']}/{found['name']}, not what was asked for")
    return found


def verify_folder(
    folder: Path, *, deep: bool = True, kind: str | None = None, name: str | None = None
) -> dict[str, Any]:
    """Check a folder against its manifest, and return the manifest.

    Missing, added and resized files are found always, changed bytes when ``deep``. Raises
    :class:`IntegrityError` that names the first file that is wrong.
    """
    manifest = read_manifest(folder, kind, name)
    with storage_errors(folder):
        try:
            found = dict(_walk(folder))
        except FileNotFoundError as error:
            raise _broken(folder, "the artifact was removed while it was read") from error
        erased = read_erased(folder)["files"] if ERASED in found else {}
        for extra in sorted(set(found) - set(manifest["files"]) - {MANIFEST, ERASED}):
            raise _broken(folder / extra, "the file is not in the manifest")
        for relpath, stated in sorted(manifest["files"].items()):
            try:
                _check_file(folder, relpath, found.get(relpath), erased.get(relpath, stated), deep)
            except IntegrityError:
                # Killed between the list and the file: the file is still the one that was written.
                if relpath not in erased:
                    raise
                _check_file(folder, relpath, found.get(relpath), stated, deep)
    return manifest


def read_erased(folder: Path) -> dict[str, dict[str, Any]]:
    """What was erased of an artifact since it was committed: ``rows`` by record, and ``files`` as they are now.

    Both are empty where nothing was. Raises :class:`IntegrityError` for a list that cannot be read.
    """
    path = folder / ERASED
    if not path.is_file() or path.is_symlink():
        return {"rows": {}, "files": {}}
    try:
        told = orjson.loads(path.read_bytes())
        rows, files = told["rows"], told["files"]
        fine = all(isinstance(d, list) for d in rows.values()) and all("sha256" in f for f in files.values())
    except (ValueError, KeyError, AttributeError, TypeError):
        fine = False
    if not fine:
        raise _broken(path, "the list of what was erased cannot be read")
    return {"rows": rows, "files": files}


def _check_file(folder: Path, relpath: str, size: int | None, stated: Mapping[str, Any], deep: bool) -> None:
    path = folder / relpath
    if size is None:
        raise _broken(path, "the file is missing")
    if size != stated["size"]:
        raise _broken(path, f"the file has {size:,} bytes; {stated['size']:,} were written")
    if deep and file_sha256(path) != stated["sha256"]:
        raise _broken(path, "the file's bytes have changed since they were written")


def _walk(folder: Path, below: str = "") -> Iterator[tuple[str, int]]:
    """Every file under ``folder`` with its size. Raises :class:`IntegrityError` for links and devices."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda e: e.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield f"{below}{entry.name}", entry.stat(follow_symlinks=False).st_size
            else:
                raise _broken(Path(entry.path), "this is neither a file nor a folder")


def _broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        what, where=str(path), next="Do not use it; bring it back from a backup or make it again"
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_synced(path: Path, source: Source) -> File:
    """Write a file that nobody looks for yet, and sync it; never follows a link.

    Raises ``OSError``, and then frees the space that the part had taken.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o644)
    try:
        sink = Sink(handle)
        _fill(sink, source)
        sink.flush()
        os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return sink.file()


def write_atomic(path: Path, source: Source) -> File:
    """Write a file of the user's so that its name holds the old content or the whole new one, never a part.

    Raises :class:`curation.errors.StorageFailed`; what was there before is then untouched.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with storage_errors(path, _size_of(source, None)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            made = write_synced(partial, source)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    return made


def _fill(sink: Sink, source: Source) -> None:
    if isinstance(source, bytes):
        sink.write(source)
    elif isinstance(source, Path):
        with source.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sink.write(chunk)
    else:
        source(sink)


def _size_of(source: Source, expected: int | None) -> int | None:
    if isinstance(source, bytes):
        return len(source)
    return source.stat().st_size if isinstance(source, Path) else expected


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk: a rename or a new file is not durable before this."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folders(folder: Path) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _sync_folders(Path(entry.path))
    sync_folder(folder)


def _make_durable(folder: Path) -> None:
    """Make a folder and the missing ones above it, each synced into its parent."""
    if folder.is_dir():
        return
    _make_durable(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _move(folder: Path, final: Path) -> bool:
    """Put ``folder`` in its place; ``False`` where something stands there. A rename of folders never overwrites one."""
    try:
        os.rename(folder, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def _compare(final: Path, text: bytes) -> None:
    """Raise unless the artifact at ``final`` is whole and says the same as the manifest ``text``."""
    if not (final / MANIFEST).is_file():
        raise ConflictError(
            "a folder without a manifest stands in the way",
            where=str(final),
            next="Look at it, then remove it",
        )
    there, ours = verify_folder(final), orjson.loads(text)
    for manifest in (there, ours):
        del manifest["digest"]
        manifest.pop(RECORDED, None)
    if there != ours:
        raise ConflictError(
            "an artifact of this name exists with other content",
            where=str(final),
            next="It was left as it is; choose another name",
        )
