"""The only place that speaks to a Label Studio server. It fetches and sends; what the answers mean is decided
elsewhere.

The server's word is checked before it is believed: a page that is cut short, an HTML page in place of an
answer, or a list with fewer rows than it counts is refused whole. What reads is tried again a few times; what
creates is sent once, and looked for before it is sent, so that a lost answer makes no second task. A token
never stands in a message.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from curation.egress import check_url, is_loopback
from curation.errors import MissingExtra, RemoteUnavailable, UsageError
from curation.label_studio.answers import utc

TRIES = 5  # of a request that only reads
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is told to the user instead
# What is asked of a task. Left to itself the server counts and adds up much more, which takes several times as long.
FIELDS = ("id", "data", "updated_at")
ANNOTATIONS = (
    "annotations", "completed_by", "result", "was_cancelled", "ground_truth", "lead_time", "created_at"
)  # fmt: skip


class RemoteRefused(RemoteUnavailable):
    """The server will not do this, however often it is asked."""


class _Transient(RemoteUnavailable):
    """A failure that may pass by itself. ``after``: the seconds that the server asks to wait."""

    after: float | None = None


def connect(
    url: str,
    token: str,
    *,
    allow: Sequence[str] = (),
    timeout: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
) -> LabelStudio:
    """A client of the server at ``url``. ``timeout`` is in seconds and counts for each request.

    Both kinds of token work: a legacy one is sent as it is, a personal one (a JSON Web Token) is exchanged
    for a short access token and renewed as needed. ``allow`` lists hosts beyond this machine that may be
    spoken to. Raises :class:`UsageError` for a bad address, a host that is not allowed, or no token; nothing
    is sent yet.
    """
    url = check_url(url, allow)
    if not token.strip():
        raise UsageError(
            "there is no token for Label Studio",
            where=url,
            next=f"Copy one from {url}/user/account and set LABEL_STUDIO_API_KEY",
        )
    return LabelStudio(url, token.strip(), timeout=timeout, sleep=sleep)


class LabelStudio:
    """A connection to one server; make it with :func:`connect`. Not shared between threads."""

    def __init__(
        self, url: str, token: str, *, timeout: float = 60.0, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.url, self._token, self._sleep = url, token, sleep
        self._body: Any = None
        try:
            import httpx
            from label_studio_sdk import LabelStudio as Sdk
            from label_studio_sdk.core.api_error import ApiError
        except ImportError:
            raise MissingExtra("labelstudio", "label-studio-sdk") from None
        self._transport, self._refused = httpx.HTTPError, ApiError
        # A proxy from the environment must not stand between two programs of this machine.
        http = httpx.Client(
            timeout=timeout,
            event_hooks={"response": [self._check]},
            trust_env=not is_loopback(urlsplit(url).hostname or ""),
        )
        self._http = http
        # The library sends a POST again by itself, which makes duplicates; it is told not to.
        self._sdk = self._guarded(lambda: Sdk(base_url=url, api_key=token, httpx_client=http, max_retries=0))

    def __enter__(self) -> LabelStudio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def me(self) -> dict[str, Any]:
        """The user that the token belongs to; the cheapest proof that address and token are right."""
        return self._object(self._read(self._sdk.users.whoami), "id")

    def version(self) -> str:
        """The version of the server."""
        body = self._object(self._read(self._sdk.versions.get), "release")
        return str(body["release"])

    def make_project(self, title: str, settings: Mapping[str, Any]) -> int:
        """Make a project and give its id. Sent once: after a failure, look for its title."""
        made = self._send(lambda: self._sdk.projects.create(title=title, **settings), "make the project")
        return int(self._object(made, "id")["id"])

    def update_project(self, project: int, settings: Mapping[str, Any]) -> None:
        """Change a project's settings."""
        self._send(lambda: self._sdk.projects.update(project, **settings), "bring the project up to date")

    def project(self, project: int) -> dict[str, Any]:
        """A project with its settings."""
        return self._object(self._read(lambda: self._sdk.projects.get(project)), "id", "label_config")

    def task_count(self, project: int) -> int:
        """How many tasks a project holds."""
        return int(
            self._object(self._read(lambda: self._sdk.projects.get(project)), "task_number")["task_number"]
        )

    def members(self) -> dict[str, str]:
        """The e-mail address of each user of the server, by id."""
        users = self._read(self._sdk.users.list)
        if not isinstance(users, list) or not all(isinstance(u, dict) and "id" in u for u in users):
            raise self._unexpected("a list of users in which one is no user")
        return {str(user["id"]): str(user.get("email") or "") for user in users}

    def webhooks(self) -> list[dict[str, Any]]:
        """The webhooks of the organization: ``url`` and ``is_active`` of each."""
        hooks = self._read(self._sdk.webhooks.list)
        if not isinstance(hooks, list) or not all(isinstance(h, dict) and "url" in h for h in hooks):
            raise self._unexpected("a list of webhooks in which one is no webhook")
        return hooks

    def add_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> None:
        """Ask the server to tell ``url`` whenever anything changes in a project, with ``headers`` and without content."""
        wanted = {"url": url, "headers": dict(headers), "send_payload": False, "send_for_all_actions": True}
        self._send(
            lambda: self._sdk.webhooks.create(**wanted, project=project, is_active=True), "add the webhook"
        )

    def delete_webhook(self, webhook: int) -> None:
        """Remove a webhook."""
        self._send(lambda: self._sdk.webhooks.delete(webhook), "remove the webhook")

    def projects_called(self, beginning: str) -> list[int]:
        """The ids of the projects whose title begins so."""
        page = self._object(
            self._read(lambda: self._sdk.projects.list(title=beginning, page=1, page_size=1_000)), "results"
        )
        return [int(p["id"]) for p in page["results"] if str(p.get("title")).startswith(beginning)]

    def backends(self, project: int) -> list[str]:
        """The addresses of a project's ML backends."""
        found = self._read(lambda: self._sdk.ml.list(project=project))
        return [str(b.get("url")) for b in found if isinstance(b, dict)] if isinstance(found, list) else []

    def add_backend(self, project: int, url: str, user: str, password: str) -> None:
        """Connect an ML backend to a project; the server asks it at once whether it is well."""
        wanted: dict[str, Any] = {
            "project": project,
            "url": url,
            "title": "Tilth",
            "auth_method": "BASIC_AUTH",
        }
        wanted |= {"basic_auth_user": user, "basic_auth_pass": password}
        self._send(lambda: self._sdk.ml.create(**wanted), "connect the ML backend")

    def token_settings(self) -> dict[str, Any]:
        """Which kinds of token the server takes."""
        return self._object(self._read(self._sdk.jwt_settings.get), "api_tokens_enabled")

    def delete_task(self, task: int) -> None:
        """Delete a task with everything that was said about it."""
        self._send(lambda: self._sdk.tasks.delete(str(task)), "delete the task")

    def find_project(self, title: str) -> dict[str, Any] | None:
        """The oldest project of exactly this title."""
        page = self._object(
            self._read(lambda: self._sdk.projects.list(title=title, page=1, page_size=100)), "results"
        )
        exact = [item for item in page["results"] if item.get("title") == title]
        return min(exact, key=lambda item: int(item["id"]), default=None)

    def tasks(
        self, project: int, query: Mapping[str, Any], *, page: int, size: int, annotations: bool
    ) -> _TaskPage:
        """One page of a project's tasks; one with fewer tasks than the server counts is refused."""
        for attempt in range(TRIES):
            found = self._task_page(project, query, page, size, annotations)
            expected = max(0, min(size, found.total - (page - 1) * size))
            if len(found.tasks) == expected:
                return found
            self._sleep(_pause(attempt))  # somebody may have deleted a task between the count and the list
        raise RemoteUnavailable(
            f"page {page} holds {len(found.tasks)} tasks where it should hold {expected} of {found.total}",
            where=self.url,
            next="Nothing of this page was taken. Run the same command again",
        )

    def _task_page(
        self, project: int, query: Mapping[str, Any], page: int, size: int, annotations: bool
    ) -> _TaskPage:
        body = self._read(
            lambda: self._sdk.tasks.list(
                project=project,
                page=page,
                page_size=size,
                fields="all" if annotations else "task_only",
                include=",".join(FIELDS + ANNOTATIONS if annotations else FIELDS),
                query=json.dumps(query),
            )
        )
        body = self._object(body, "tasks", "total")
        tasks = body["tasks"]
        if not isinstance(tasks, list) or not all(_is_task(task, annotations) for task in tasks):
            raise self._unexpected("a list of tasks in which one is no task")
        return _TaskPage(tasks, int(body["total"]))

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> list[str]:
        """Create tasks and give their ids where the server tells them. Sent once: after a failure, look which of them
        have arrived.
        """
        body = self._send(
            lambda: self._sdk.projects.import_tasks(project, request=list(tasks), return_task_ids=True),
            f"import {len(tasks)} tasks",
        )
        return [str(number) for number in (body.get("task_ids") or () if isinstance(body, dict) else ())]

    # Requests

    def _read(self, send: Callable[[], Any]) -> Any:
        """The JSON of an answer to a request that changes nothing; tried again where the failure may pass."""
        for attempt in range(TRIES - 1):
            try:
                return self._request(send)
            except _Transient as error:
                pause = _pause(attempt) if error.after is None else error.after
                if pause > LONGEST_WAIT:
                    raise
                self._sleep(pause)
        return self._request(send)

    def _send(self, send: Callable[[], Any], what: str) -> Any:
        """The JSON of an answer to a request that changes something; sent once."""
        try:
            return self._request(send)
        except _Transient as error:
            raise RemoteUnavailable(
                f"could not {what}: {error.what}",
                where=self.url,
                next="Run the same command again: it looks for what has arrived before it sends anything",
            ) from None

    def _request(self, send: Callable[[], Any]) -> Any:
        self._body = None
        self._guarded(send)
        return self._body

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """``call()`` with errors of the library turned into ours: theirs may hold headers and tokens."""
        try:
            return call()
        except self._transport as error:
            raise self._unreachable(error) from None
        except self._refused as error:
            raise (
                self._expired()
                if error.status_code == 401
                else self._unexpected("an answer it does not know")
            ) from None
        except (AttributeError, TypeError, ValueError):  # the library's models met something they cannot hold
            raise self._unexpected("JSON of another shape than expected") from None

    def _check(self, response: Any) -> None:
        """Look at every answer before the library does: status, type, and whether it is whole."""
        response.read()
        status = response.status_code
        if status >= 300:
            raise self._status(status, response)
        if status == 204:
            return
        if "html" in response.headers.get("content-type", ""):
            raise self._unexpected("a web page; a login page or a proxy may stand in between")
        try:
            self._body = json.loads(response.content)
        except ValueError:
            raise self._unexpected(
                f"{len(response.content):,} bytes that are no whole JSON", _Transient
            ) from None

    def _object(self, body: Any, *keys: str) -> dict[str, Any]:
        if isinstance(body, dict) and all(key in body for key in keys):
            return body
        raise self._unexpected(f"JSON without {' and '.join(keys)}")

    # Errors

    def _unreachable(self, error: Exception) -> _Transient:
        kind = type(error).__name__
        words = {
            "ConnectError": "nothing answers at this address",
            "ConnectTimeout": "nothing answers at this address in time",
            "ReadTimeout": "the server did not answer in time",
            "RemoteProtocolError": "the server closed the connection in the middle of an answer",
        }
        return _Transient(
            words.get(kind, f"the connection failed ({kind})"),
            where=self.url,
            next="Check that Label Studio is running (make label-studio) and that url in tilth.toml is right",
        )

    def _expired(self) -> RemoteUnavailable:
        return RemoteUnavailable(
            "the token is refused: it is wrong or has expired",
            where=self.url,
            next=f"Copy a new one from {self.url}/user/account and set LABEL_STUDIO_API_KEY",
        )

    def _unexpected(self, what: str, kind: type[RemoteUnavailable] = RemoteUnavailable) -> RemoteUnavailable:
        return kind(
            f"the server answered with {what}",
            where=self.url,
            next="Nothing of it was taken. Run the command again; if it stays, check url in tilth.toml",
        )

    def _status(self, status: int, response: Any) -> RemoteUnavailable:
        if status == 401:
            return self._expired()
        if status in (408, 425, 429) or status >= 500:
            error = _Transient(
                f"the server is busy or failing (HTTP {status})",
                where=self.url,
                next="Run the same command again in a minute",
            )
            error.after = _retry_after(response.headers.get("retry-after", ""))
            return error
        words = {
            403: ("this user may not do that", "Ask the server's owner for the rights, or use another token"),
            404: (
                "it is not there: the project or its tasks were deleted, or the address is wrong",
                "Check the url",
            ),
        }
        if 300 <= status < 400:
            words[status] = (
                "the server points elsewhere",
                "Write the address it points to as url in tilth.toml",
            )
        what, then = words.get(
            status, (f"the server refused: {self._detail(response)}", "Mend what it names")
        )
        return RemoteRefused(f"{what} (HTTP {status})", where=self.url, next=then)

    def _detail(self, response: Any) -> str:
        """What the server says was wrong, short, and without the token if it repeats it."""
        try:
            body = response.json()
        except ValueError:
            return "no reason given"
        said = body.get("validation_errors") or body.get("detail") or body if isinstance(body, dict) else body
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
        return text.replace(self._token, "[token]")[:300]


@dataclass(frozen=True)
class _TaskPage:
    tasks: list[dict[str, Any]]
    total: int


def _is_task(task: Any, annotations: bool) -> bool:
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "id" not in task:
        return False
    try:
        utc(task["updated_at"])
    except (KeyError, TypeError, ValueError):
        return False
    return not annotations or isinstance(task.get("annotations"), list)


def _retry_after(text: str) -> float | None:
    return float(text) if text.strip().isdecimal() else None


def _pause(attempt: int) -> float:
    """Seconds before the next try: 1, 2, 4, 8."""
    return float(2**attempt)
