"""A PostgreSQL server for the length of a test session: its own cluster, its own port, thrown away at the end.

It uses the server binaries of the machine and listens on the loopback address only. Nothing here touches a server that
already runs.
"""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Tests want speed, not durability: the cluster never outlives them. A benchmark pays for what its users pay for.
_SETTINGS = ("listen_addresses=127.0.0.1", "max_connections=200")
_CARELESS = ("fsync=off", "full_page_writes=off", "shared_buffers=128MB", "max_wal_size=2GB")
_DURABLE = ("shared_buffers=1GB", "max_wal_size=4GB")  # what a server gets that somebody has set up


class PostgresMissing(RuntimeError):
    """There is no server to start here; the message says what is missing."""


def binaries() -> Path:
    """The folder of the newest server's ``initdb`` and ``postgres``."""
    folders = [p.parent for p in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    on_path = shutil.which("initdb")
    folders += [Path(on_path).resolve().parent] if on_path else []
    if not folders:
        raise PostgresMissing(
            "PostgreSQL's server binaries are not installed (Debian: apt-get install postgresql)"
        )
    return max(folders, key=lambda p: [int(n) for n in re.findall(r"\d+", str(p))])


def _servant() -> str | None:
    """The user to run the server as: ``None`` for the current one; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in names:
            return name
    raise PostgresMissing("PostgreSQL refuses to run as root, and there is no user to run it as")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(*, durable: bool = False) -> Iterator[str]:
    """Start a cluster and give the URL of its database; stop it and remove its files afterwards.

    ``durable`` keeps what a commit promises, as a server that is not for tests does.
    """
    programs, user = binaries(), _servant()
    folder = Path(tempfile.mkdtemp(prefix="tilth-pg-"))
    log = (folder / "server.log").open("wb")
    try:
        folder.chmod(0o755)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if user:
            shutil.chown(data, user)
        initdb = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            "tilth",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "-N",
        ]
        made = subprocess.run(initdb, user=user, cwd="/", capture_output=True, text=True, env=_environment())
        if made.returncode:
            raise PostgresMissing(f"initdb failed: {made.stderr.strip()[-300:]}")
        port = _free_port()
        options = [
            part
            for setting in (
                *_SETTINGS,
                *(_DURABLE if durable else _CARELESS),
                f"port={port}",
                "unix_socket_directories=",
            )
            for part in ("-c", setting)
        ]
        running = subprocess.Popen(
            [programs / "postgres", "-D", data, *options],
            user=user,
            cwd="/",
            stdout=log,
            stderr=log,
            env=_environment(),
        )
        try:
            url = f"postgresql+psycopg://tilth@127.0.0.1:{port}/postgres"
            _wait(running, port, folder / "server.log")
            yield url
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait(10)
    finally:
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}


def _wait(running: subprocess.Popen[bytes], port: int, log: Path, seconds: float = 60) -> None:
    import psycopg

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if running.poll() is not None:
            raise PostgresMissing(f"the server ended at once: {log.read_text(errors='replace')[-300:]}")
        try:
            psycopg.connect(
                host="127.0.0.1", port=port, user="tilth", dbname="postgres", connect_timeout=2
            ).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise PostgresMissing(f"the server did not answer within {seconds:.0f} seconds")


def fresh_schema(url: str) -> str:
    """The URL of an empty schema in the server's database: a database of its own for each test, made in a moment."""
    import psycopg

    name = f"t_{secrets.token_hex(6)}"
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')
    return f"{url}?options=-csearch_path%3D{name}"


def drop_schema(url: str) -> None:
    """Remove what :func:`fresh_schema` made, with everything in it."""
    import psycopg

    base, _, name = url.partition("?options=-csearch_path%3D")
    with psycopg.connect(base.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')
