"""The service beside a Label Studio server: webhook receiver and ML backend."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun


@app.command(epilog="Example: tilth serve --register")
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 9090,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    every: Annotated[
        float, typer.Option(min=1, help="Seconds between two polls that nobody asked for.")
    ] = 60,
    register: Annotated[
        bool, typer.Option("--register", help="Tell the server where we are: webhook and ML backends.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Wait for answers and propose some: Label Studio's webhook wakes the poll, its ML backend is the current adapter."""
    from apps import serve as service_module
    from apps.label_studio_server import secret
    from curation.config import find_root
    from curation.people import connection

    root = find_root(session.root).resolve()
    url = f"http://{host}:{port}"
    told: dict[str, Any] = {"url": url, "webhook": f"{url}/webhook", "dry_run": dry_run}
    if dry_run:
        session.report(told)
        return
    key = secret(root / connection.SECRET_FILE)
    with session.workspace() as opened:
        hosts = service_module.hosts_of(connection.server_url(opened))
        service = service_module.Service(root, session.actor, key, hosts)
        if register:
            told |= connection.register(opened, url, key)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    session.report(told, f"serving at {url}; stop with Ctrl-C")
    service_module.run(service, host, port, every, connect=register)
