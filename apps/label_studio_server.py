"""Start a real Label Studio on this machine: ``python -m apps.label_studio_server``.

The server lives in an environment of its own (``make label-studio``), because it pins packages that Tilth
needs newer. It listens on the loopback only, sends nothing out, lets nobody sign up without an invitation,
and gets an account whose token and password come from the environment (LABEL_STUDIO_USERNAME, LABEL_STUDIO_PASSWORD,
LABEL_STUDIO_USER_TOKEN) or are made here, and are kept in files that only their owner can read. It refuses any other
address.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from curation.errors import RemoteUnavailable, UsageError, storage_errors

ENVIRONMENT = ".venv-label-studio"
USER = "admin@localhost.localdomain"
SETTINGS = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "DISABLE_SIGNUP_WITHOUT_LINK": "true",
    # Our webhook and ML backend stand on this machine, and the server would refuse every address of it. It listens on
    # the loopback alone, so whoever could use it to reach this machine stands on it already.
    "SSRF_PROTECTION_ENABLED": "false",
    "ML_BLOCK_LOCAL_IP": "false",
    # The server would report usage, crashes and its version to its makers.
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
}


@dataclass(frozen=True)
class Server:
    """A running server: where it answers, who may log in, where its files are, and its process where we started it."""

    url: str
    user: str
    data: Path
    pid: int = 0

    @property
    def token_file(self) -> Path:
        """Holds the API token; mode 0600."""
        return self.data / "token"

    @property
    def password_file(self) -> Path:
        """Holds the password of :attr:`user` for the browser; mode 0600."""
        return self.data / "password"

    @property
    def token(self) -> str:
        """The API token."""
        return self.token_file.read_text(encoding="ascii").strip()

    @property
    def password(self) -> str:
        """The password for the browser."""
        return self.password_file.read_text(encoding="ascii").strip()


def executable(environment: Path) -> Path:
    """The server's program. Raises :class:`UsageError` where the environment has not been made."""
    program = environment / "bin" / "label-studio"
    if not program.is_file():
        raise UsageError(
            "Label Studio is not installed", where=str(environment), next="Run `make label-studio`"
        )
    return program


def check_loopback(host: str) -> str:
    """``host``, if it names this machine's loopback; anything else raises :class:`UsageError`."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise UsageError(
            "refusing an address that other machines can reach",
            where=host,
            next="Use 127.0.0.1, and a tunnel or a proxy with a login where others must connect",
        )
    return str(address)


def free_port(port: int = 0, host: str = "127.0.0.1") -> int:
    """``port``, or one that is free for 0. Raises :class:`UsageError` where somebody listens on it already.

    The server would then take the next free port in silence, and we would speak to a stranger.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise UsageError(
                f"port {port} is taken", where=host, next="Choose another one, or 0 for any that is free"
            ) from None
        return int(probe.getsockname()[1])


def secret(path: Path, size: int = 20, given: str = "") -> str:
    """The secret kept in ``path``; made once, from ``size`` random bytes, readable by its owner alone.

    One that is ``given`` takes the place of whatever was kept.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if given:
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            path.chmod(0o600)
            return path.read_text(encoding="ascii").strip()
        with os.fdopen(handle, "w", encoding="ascii") as out:
            out.write((given or secrets.token_hex(size)) + "\n")
    return path.read_text(encoding="ascii").strip()


def environment_variables(data: Path, token: str, password: str, user: str = USER) -> dict[str, str]:
    """The server's settings. Secrets travel here and never on the command line, where every process sees
    them.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith("LABEL_STUDIO_")}
    return own | SETTINGS | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(data),
        "LABEL_STUDIO_USERNAME": user,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_USER_TOKEN": token,
    }  # fmt: skip


@contextmanager
def running(
    data: Path,
    *,
    environment: Path = Path(ENVIRONMENT),
    host: str = "127.0.0.1",
    port: int = 0,
    seconds: float = 180,
) -> Iterator[Server]:
    """Start the server with its files below ``data``, wait until it answers, and stop it at the end.

    ``port`` 0 takes a free one; ``seconds`` is the longest wait. Raises :class:`UsageError` for a missing
    program or an address off the loopback, :class:`RemoteUnavailable` where the server ends or does not
    answer in time.
    """
    host = check_loopback(host)
    port = free_port(port, host)
    program, data = executable(environment), data.resolve()
    user = os.environ.get("LABEL_STUDIO_USERNAME") or USER
    server = Server(f"http://{f'[{host}]' if ':' in host else host}:{port}", user, data)
    token = secret(server.token_file, given=os.environ.get("LABEL_STUDIO_USER_TOKEN", ""))
    password = secret(server.password_file, given=os.environ.get("LABEL_STUDIO_PASSWORD", ""))
    variables = environment_variables(data, token, password, user)
    command = [str(program), "start", "--no-browser", "--internal-host", host, "--port", str(port)]
    (data / ".gitignore").write_text("*\n", encoding="ascii")  # the folder holds secrets and people's work
    with (data / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _await_health(server, process, seconds)
            yield replace(server, pid=process.pid)
        finally:
            _stop(process)


def _await_health(server: Server, process: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RemoteUnavailable(
                f"Label Studio ended with code {process.returncode}: {_tail(server.data / 'server.log')}",
                where=str(server.data / "server.log"),
                next="Read the log; a port in use and a data folder of a newer version are the usual reasons",
            )
        if _healthy(server.url):
            return
        time.sleep(0.5)
    raise RemoteUnavailable(
        f"Label Studio did not answer within {seconds:.0f} s",
        where=server.url,
        next=f"Read {server.data / 'server.log'}, or wait longer with --wait SECONDS",
    )


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log: Path, lines: int = 3) -> str:
    return " | ".join(log.read_text(encoding="utf-8", errors="replace").split("\n")[-lines - 1 :]).strip(" |")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def greeting(server: Server) -> str:
    """How to reach the server. Holds the paths of the secrets, not the secrets."""
    return f"""Label Studio answers at {server.url}
  log in as  {server.user}
  password   cat {server.password_file}
  connect    export LABEL_STUDIO_API_KEY="$(cat {server.token_file})"
             and write in tilth.toml:  [label_studio]  url = "{server.url}"
Annotators join by the invitation link on its Organization page. Stop the server with Ctrl-C."""


def main(arguments: list[str] | None = None) -> int:
    """Run the server in the foreground until it is interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m apps.label_studio_server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--data", type=Path, default=Path(".label-studio"), help="folder for its database and secrets"
    )
    parser.add_argument(
        "--environment", type=Path, default=Path(ENVIRONMENT), help="the server's own environment"
    )
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument(
        "--wait", type=float, default=180, metavar="SECONDS", help="how long it may take to start"
    )
    given = parser.parse_args(arguments)
    print("Starting Label Studio; the first start takes about a minute.", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the server is stopped with us
    try:
        with running(
            given.data, environment=given.environment, host=given.host, port=given.port, seconds=given.wait
        ) as server:
            print(greeting(server), flush=True)
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        return 130
    except (UsageError, RemoteUnavailable) as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
