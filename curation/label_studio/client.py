"""The only place that speaks to a Label Studio server. It fetches and sends; what the answers mean is decided
elsewhere.

The server's word is checked before it is believed: a page that is cut short, an HTML page in place of an
answer, or a list with fewer rows than it counts is refused whole. What reads is tried again a few times; what
creates is sent once, and looked for before it is sent, so that a lost answer makes no second task. A token
never stands in a message.
"""

from __future__ import annotations

import html
import ipaddress
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

from curation.errors import MissingExtra, RemoteUnavailable, UsageError
from curation.label_studio.answers import PersonLabel, from_annotations, task_id, utc
from curation.label_studio.channel import Pulled
from curation.label_studio.tasks import Question, label_config, validate_task
from curation.records import digest

TRIES = 5  # of a request that only reads
LONGEST_WAIT = 60.0  # seconds; a server that asks for more is told to the user instead
LOOK_UP = 100  # showings asked for at once: their ids travel in the URL
IMPORT = 500  # tasks sent at once
OVERLAP = timedelta(
    seconds=60
)  # the server sets a time before it commits; a slow commit must not be passed by
EPOCH = "1970-01-01T00:00:00.000000Z"
TITLE = 50  # characters, the server's limit


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


def check_url(url: str, allow: Sequence[str] = ()) -> str:
    """``url`` without its last slash. Raises :class:`UsageError` where it must not be spoken to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise UsageError(
            "this is no address of a server",
            where=f"{parts.scheme}://{parts.hostname}" if parts.hostname else url,
            next="Write it like http://127.0.0.1:8080, without a name or password in it",
        )
    if not is_loopback(parts.hostname) and parts.hostname not in allow:
        raise UsageError(
            f"{parts.hostname} is beyond this machine and not listed under [egress]",
            where=url,
            next=f'Add it in tilth.toml: allow = ["{parts.hostname}"]',
        )
    return url.rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether ``host`` names this machine and cannot name another one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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

    def ensure_project(self, question: Question, *, title: str = "") -> int:
        """The id of the project that asks ``question``; made where there is none, its interface brought up to
        date.

        ``title`` defaults to the question's name. Raises :class:`RemoteUnavailable` where the server refuses
        the interface, as it does when a class that somebody has used would go.
        """
        wanted = _title(title or question.name)
        settings = _settings(question)
        found = self._project(wanted)
        if found is None:
            made = self._send(lambda: self._sdk.projects.create(title=wanted, **settings), "make the project")
            return int(self._object(made, "id")["id"])
        number = int(found["id"])
        if not _same_settings(found, settings):
            self._send(lambda: self._sdk.projects.update(number, **settings), "bring the project up to date")
        return number

    def channel(self, question: Question, *, title: str = "", page: int = 500) -> ProjectChannel:
        """The way to the people who work in the question's project. ``page`` is the number of tasks pulled at
        once.
        """
        return ProjectChannel(self, self.ensure_project(question, title=title), question, page)

    def _project(self, title: str) -> dict[str, Any] | None:
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
                query=json.dumps(query),
            )
        )
        body = self._object(body, "tasks", "total")
        tasks = body["tasks"]
        if not isinstance(tasks, list) or not all(_is_task(task, annotations) for task in tasks):
            raise self._unexpected("a list of tasks in which one is no task")
        return _TaskPage(tasks, int(body["total"]))

    def import_tasks(self, project: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Create tasks. Sent once: after a failure, look which of them have arrived."""
        self._send(
            lambda: self._sdk.projects.import_tasks(project, request=list(tasks), return_task_ids=True),
            f"import {len(tasks)} tasks",
        )

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
        return RemoteUnavailable(f"{what} (HTTP {status})", where=self.url, next=then)

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


@dataclass(frozen=True)
class ProjectChannel:
    """One project of a server as a way to people and back; see
    :class:`~curation.label_studio.channel.Channel`.
    """

    client: LabelStudio
    project: int
    question: Question
    page: int = 500

    def push(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Create the tasks that the project does not hold yet, and nothing twice.

        All are checked before any is sent. Raises :class:`RemoteUnavailable` where some are missing at the
        end; those that arrived are found by the next call.
        """
        for task in tasks:
            validate_task(task, self.question)
        wanted = {str(task["data"]["showing"]): task for task in tasks}
        known = self._look(list(wanted))
        missing = [showing for showing in wanted if showing not in known]
        for batch in _batches(missing, IMPORT):
            known |= self._create({showing: wanted[showing] for showing in batch})
        return {showing: known[showing] for showing in wanted}

    def _create(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        failure: RemoteUnavailable | None = None
        try:
            self.client.import_tasks(self.project, list(tasks.values()))
        except RemoteUnavailable as error:
            failure = error  # the tasks may be there all the same: only looking tells
        arrived = self._look(list(tasks))
        absent = len(tasks) - len(arrived)
        if absent and failure:
            raise failure
        if absent:
            raise RemoteUnavailable(
                f"{absent} of {len(tasks)} tasks did not arrive",
                where=self.client.url,
                next="The server may still be importing. Run the same command again in a minute",
            )
        return arrived

    def _look(self, showings: Sequence[str]) -> dict[str, str]:
        """The remote ids of those showings that have a task; the oldest where there are several."""
        found: dict[str, str] = {}
        for batch in _batches(showings, LOOK_UP):
            query = {"filters": _filter("data.showing", "in_list", "List", batch), "ordering": ["tasks:id"]}
            for task in self._all(query):
                found.setdefault(str(task["data"].get("showing")), task_id(task))
        return found

    def _all(self, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            got = self.client.tasks(self.project, query, page=page, size=self.page, annotations=False)
            yield from got.tasks
            if page * self.page >= got.total:
                return
            page += 1

    def pull(self, since: str | None = None, *, held: Iterable[PersonLabel] = ()) -> Iterator[Pulled]:
        """Answers by the time of their tasks' last change, in pages; see the protocol.

        The last minute before ``since`` is read again, so the same answer may come twice; it is the same
        label.
        """
        by_task: dict[str, list[PersonLabel]] = {}
        for label in held:
            by_task.setdefault(label.task, []).append(label)
        start = EPOCH if since is None else _earlier(since)
        for tasks in self._changed(start):
            answers = [
                a for t in tasks for a in from_annotations(t, self.question, by_task.get(task_id(t), ()))
            ]
            yield Pulled(tuple(answers), tuple(task_id(t) for t in tasks), utc(tasks[-1]["updated_at"]))

    def _changed(self, start: str) -> Iterator[list[dict[str, Any]]]:
        """Pages of tasks changed at ``start`` or later, oldest change first, each task once unless it changes
        again.

        The next page starts at the time where the last one ended, not at a row number: rows move while people
        work.
        """
        seen: dict[str, str] = {}
        page = 1
        while True:
            query = {
                "filters": _filter("updated_at", "greater_or_equal", "Datetime", start),
                "ordering": ["tasks:updated_at"],
            }
            got = self.client.tasks(self.project, query, page=page, size=self.page, annotations=True)
            fresh = [task for task in got.tasks if seen.get(task_id(task)) != task["updated_at"]]
            seen |= {task_id(task): task["updated_at"] for task in fresh}
            if fresh:
                yield fresh
            if page * self.page >= got.total:
                return
            last = utc(got.tasks[-1]["updated_at"])
            # More tasks than a page holds may share one time (a bulk change): only then go on by page number.
            start, page = (last, 1) if last > start else (start, page + 1)

    def vanished(self, tasks: Sequence[str]) -> tuple[str, ...]:
        """Which of these tasks were deleted on the server: a deleted task is on no page of :meth:`pull`."""
        there: set[str] = set()
        for batch in _batches(list(tasks), LOOK_UP):
            ids = [int(number) for number in batch if number.isdecimal()]
            query = {"filters": _filter("id", "in_list", "List", ids), "ordering": ["tasks:id"]}
            there |= {task_id(task) for task in self._all(query)}
        return tuple(number for number in tasks if number not in there)


def _title(name: str) -> str:
    """The project's title; a long name keeps its beginning and is told apart by its digest."""
    whole = f"Tilth: {name}"
    return whole if len(whole) <= TITLE else f"{whole[: TITLE - 9]} {digest(whole)[:8]}"


def _settings(question: Question) -> dict[str, Any]:
    """The project's settings. Instructions are rendered as HTML there, so the guideline is escaped."""
    guideline = question.guideline.strip()
    return {
        "label_config": label_config(question),
        "expert_instruction": html.escape(guideline).replace("\n", "<br>"),
        "show_instruction": bool(guideline),
        "show_skip_button": True,
        "enable_empty_annotation": True,  # else Submit waits for a click on Add; the control is required
        "show_collab_predictions": True,
        "sampling": "Sequential sampling",  # the order of the push is the order of the queue
        "maximum_annotations": 1,  # a task is one showing; a second opinion is a task of its own
    }


def _same_settings(project: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a project of the list needs no change; the server tidies the instruction, so its text is
    compared.
    """
    same = all(project.get(name) == value for name, value in settings.items() if not isinstance(value, str))
    return (
        same
        and project.get("sampling") == settings["sampling"]
        and _plain(project.get("expert_instruction")) == _plain(settings["expert_instruction"])
        and _same_xml(str(project.get("label_config")), settings["label_config"])
    )


def _plain(text: Any) -> str:
    return " ".join(html.unescape(str(text or "")).replace('"', " ").split())


def _same_xml(a: str, b: str) -> bool:
    try:
        return ElementTree.canonicalize(a, strip_text=True) == ElementTree.canonicalize(b, strip_text=True)
    except ElementTree.ParseError:
        return a == b


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    item = {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
    return {"conjunction": "and", "items": [item]}


def _is_task(task: Any, annotations: bool) -> bool:
    if not isinstance(task, dict) or not isinstance(task.get("data"), dict) or "id" not in task:
        return False
    try:
        utc(task["updated_at"])
    except (KeyError, TypeError, ValueError):
        return False
    return not annotations or isinstance(task.get("annotations"), list)


def _earlier(since: str) -> str:
    try:
        moment = datetime.fromisoformat(utc(since))
    except ValueError:
        raise UsageError(
            f"{since!r} is no time of this server", where="watermark", next="Pull once without a watermark"
        ) from None
    return utc((moment - OVERLAP).isoformat())


def _retry_after(text: str) -> float | None:
    return float(text) if text.strip().isdecimal() else None


def _pause(attempt: int) -> float:
    """Seconds before the next try: 1, 2, 4, 8."""
    return float(2**attempt)


def _batches(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
