"""The loop: clean, choose, ask, agree, freeze, train, measure, and again. Every finished step is in the ledger, so a
run that was killed goes on where it stopped and comes to the same snapshots.

What trains and scores is handed in as a :class:`Learner`, who answers as an :class:`Annotator`: this module knows
neither torch nor a server. A random twin learns from as many Labels as the strategy did, chosen at random, so that
what the strategy saves is measured and not assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation import snapshot
from curation.acquisition import RELABEL
from curation.assemble import compose, freeze, one_per_record, reserved_records, vote
from curation.choosing import picked_for, pool, score, select
from curation.curate import Rules, blocked, curate, load_artifact, load_table, without
from curation.errors import UsageError
from curation.examples import arms
from curation.ledger import Adapter, Showing
from curation.opinions import Voices, settle
from curation.question import current
from curation.run import MAIN, TWIN, Run, round_seconds
from curation.workspace import Workspace, view

RESERVED = "reserved:internal"


@dataclass(frozen=True)
class Waiting:
    """The loop cannot go on before people have answered ``labels`` tasks of ``round``; they are at ``where``.

    ``relabels`` of the round's records had answers before.
    """

    round: int
    labels: int
    where: str
    relabels: int = 0


def run(loop: Run, rounds: int) -> dict[str, Any]:
    """Go on until ``rounds`` rounds are done or people must answer; the result is what ``tilth run`` prints.

    Raises :class:`UsageError` where there is nothing to ask about.
    """
    start = loop.clock()
    done: list[dict[str, Any]] = []
    waiting: Waiting | None = None
    for number in range(1, rounds + 1):
        outcome = _round(loop, number)
        if isinstance(outcome, Waiting):
            waiting = outcome
            break
        done.append(outcome)
        if outcome["pool_left"] == 0:
            break
    result: dict[str, Any] = {
        "rounds": done,
        "metric_name": done[-1]["metric_name"] if done else None,
        "annotator": loop.annotator.name,
        "seconds": round_seconds(loop.clock() - start),
    }
    if waiting:
        result["waiting_for"] = asdict(waiting)
    return result


def _round(loop: Run, number: int) -> dict[str, Any] | Waiting:
    """One round, step by step. Each step's output is all that the next ones need."""
    base, chosen = _chosen(loop, number)
    loop.once(number, "ask", lambda: _ask(loop, chosen))
    waiting = _collect(loop, number, chosen)
    if waiting:
        return waiting
    loop.once(number, "clean answers", lambda: _clean_answers(loop))
    frozen = loop.once(number, "freeze", lambda: _freeze(loop, number))
    trained = loop.once(number, "train", lambda: _train(loop, frozen, base))
    measured = loop.once(number, "measure", lambda: _measure(loop, frozen, trained))
    return _report(number, chosen, frozen, trained, measured)


def _chosen(loop: Run, number: int) -> tuple[str, dict[str, Any]]:
    """The base model's name, and whom a round will ask about what."""
    asked = current(loop.workspace)
    if asked.kind not in ("edit", "accept", "class"):
        raise UsageError(
            f"the loop asks for answers, and {asked.name!r} is of kind {asked.kind!r}: it judges what is there",
            where=str(loop.workspace.root / "tilth.toml"),
            next=f"Let another question come first, and ask this one by: tilth push --question {asked.name}",
        )
    loop.once(number, "clean", lambda: _clean(loop))
    base = loop.once(1, "base", lambda: _base(loop))["base"]
    loop.once(number, "vote", lambda: vote(loop.workspace, progress=loop.progress) or {})
    previous = _adapters(loop, number - 1).get(MAIN)
    scores = loop.once(number, "score", lambda: score(loop, number, previous, base))["scores"]
    return base, loop.once(number, "select", lambda: select(loop, number, scores, previous))


def choose(loop: Run) -> dict[str, Any]:
    """Go as far in the round that is open as choosing what to ask: ``{"selections", "pool_left"}``. Asks nobody."""
    return _chosen(loop, 1 + len(reports(loop.workspace, loop.name)))[1]


def _clean(loop: Run) -> dict[str, Any]:
    """Clean, reserve what evaluation needs, and clean again: what leaks into the reserved rows must go."""
    curate(loop.workspace, progress=loop.progress)
    reserve(loop.workspace)
    return curate(loop.workspace, progress=loop.progress).decided


def _clean_answers(loop: Run) -> dict[str, Any]:
    """Clean what people wrote, and leave to a curator what they disagree on."""
    decided = curate(loop.workspace, progress=loop.progress).decided
    return {**decided, "consensus": {"hold": settle(loop.workspace)}}


def reserve(workspace: Workspace) -> int:
    """Set evaluation rows aside, before functions or acquisition see anything; once, then they are sticky.

    Rows whose answer is known (gold or reference) are reserved where there are any, else rows that people will be
    asked about blind. A group stays on one side. Returns how many rows are reserved.
    """
    book, section = workspace.ledger, workspace.config.evaluation
    if book.watermark(RESERVED) or not (section.test_share or section.dev_share):
        return book.eval_items().num_rows
    rules = Rules(workspace)
    out = blocked(workspace, rules) | reserved_records(workspace)
    rows = without(view(workspace, rule=rules.scrub, kinds=_KNOWN | {"candidate"}), out)
    known = rows.filter(pc.is_in(rows["trust"], value_set=pa.array(sorted(_KNOWN))))
    table = one_per_record(known if known.num_rows else rows)
    total = max(table.num_rows, 1)
    stratify = current(workspace).kind == "class" and known.num_rows > 0
    found = snapshot.reserve(
        _reservable(workspace, rules, table, stratify),
        {"dev": section.dev_share, "test": min(section.test_share, section.max_rows / total)},
        workspace.config.train.seed,
        stratify=stratify,
    )
    if "test" not in (*found.assigned.values(), *book.eval_items()["role"].to_pylist()):
        raise UsageError(
            f"no row can be reserved for evaluation from {table.num_rows} records",
            where=str(workspace.root),
            next="Ingest more rows, or raise evaluation.test_share",
        )
    digest = book.reserve("internal", sorted(found.assigned.items()))
    book.set_watermark(RESERVED, digest)
    return len(found.assigned)


def _reservable(workspace: Workspace, rules: Rules, rows: pa.Table, stratify: bool) -> pa.Table:
    """What reserving looks at: records with their group, cluster, and (to stratify by) answer."""
    clusters = load_table(workspace, "clusters", rules.near)
    cluster_of = (
        dict(zip(*(clusters[c].to_pylist() for c in ("record", "cluster")), strict=True)) if clusters else {}
    )
    ids = rows["record"].to_pylist()
    columns = {
        "record": ids,
        "group": rows["group"],
        "cluster": pa.array([cluster_of.get(i) for i in ids], pa.string()),
    }
    return pa.table(columns | ({"label": rows["completion"]} if stratify else {}))


_KNOWN = {"gold", "reference"}


def _base(loop: Run) -> dict[str, Any]:
    """The base model, which may practise on unlabelled prompts first; never on reserved rows."""
    reserved = reserved_records(loop.workspace)

    def texts() -> Iterator[str]:
        for page in loop.workspace.ledger.view_pages(scrub_rule=Rules(loop.workspace).scrub):
            yield from one_per_record(without(page.table, reserved))["prompt"].to_pylist()
        yield from (passage.body for passage in loop.workspace.ledger.passages())

    return {"base": loop.learner.base(texts(), loop.progress)}


def _adapters(loop: Run, number: int) -> dict[str, str]:
    known = loop.workspace.ledger.step(loop.name, number, "train") if number else None
    return known["adapters"] if known else {}


def _showings(loop: Run, chosen: Mapping[str, Any]) -> list[Showing]:
    wanted = set(chosen["selections"].values())
    return [showing for showing in loop.workspace.ledger.showings() if showing.selection in wanted]


def _ask(loop: Run, chosen: Mapping[str, Any]) -> dict[str, Any]:
    showings = _showings(loop, chosen)
    return {"asked": loop.annotator.ask(loop.workspace, current(loop.workspace), showings)}


def _collect(loop: Run, number: int, chosen: Mapping[str, Any]) -> Waiting | None:
    """Fetch answers until none is missing; a step only once all are in, so that the next call asks again."""
    if loop.workspace.ledger.step(loop.name, number, "answers") is not None:
        return None
    loop.progress(f"round {number}: answers", 0, None)
    loop.annotator.collect(loop.workspace, current(loop.workspace))
    open_tasks = loop.annotator.waiting(loop.workspace, [s.id for s in _showings(loop, chosen)])
    if open_tasks:
        where = loop.annotator.where(loop.workspace)
        return Waiting(number, open_tasks, where, chosen.get("relabels", 0))
    loop.once(number, "answers", dict)
    return None


def _voices(loop: Run, arm: str) -> Voices:
    """Whose Labels an arm learns from. In a simulation the twin has annotators of its own, whom the strategy ignores.

    With real people the twin learns from the control arm of every batch so far, but not from what was asked about it once
    more: those records were chosen by what they are worth, and nobody who draws at random would have asked.
    """
    workspace = loop.workspace
    if loop.annotator.simulated:
        twins = frozenset(a.id for a in workspace.ledger.authors() if a.kind == f"simulated-{TWIN}")
        only = twins if arm == TWIN else frozenset()
        return Voices(only=only, silent=twins if arm == MAIN else frozenset(), sources=False)
    if arm == MAIN:
        return Voices()
    control = frozenset(record for record, (which, _) in arms(workspace).items() if which == "control")
    return Voices(records=control, unheard=_asked_again(workspace))


def _asked_again(workspace: Workspace) -> frozenset[str]:
    """The Showings of records that had answers when they were chosen."""
    again = {
        (chosen.id, item.record)
        for chosen in workspace.ledger.selections()
        for item in chosen.items
        if item.arm == RELABEL
    }
    return frozenset(s.id for s in workspace.ledger.showings() if (s.selection, s.record) in again)


def _freeze(loop: Run, number: int) -> dict[str, Any]:
    """A snapshot for the strategy, and one for its random twin where anybody has answered for it."""
    snapshots, rows = {}, {}
    for arm in (MAIN, TWIN):
        composed = compose(loop.workspace, _voices(loop, arm), progress=loop.progress)
        trainable = composed.count("train")
        if arm == TWIN and not trainable:
            continue
        frozen = freeze(loop.workspace, composed, label=arm, round=number)
        snapshots[arm], rows[arm] = frozen.name, trainable
    return {"snapshots": snapshots, "rows": rows, "labels": _answers(loop, MAIN)}


def _answers(loop: Run, arm: str) -> int:
    """How many of people's Labels an arm has learned from so far."""
    voices = _voices(loop, arm)
    authors = loop.workspace.ledger.labels(kinds={"person"})["author"].to_pylist()
    return sum(voices.hears(author) for author in authors)


def _train(loop: Run, frozen: Mapping[str, Any], base: str) -> dict[str, Any]:
    """One adapter per snapshot, each from the base, so that the order of rounds leaves no trace in the weights."""
    adapters, seconds = {}, {}
    for arm, name in frozen["snapshots"].items():
        made = loop.learner.train(name, base=base, progress=loop.progress)
        loop.workspace.ledger.add_adapter(
            Adapter(made.adapter, name, made.base, made.recipe, made.metrics, made.folder, arm)
        )
        adapters[arm], seconds[arm] = made.adapter, round_seconds(made.seconds)
    return {"adapters": adapters, "training_seconds": seconds}


def _measure(loop: Run, frozen: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Both adapters on the reserved test rows, which neither has seen, and the paired difference between them."""
    closed = current(loop.workspace).kind == "class"
    rows = snapshot.load(loop.workspace.store, frozen["snapshots"][MAIN], split="test")
    if not rows.num_rows:
        raise UsageError(
            "no test row has an answer to measure against",
            where=f"snapshot {frozen['snapshots'][MAIN][:12]}",
            next="Ingest gold or reference answers, or label the reserved rows",
        )
    classes = {}
    for arm, name in frozen["snapshots"].items():
        known = snapshot.load(loop.workspace.store, name, split="train")["completion"].to_pylist()
        classes[arm] = sorted(set(known)) if closed else []
    return loop.learner.compare(trained["adapters"], rows, classes, closed)


def _report(
    number: int,
    chosen: Mapping[str, Any],
    frozen: Mapping[str, Any],
    trained: Mapping[str, Any],
    measured: Mapping[str, Any],
) -> dict[str, Any]:
    arms = measured["arms"]
    twin = arms.get(TWIN, {"value": None, "ci95": None})
    return {
        "round": number,
        "labels": frozen["labels"],
        "metric": arms[MAIN]["value"],
        "metric_ci95": arms[MAIN]["ci95"],
        "random_metric": twin["value"],
        "random_ci95": twin["ci95"],
        "difference": measured.get("difference"),
        "snapshot": frozen["snapshots"][MAIN],
        "adapter": trained["adapters"][MAIN],
        "random_snapshot": frozen["snapshots"].get(TWIN),
        "random_adapter": trained["adapters"].get(TWIN),
        "rows": frozen["rows"],
        "training_seconds": trained["training_seconds"],
        "metric_name": measured["metric"],
        "test_rows": measured["rows"],
        "pool_left": chosen["pool_left"],
        "relabels": chosen.get("relabels", 0),
    }


def estimate(workspace: Workspace, rounds: int, batch: int | None = None) -> dict[str, Any]:
    """What a run would cost before it is started: Labels that people must give, and models that are trained."""
    size = batch or workspace.config.acquisition.batch
    per_record = workspace.config.the_question[1].annotators_per_record
    return {
        "rounds": rounds,
        "labels": rounds * size * per_record,
        "labels_at_random": round(rounds * size * per_record * workspace.config.acquisition.control_share),
        "adapters_trained": 2 * rounds,
        "records": workspace.ledger.counts()["records"],
    }


def reports(workspace: Workspace, name: str) -> list[dict[str, Any]]:
    """The finished rounds of a run, as :func:`run` reported them; none where it has finished none."""
    found = []
    for number in range(1, 1 + max((step[1] for step in workspace.ledger.steps(name)), default=0)):
        parts = [
            workspace.ledger.step(name, number, step) for step in ("select", "freeze", "train", "measure")
        ]
        done = [part for part in parts if part is not None]
        if len(done) == len(parts):
            found.append(_report(number, *done))
    return found


def preview(loop: Run) -> list[dict[str, Any]]:
    """What the next round would ask about and why, without writing anything but scores."""
    workspace = loop.workspace
    number = 1 + len(reports(workspace, loop.name))
    adapter = _adapters(loop, number - 1).get(MAIN)
    base = _base(loop)["base"]
    scores = score(loop, number, adapter, base)["scores"]
    table = load_artifact(workspace, "scores", scores) if scores else None
    picked = picked_for(loop, number, pool(loop), table, loop.rule, adapter, MAIN)
    return [{"record": p.record, "arm": p.arm, "blind": p.blind, "reason": p.reason} for p in picked]
