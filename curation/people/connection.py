"""The connection to a Label Studio server looked at, and made known to it: token, versions, webhook, ML backends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from curation.errors import TilthError, UsageError
from curation.health import Check
from curation.people.through import server
from curation.workspace import Workspace

SECRET_FILE = ".tilth/webhook.secret"
HEADER = "X-Tilth-Secret"
TESTED = ("1.22", "1.23")  # versions of the server that the tests have run against, by their beginning
USER = "tilth"


def server_url(workspace: Workspace) -> str:
    """Where the server is; empty where none is configured."""
    return os.environ.get("LABEL_STUDIO_URL") or workspace.config.label_studio.url


def token_kind(token: str) -> str:
    """``personal`` for a JSON Web Token, ``legacy`` for any other, ``none`` for an empty one."""
    if not token.strip():
        return "none"
    return "personal" if token.count(".") == 2 and token.startswith("ey") else "legacy"


def examine(workspace: Workspace) -> list[Check]:
    """What ``tilth doctor`` says of the server; nothing where none is configured."""
    url = server_url(workspace)
    if not url:
        return [
            Check("label studio", "note", "none is configured: make label-studio, or use --annotator files")
        ]
    return list(_examine(workspace, url))


def _examine(workspace: Workspace, url: str) -> Iterator[Check]:
    kind = token_kind(os.environ.get("LABEL_STUDIO_API_KEY", ""))
    try:
        with server(workspace) as client:
            who = client.me()
            yield Check("label studio", "good", f"{url} knows us as {who.get('email') or who['id']}")
            yield _token(kind, client.token_settings())
            yield _version(client.version())
            yield from _webhooks(client.webhooks())
    except TilthError as error:
        yield Check("label studio", "bad", str(error))


def _token(kind: str, settings: dict[str, Any]) -> Check:
    taken = [
        name
        for name, key in (("personal", "api_tokens_enabled"), ("legacy", "legacy_api_tokens_enabled"))
        if settings.get(key)
    ]
    return Check("label studio token", "good", f"{kind}; the server takes {' and '.join(taken) or 'neither'}")


def _version(version: str) -> Check:
    tested = version.startswith(TESTED)
    return Check(
        "label studio version",
        "good" if tested else "note",
        version if tested else f"{version}; tested with {', '.join(TESTED)}",
    )


def _webhooks(hooks: list[dict[str, Any]]) -> Iterator[Check]:
    """A webhook that failed too often is switched off by the server, and nobody is told."""
    ours = [hook for hook in hooks if HEADER in (hook.get("headers") or {})]
    if not ours:
        yield Check("webhook", "note", "none; answers come at the next poll. Add it: tilth serve --register")
    for hook in ours:
        alive = bool(hook.get("is_active"))
        yield Check(
            "webhook",
            "good" if alive else "bad",
            hook["url"] if alive else f"{hook['url']} was switched off: tilth serve --register",
        )


def register(workspace: Workspace, url: str, secret: str) -> dict[str, Any]:
    """Make the webhook of the service at ``url`` known to the server, once.

    One that is there and alive already is left as it is; one of ours that is not is replaced.
    """
    if not server_url(workspace):
        raise UsageError("no Label Studio is configured", where="tilth serve --register")
    with server(workspace) as client:
        wanted = f"{url}/webhook"
        ours = [h for h in client.webhooks() if HEADER in (h.get("headers") or {})]
        good = [
            h for h in ours if h["url"] == wanted and h.get("is_active") and h["headers"][HEADER] == secret
        ]
        for hook in ours:
            if hook not in good[:1]:
                client.delete_webhook(int(hook["id"]))
        if not good:
            client.add_webhook(wanted, {HEADER: secret})
    return {"webhook": wanted, "added": not good}


def connect_backends(workspace: Workspace, url: str, secret: str) -> list[int]:
    """Connect the ML backend at ``url``, which must be answering, to each of our projects; those that are new to it."""
    with server(workspace) as client:
        projects = client.projects_called(f"Tilth: {workspace.config.workspace.name} ")
        new = [project for project in projects if url not in client.backends(project)]
        for project in new:
            client.add_backend(project, url, USER, secret)
    return new
