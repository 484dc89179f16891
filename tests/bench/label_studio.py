"""Tasks pushed to and answers pulled from a real Label Studio: ``python -m tests.bench.label_studio --tasks 5000``.

The answers are seeded by import, since no person is that quick. Ledger and all: what is timed is what ``tilth push``
and ``tilth pull`` do, against the server on this machine. The target is 20 s for each on two cores that do nothing else;
on a busy machine the processor seconds of both sides, which wait for each other, tell what that would be.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.label_studio_server import Server
from curation import people, workspace
from curation.formats import Mapping
from curation.ledger import Showing
from curation.people import push_open
from curation.question import current
from curation.records import canonical_json, digest, user_message
from curation.workspace import init, open_workspace
from tests.label_studio_server import admin, server

PROMPT = "Where is parcel {i}? It was sent on Monday, and the customer has written three times since then."


def desk(folder: Path, tasks: int, number: int) -> Path:
    """A workspace with a showing for each of so many records, half of them with a suggestion."""
    init(folder, actor="bench", name=f"bench-{number}-{os.getpid()}")
    text = (folder / "tilth.toml").read_text().replace('kind = "auto"', 'kind = "edit"')
    (folder / "tilth.toml").write_text(text)
    rows = [{"id": str(i), "prompt": PROMPT.format(i=i)} for i in range(tasks)]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with open_workspace(folder, actor="bench") as opened:
        workspace.ingest(opened, path, mapping=Mapping(id="id"))
        question = opened.ledger.add_question(current(opened))
        ids = opened.ledger.records()["record"].to_pylist()
        showings = [_showing(record, i, question.name) for i, record in enumerate(ids)]
        opened.ledger.add_showings(showings)
    return folder


def _showing(record: str, i: int, question: str) -> Showing:
    view = digest(canonical_json(user_message(PROMPT.format(i=i))))
    told = {"suggestion": "It is on its way.", "suggestion_by": "adapter", "extra": {"confidence": 0.4}}
    return Showing(record, question, 1, view, annotator="0", blind=i % 2 == 0, **(told if i % 2 else {}))


@dataclass(frozen=True)
class Cost:
    """What something took: seconds on the clock, and of processors in this process and in the server's."""

    wall: float
    ours: float
    theirs: float


def server_seconds(pid: int) -> float:
    """Processor seconds of the server since its start; 0 where its process is unknown."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(at: Server, name: str, call: Any) -> tuple[Any, Cost]:
    """What a call gives, and what it cost; told at once, since a whole run takes minutes on a busy machine."""
    wall, ours, theirs = time.perf_counter(), time.process_time(), server_seconds(at.pid)
    given = call()
    cost = Cost(time.perf_counter() - wall, time.process_time() - ours, server_seconds(at.pid) - theirs)
    print(f"    {name}: {cost.wall:.1f} s, processors {cost.ours:.1f} + {cost.theirs:.1f} s", flush=True)
    return given, cost


def import_answered(at: Server, project: int, tasks: list[dict[str, Any]]) -> None:
    """Replace the project's tasks by the same with an answer each, in bulk: seeding one by one takes a quarter of an hour."""
    http = admin(at).http
    http.delete(f"/api/projects/{project}/tasks/", timeout=300).raise_for_status()
    for start in range(0, len(tasks), 1000):
        rows = [{**task, "annotations": [_note(task)]} for task in tasks[start : start + 1000]]
        http.post(f"/api/projects/{project}/import", json=rows, timeout=300).raise_for_status()


def _note(task: dict[str, Any]) -> dict[str, Any]:
    region: dict[str, Any] = {"id": "a", "from_name": "answer", "to_name": "prompt", "type": "textarea"}
    region["value"] = {"text": [f"Parcel of record {task['data']['record']}"]}
    return {"result": [region], "lead_time": 12.5, "completed_by": 1}


def once(at: Server, folder: Path, tasks: int, number: int) -> dict[str, Cost]:
    """One push and one pull of so many tasks, in a workspace and a project of their own."""
    from curation.people.showing import make_tasks

    with open_workspace(desk(folder, tasks, number), actor="bench") as opened:
        through = people.label_studio()
        pushed, push_seconds = timed(at, "push", lambda: push_open(opened, through))
        again, again_seconds = timed(at, "push again", lambda: push_open(opened, people.label_studio()))
        assert (pushed["pushed"], again["pushed"]) == (tasks, 0)
        (channel,) = through.channels.values()
        project = channel.project  # type: ignore[attr-defined]
        question = current(opened)
        import_answered(at, project, make_tasks(opened, question, opened.ledger.showings()))
        fresh = people.label_studio()
        pulled, pull_seconds = timed(at, "pull", lambda: fresh.collect(opened, question))
        assert pulled["added"] == tasks, pulled
        nothing, idle_seconds = timed(
            at, "pull again", lambda: people.label_studio().collect(opened, question)
        )
        assert nothing["added"] == 0
    return {
        "push": push_seconds,
        "push again": again_seconds,
        "pull": pull_seconds,
        "pull again": idle_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(Path(folder) / "server") as at:
        os.environ |= {"LABEL_STUDIO_URL": at.url, "LABEL_STUDIO_API_KEY": at.token}
        runs = [once(at, Path(folder) / f"w{n}", given.tasks, n) for n in range(given.repeat)]
    print(f"{given.tasks:,} tasks, {given.repeat} runs, load average {os.getloadavg()[0]:.1f}")
    for name in runs[0]:
        costs = sorted((run[name] for run in runs), key=lambda cost: cost.ours + cost.theirs)
        middle, both = costs[len(costs) // 2], [cost.ours + cost.theirs for cost in costs]
        print(
            f"  {name:<12} {both[len(both) // 2]:5.1f} s of processors ({both[0]:.1f} to {both[-1]:.1f}), "
            f"of which {middle.theirs:.1f} the server's; {middle.wall:.1f} s on the clock"
        )


if __name__ == "__main__":
    main()
