"""The connection to a Label Studio server looked at, and made known to it: token, versions, webhook, ML backends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from curation.errors import TilthError, UsageError
from curation.health import Check
from curation.label_studio import LabelStudio
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
            yield from _webhooks(client.webhooks(), _projects(workspace, client))
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


def _webhooks(hooks: list[dict[str, Any]], projects: list[int]) -> Iterator[Check]:
    """A webhook that failed too often is switched off by the server, and nobody is told."""
    ours = [
        hook for hook in hooks if hook.get("project") in projects and HEADER in (hook.get("headers") or {})
    ]
    off = sorted({hook["url"] for hook in ours if not hook.get("is_active")})
    without = len(set(projects) - {hook.get("project") for hook in ours})
    if off:
        yield Check("webhook", "bad", f"{', '.join(off)} was switched off: tilth serve --register")
    elif without:
        told = f"{without} of {len(projects)} projects have none; answers come at the next poll"
        yield Check("webhook", "note", f"{told}. Add it: tilth serve --register")
    elif projects:
        yield Check(
            "webhook", "good", f"{', '.join(sorted({hook['url'] for hook in ours}))} for every project"
        )


def _projects(workspace: Workspace, client: LabelStudio) -> list[int]:
    return client.projects_called(f"Tilth: {workspace.config.workspace.name} ")


def register(workspace: Workspace, url: str, secret: str) -> dict[str, Any]:
    """Make the webhook of the service at ``url`` known to each of our projects, once.

    One that is there and alive already is left as it is; one of ours that is not is replaced.
    """
    if not server_url(workspace):
        raise UsageError("no Label Studio is configured", where="tilth serve --register")
    wanted, added = f"{url}/webhook", 0
    with server(workspace) as client:
        hooks = client.webhooks()
        for project in _projects(workspace, client):
            ours = [h for h in hooks if h.get("project") == project and HEADER in (h.get("headers") or {})]
            good = [h for h in ours if _serves(h, wanted, secret)][:1]
            for hook in ours:
                if hook not in good:
                    client.delete_webhook(int(hook["id"]))
            if not good:
                client.add_webhook(project, wanted, {HEADER: secret})
                added += 1
    return {"webhook": wanted, "added": added}


def _serves(hook: dict[str, Any], url: str, secret: str) -> bool:
    return bool(hook["url"] == url and hook.get("is_active") and hook["headers"][HEADER] == secret)


def connect_backends(workspace: Workspace, url: str, secret: str) -> list[int]:
    """Connect the ML backend at ``url``, which must be answering, to each of our projects; those that are new to it."""
    with server(workspace) as client:
        projects = _projects(workspace, client)
        new = [project for project in projects if url not in client.backends(project)]
        for project in new:
            client.add_backend(project, url, USER, secret)
    return new
