"""Faults on demand: a function runs in a child process whose Nth file operation is killed, fails, or is torn.

``Forks`` starts one server process that forks a child for every call, so that a sweep over a hundred
fail-points costs a hundred forks and not a hundred interpreters. The child's file operations pass through
wrappers that count and report them before they happen. ``Disk`` replays a recorded run as a disk that loses
what was not synced.
"""

from __future__ import annotations

import base64
import builtins
import errno
import importlib
import io
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
OPS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


@dataclass(frozen=True)
class Fault:
    """What to do at operation ``at`` (from 1): ``kill`` before it, ``torn`` (half of a write, then kill),
    ``short`` (half of a write), ``fail`` with ``errno``. ``record`` reports data too; ``after`` kills from
    outside after seconds.
    """

    do: str = "none"
    at: int = 0
    errno: int = 0
    after: float = 0


_NONE = Fault()


@dataclass(frozen=True)
class Outcome:
    """How a call ended: ``ok`` with ``value``, ``raised`` with the class and message, or ``killed``; and its operations.

    Each operation is a dictionary with ``op`` and ``path``; the last one of a killed call is where it was
    killed.
    """

    status: str
    value: Any = None
    error: str = ""
    message: str = ""
    exit_code: int = 0
    ops: list[dict[str, Any]] = field(default_factory=list)
    hit: bool = False

    @property
    def where(self) -> str:
        """The operation and the kind of file at which the call ended."""
        if not self.ops:
            return "before the first operation"
        return f"{self.ops[-1]['op']} {kind_of(self.ops[-1]['path'])}"


def kind_of(path: str) -> str:
    """What a path of a store is, without the parts that differ from run to run."""
    name = PurePosixPath(path).name
    if name.endswith((".lock", ".parquet", ".arrow", ".md", ".json")):
        return f"*{PurePosixPath(path).suffix}"
    return name if name in ("data", "snapshots", ".staging") else "folder"


class Forks:
    """A server that forks one child per call of a function named ``module:function``; use it in a ``with`` statement."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.curation.faults"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def run(self, call: str, fault: Fault = _NONE, **arguments: Any) -> Outcome:
        """Run ``call(**arguments)`` in a fresh child under ``fault``. Arguments and results are JSON."""
        self.send(call, fault, **arguments)
        return self.receive()

    def send(self, call: str, fault: Fault = _NONE, **arguments: Any) -> None:
        """Start a call and do not wait for it; one at a time per server."""
        assert self._server.stdin is not None
        request = {"call": call, "arguments": arguments, "fault": vars(fault)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()

    def receive(self) -> Outcome:
        """The outcome of the call that was sent."""
        assert self._server.stdout is not None
        return Outcome(**json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Answer requests until the input ends."""
    pa.array([""])  # imports pandas where there is one: half a second that no child should pay
    for line in sys.stdin:
        request = json.loads(line)
        module, name = request["call"].split(":")
        function = getattr(importlib.import_module(module), name)
        outcome = _fork(function, request["arguments"], Fault(**request["fault"]))
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


def _fork(function: Callable[..., Any], arguments: dict[str, Any], fault: Fault) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(function, arguments, fault, writer)
    os.close(writer)
    raw = _collect(reader, child, fault.after)
    os.waitpid(child, 0)
    # A killed child may have been writing its last line.
    lines = [json.loads(line) for line in raw.split(b"\n")[:-1]]
    end = next((line["end"] for line in lines if "end" in line), {"status": "killed"})
    return {
        **end,
        "ops": [line for line in lines if "op" in line],
        "hit": any("hit" in line for line in lines),
    }


def _collect(reader: int, child: int, after: float) -> bytes:
    """What the child reports until it ends; it is killed once ``after`` seconds have passed since its first word."""
    parts = []
    deadline = None
    while True:
        patience = max(0.0, deadline - time.monotonic()) if deadline is not None else None
        if deadline is not None and not select.select([reader], [], [], patience)[0]:
            os.kill(child, signal.SIGKILL)
            deadline = None
            continue
        part = os.read(reader, 1 << 16)
        if not part:
            os.close(reader)
            return b"".join(parts)
        if after and not parts:
            deadline = time.monotonic() + after
        parts.append(part)


def _child(function: Callable[..., Any], arguments: dict[str, Any], fault: Fault, pipe: int) -> NoReturn:
    write = os.write

    def tell(**what: Any) -> None:
        write(pipe, json.dumps(what).encode() + b"\n")

    put_back = inject(fault, tell)
    tell(start=True)
    try:
        end = {"status": "ok", "value": function(**arguments)}
        if fault.do == "record":
            tell(op="acknowledged", path="")
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        end = {"status": "raised", "error": type(error).__name__, "message": str(error), "exit_code": code}
    put_back()
    tell(end=end)
    os._exit(0)


def inject(fault: Fault, tell: Callable[..., None]) -> Callable[[], None]:
    """Wrap the file operations of this process; returns the function that takes the wrappers away."""
    real: list[tuple[Any, str, Any]] = [(os, name, getattr(os, name)) for name in OPS]
    real += [(io, "open", io.open), (builtins, "open", builtins.open)]
    count = 0

    def wrapped(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            mine = count == fault.at
            tell(**_described(op, args, kwargs, fault.do == "record"))
            if mine and (fault.do == "kill" or (fault.do == "torn" and op != "write")):
                os.kill(os.getpid(), signal.SIGKILL)
            if mine and fault.do == "fail":
                tell(hit=True)
                raise OSError(fault.errno, os.strerror(fault.errno), str(args[0]))
            if mine and fault.do in ("torn", "short") and op == "write":
                done = function(args[0], bytes(args[1])[: len(args[1]) // 2])
                if fault.do == "short":
                    tell(hit=True)
                    return done
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name, function in real:
        setattr(owner, name, wrapped(name, function))

    def put_back() -> None:
        for owner, name, function in real:
            setattr(owner, name, function)

    return put_back


def _described(op: str, args: tuple[Any, ...], kwargs: dict[str, Any], with_data: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"op": op, "path": _path(args[0], kwargs)}
    if op in ("rename", "replace"):
        found["to"] = _path(args[1], {})
    if op == "write" and with_data:
        found["data"] = base64.b64encode(bytes(args[1])).decode()
    if op == "open":
        flags = args[1] if len(args) > 1 and isinstance(args[1], int) else 0
        found |= {"creates": bool(flags & os.O_CREAT), "truncates": bool(flags & os.O_TRUNC)}
    return found


def _path(what: Any, kwargs: dict[str, Any]) -> str:
    """The path of a file operation's first argument: a path, a descriptor, or a name below ``dir_fd``."""
    if isinstance(what, int):
        return os.readlink(f"/proc/self/fd/{what}")
    base = kwargs.get("dir_fd")
    return (
        os.path.join(_path(base, {}), os.fspath(what))
        if base is not None
        else os.path.abspath(os.fspath(what))
    )


class Node:
    """A file or folder on the simulated disk: what programs see, and what a power failure leaves."""

    def __init__(self, folder: bool) -> None:
        self.entries: dict[str, Node] | None = {} if folder else None
        self.safe_entries: dict[str, Node] = {}
        self.data, self.safe_data = b"", b""

    def sync(self) -> None:
        """What fsync promises: of a file its bytes, of a folder its names."""
        if self.entries is not None:
            self.safe_entries = dict(self.entries)
        self.safe_data = self.data


class Disk:
    """A disk that keeps a recorded run's operations, and can be asked what a power failure would leave of them.

    ``root`` is the folder below which the run worked; everything in it before counts as safe.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.top = self._loaded(root)
        self.acknowledged = False

    def _loaded(self, path: Path) -> Node:
        node = Node(path.is_dir())
        if node.entries is not None:
            node.entries.update((child.name, self._loaded(child)) for child in path.iterdir())
        else:
            node.data = path.read_bytes()
        node.sync()
        return node

    def _parts(self, path: str) -> tuple[str, ...]:
        return PurePosixPath(path).relative_to(self.root).parts

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.top
        for part in self._parts(path):
            node = (node.entries or {}).get(part) if node is not None else None
        return node

    def _folder(self, path: str) -> dict[str, Node]:
        parent = self._find(str(PurePosixPath(path).parent))
        assert parent is not None, path
        assert parent.entries is not None, path
        return parent.entries

    def apply(self, op: dict[str, Any]) -> None:
        """Take one recorded operation. What failed when it was recorded (a folder that was there) changes nothing."""
        kind, path = op["op"], op["path"]
        if kind == "acknowledged":
            self.acknowledged = True
        elif not PurePosixPath(path.removesuffix(" (deleted)")).is_relative_to(self.root):
            return
        elif kind == "fsync":
            node = self.top if PurePosixPath(path) == PurePosixPath(self.root) else self._find(path)
            assert node is not None, path
            node.sync()
        elif kind == "mkdir":
            if self._find(str(PurePosixPath(path).parent)) is not None:
                self._folder(path).setdefault(PurePosixPath(path).name, Node(folder=True))
        elif kind == "open":
            if op["creates"]:
                node = self._folder(path).setdefault(PurePosixPath(path).name, Node(folder=False))
                node.data = b"" if op["truncates"] else node.data
        elif kind == "write":
            node = self._find(path)
            assert node is not None, path
            node.data += base64.b64decode(op["data"])
        elif kind in ("rename", "replace"):
            node = self._folder(path).pop(PurePosixPath(path).name)
            self._folder(op["to"])[PurePosixPath(op["to"]).name] = node
        elif kind in ("unlink", "rmdir"):
            self._folder(path).pop(PurePosixPath(path).name, None)

    def left(self, policy: str, draw: random.Random) -> dict[str, Any]:
        """The tree that a power failure leaves now: names to bytes or to trees.

        ``dropped``: only what was synced. ``names``: every name, but no unsynced byte. ``torn``: every name,
        and of unsynced bytes some blocks of 512. ``kept``: everything. ``mixed``: of every unsynced name and
        file one or the other, at random: the disk's cache may write in any order.
        """
        return self._tree(self.top, policy, draw)

    def _tree(self, node: Node, policy: str, draw: random.Random) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted({*(node.entries or {}), *node.safe_entries}):
            child = self._choose(node, name, policy, draw)
            if child is not None:
                found[name] = (
                    self._tree(child, policy, draw)
                    if child.entries is not None
                    else _bytes(child, policy, draw)
                )
        return found

    def _choose(self, node: Node, name: str, policy: str, draw: random.Random) -> Node | None:
        now, safe = (node.entries or {}).get(name), node.safe_entries.get(name)
        if policy == "dropped" or (policy == "mixed" and draw.random() < 0.5):
            return safe
        return now


def _bytes(node: Node, policy: str, draw: random.Random) -> bytes:
    if node.data == node.safe_data or policy == "kept":
        return node.data
    if policy in ("dropped", "names"):
        return node.safe_data
    keep = 512 * draw.randint(0, len(node.data) // 512)
    return max(node.safe_data, node.data[:keep], key=len)


def lay_out(tree: dict[str, Any], folder: Path) -> None:
    """Make the files of a tree below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, what in tree.items():
        if isinstance(what, dict):
            lay_out(what, folder / name)
        else:
            (folder / name).write_bytes(what)


def power_failures(
    root: Path, ops: list[dict[str, Any]], seed: int = 0, *, acknowledged: bool = False
) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every distinct tree that a power failure at any moment of the run may leave, and whether it was acknowledged.

    With ``acknowledged``, only failures after the acknowledgement.
    """
    disk, draw = Disk(root), random.Random(seed)
    seen = set()
    for op in [*ops, None]:
        for policy in ("dropped", "names", "torn", "kept", "mixed", "mixed", "mixed"):
            if acknowledged and not disk.acknowledged:
                continue
            tree = disk.left(policy, draw)
            state = (repr(tree), disk.acknowledged)
            if state not in seen:
                seen.add(state)
                yield tree, disk.acknowledged
        if op is not None:
            disk.apply(op)


STORAGE_ERRORS = {
    errno.ENOSPC: ("open", "write", "fsync", "rename", "mkdir"),
    errno.EIO: OPS,
    errno.EMFILE: ("open",),
    errno.EROFS: ("open", "rename", "mkdir", "unlink", "rmdir"),
}
"""Each error of a disk, and the operations that can meet it."""


if __name__ == "__main__":
    serve()
