"""The loop: clean, choose, ask, agree, freeze, train, measure, and again. Every finished step is in the ledger, so a
run that was killed goes on where it stopped and comes to the same snapshots.

What trains and scores is handed in as a :class:`Learner`, who answers as an :class:`Annotator`: this module knows
neither torch nor a server. A random twin learns from as many Labels as the strategy did, chosen at random, so that
what the strategy saves is measured and not assumed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import acquisition, records, relabel, snapshot, voting
from curation.assemble import compose, freeze, one_per_record, reserved_records, vote
from curation.curate import Rules, blocked, curate, load_artifact, load_table, save_table, without
from curation.errors import UsageError
from curation.examples import arms
from curation.ledger import Adapter, Question, Selection, SelectionItem, Showing
from curation.opinions import Voices, settle
from curation.passages import passages_of
from curation.question import current
from curation.text import normalise
from curation.workspace import Progress, Workspace, silent, view

MAIN, TWIN = "main", "random"
RESERVED = "reserved:internal"
# Scoring costs time for every record, and a sample of the pool holds about as good a batch as the whole.
POOL_SAMPLE = 2_000


@dataclass(frozen=True)
class Trained:
    """An adapter that a learner made: its digest, its folder in the artifact store, and what training it cost."""

    adapter: str
    base: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]
    seconds: float
    folder: str


class Learner(Protocol):
    """What trains, scores and measures. Everything it makes goes into the artifact store under its digest."""

    def base(self, texts: Iterator[str], progress: Progress) -> str:
        """Make or find the base model and return its name; ``texts`` are unlabelled, scrubbed prompts."""

    def train(self, snapshot: str, *, base: str, progress: Progress) -> Trained:
        """Train an adapter on a snapshot of the store."""

    def score(self, adapter: str | None, base: str, rows: pa.Table, classes: Sequence[str]) -> pa.Table:
        """SCORES of the rows of a VIEW; by the base alone where ``adapter`` is ``None``."""

    def compare(
        self, adapters: Mapping[str, str], rows: pa.Table, classes: Mapping[str, Sequence[str]], closed: bool
    ) -> dict[str, Any]:
        """``{"metric", "arms": {name: {"value", "ci95"}}, "difference": {"value", "ci95"} | None}`` on EXAMPLES."""


class Annotator(Protocol):
    """Who answers: people behind a channel, or a simulation."""

    name: str
    simulated: bool

    def ask(self, workspace: Workspace, question: Question, showings: Sequence[Showing]) -> int:
        """Bring the showings to the people, each exactly once however often this is called; how many are new."""

    def collect(self, workspace: Workspace, question: Question) -> dict[str, int]:
        """Fetch what they answered and write it to the ledger as Labels that cite their showings; counts of both."""

    def waiting(self, workspace: Workspace, showings: Sequence[str]) -> int:
        """How many of these showings nobody has answered or skipped yet."""

    def where(self, workspace: Workspace) -> str:
        """Where the people find their tasks."""

    def batch(self, workspace: Workspace, question: Question, per_record: int) -> int | None:
        """How many records fit into people's time; ``None`` where nothing limits a batch."""

    def seats(
        self, workspace: Workspace, question: Question, rows: Sequence[tuple[str, str]], per_record: int
    ) -> dict[str, tuple[str, ...]]:
        """Who should see each record: ids of people, or numbers for whoever comes. ``rows`` are (record, words)."""

    def another(
        self,
        workspace: Workspace,
        question: Question,
        rows: Sequence[tuple[str, str]],
        given: Mapping[str, int] | None = None,
    ) -> dict[str, tuple[str, ...]]:
        """Who could give one more answer to each record that has some; nobody where it might be the same person.

        ``given`` are the tasks of the same batch that each person has already.
        """


@dataclass
class Run:
    """One loop over one workspace. ``name`` keys its steps in the ledger: the same name is the same run."""

    workspace: Workspace
    learner: Learner
    annotator: Annotator
    name: str
    progress: Progress = silent
    batch: int | None = None
    strategy: str | None = None
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)

    def once(self, round: int, step: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The output of a step: from the ledger if it was finished before, else worked out now and kept."""
        known = self.workspace.ledger.step(self.name, round, step)
        if known is not None:
            return known
        self.progress(f"round {round}: {step}", 0, None)
        start = self.clock()
        output = work()
        output["seconds"] = round_seconds(self.clock() - start)
        return self.workspace.ledger.finish_step(self.name, round, step, output)

    @property
    def rule(self) -> acquisition.AcquisitionRule:
        """How the next batch is chosen."""
        section = self.workspace.config.acquisition
        return acquisition.AcquisitionRule(
            strategy=self.strategy or section.strategy,
            batch=self.batch or self._fitting() or section.batch,
            control_share=section.control_share,
            blind_share=section.blind_share,
            seed=section.seed,
        )

    def _fitting(self) -> int | None:
        asked = self.workspace.config.the_question[1].annotators_per_record
        return self.annotator.batch(self.workspace, current(self.workspace), asked)


def round_seconds(seconds: float) -> float:
    """Seconds to the tenth: more digits would only pretend."""
    return round(seconds, 1)


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
    scores = loop.once(number, "score", lambda: _score(loop, number, previous, base))["scores"]
    return base, loop.once(number, "select", lambda: _select(loop, number, scores, previous))


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


def pool(loop: Run) -> pa.Table:
    """Every record that people may be asked about now: not reserved, not kept out, one row each."""
    workspace = loop.workspace
    rules = Rules(workspace)
    out = blocked(workspace, rules) | reserved_records(workspace)
    rows = one_per_record(without(view(workspace, rule=rules.scrub), out))
    if loop.annotator.simulated:
        answerable = workspace.ledger.labels(kinds=_KNOWN | {"candidate"})["record"].combine_chunks()
        rows = rows.filter(pc.is_in(rows["record"], value_set=answerable))
    return rows


def arm_of(selection: Selection) -> str:
    """Whom a selection was made for: the strategy, which may draw at random too, or its random twin."""
    return TWIN if any(item.arm == TWIN for item in selection.items) else MAIN


def asked(loop: Run, arm: str) -> set[str]:
    """The records that the rounds of this run have chosen, for the strategy or for its random twin."""
    return {
        item.record
        for selection in loop.workspace.ledger.selections(loop.name)
        if arm_of(selection) == arm
        for item in selection.items
    }


def _score(loop: Run, number: int, adapter: str | None, base: str) -> dict[str, Any]:
    """Scores of a sample of the pool under the latest adapter; before there is one, under the base."""
    rows = without(pool(loop), asked(loop, MAIN))
    if not rows.num_rows:
        return {"scores": None}
    keys = pa.array([records.digest(f"{number}\0{record}") for record in rows["record"].to_pylist()])
    sample = rows.take(pc.sort_indices(keys)[:POOL_SAMPLE])
    question = current(loop.workspace)
    scores = loop.learner.score(adapter, base, sample, question.classes if question.kind == "class" else ())
    return {"scores": save_table(loop.workspace, "scores", f"{loop.name}-{number}-{adapter or base}", scores)}


def _select(loop: Run, number: int, scores: str | None, adapter: str | None) -> dict[str, Any]:
    """The round's batch; in a simulation also the twin's, drawn at random from all that the twin has not seen."""
    rows = pool(loop)
    # People's time changes while they work: the size of a round is settled once.
    size = loop.once(number, "size", lambda: {"batch": loop.rule.batch})["batch"]
    chosen = {MAIN: _choose(loop, number, rows, scores, replace(loop.rule, batch=size), adapter)}
    if loop.annotator.simulated:
        rule = acquisition.AcquisitionRule(strategy="random", batch=size, control_share=0.0, seed=number)
        chosen[TWIN] = _choose(loop, number, rows, None, rule, None, arm=TWIN)
    left = rows.num_rows - len(asked(loop, MAIN) & set(rows["record"].to_pylist()))
    return {"selections": chosen, "pool_left": left, "relabels": _relabels(loop, chosen[MAIN])}


def _relabels(loop: Run, selection: str) -> int:
    """How many records of a selection had answers before."""
    (found,) = [s for s in loop.workspace.ledger.selections(loop.name) if s.id == selection]
    return sum(item.arm == acquisition.RELABEL for item in found.items)


def _choose(
    loop: Run,
    number: int,
    rows: pa.Table,
    scores: str | None,
    rule: acquisition.AcquisitionRule,
    adapter: str | None,
    *,
    arm: str = MAIN,
) -> str:
    """Pick a batch and write down what was picked, why, and what each annotator will see of it.

    A choice that is there already stands, however much people have answered since: a run may be killed behind it.
    """
    for selection in loop.workspace.ledger.selections(loop.name):
        if selection.round == number and arm_of(selection) == arm:
            return selection.id
    table = load_artifact(loop.workspace, "scores", scores) if scores else None
    picked = _picked(loop, number, rows, table, rule, adapter, arm)
    if not picked:
        raise UsageError(
            "no record is left to ask about", where=str(loop.workspace.root), next="Ingest more rows"
        )
    suggestions = _suggestions(table, adapter) if adapter else {}
    return loop.workspace.ledger.add_selection(
        round=number,
        run=loop.name,
        strategy=TWIN if arm == TWIN else rule.strategy,
        adapter=adapter,
        items=tuple(SelectionItem(p.record, TWIN if arm == TWIN else p.arm, p.reason) for p in picked),
        showings=_show(loop, _with_answered(loop, rows, picked), picked, suggestions),
    )


def _picked(
    loop: Run,
    number: int,
    rows: pa.Table,
    scores: pa.Table | None,
    rule: acquisition.AcquisitionRule,
    adapter: str | None,
    arm: str,
) -> acquisition.Selection:
    """New records, and in the places where that is worth more, records that people have answered already.

    A simulation answers the same however often it is asked, and the random arm only ever asks about new records.
    """
    new = acquisition.select(
        scores, _prioritised(loop, rows), rule, exclude=dict.fromkeys(asked(loop, arm), "labelled")
    )
    if arm == TWIN or loop.annotator.simulated:
        return new
    question = current(loop.workspace)
    return relabel.mixed(
        loop.workspace,
        question,
        new,
        rule,
        scores=scores if adapter else None,
        trust=relabel.trust_in_model(loop.workspace, question, loop.name, range(2, number)),
        seats=lambda wanted: loop.annotator.another(loop.workspace, question, wanted),
    )


def _prioritised(loop: Run, rows: pa.Table) -> pa.Table:
    """The pool with how far the functions leave each record's class open, where there are functions."""
    table = load_table(loop.workspace, "probabilities", Rules(loop.workspace).scrub)
    if table is None or not table.num_rows:
        return rows
    proba = np.array(table["proba"].to_pylist(), np.float64)
    wanted = dict(zip(table["record"].to_pylist(), voting.priority(proba).tolist(), strict=True))
    column = [wanted.get(record) for record in rows["record"].to_pylist()]
    return rows.append_column(acquisition.PRIORITY, pa.array(column, pa.float64()))


def _with_answered(loop: Run, rows: pa.Table, picked: Sequence[acquisition.Picked]) -> pa.Table:
    """The pool's rows and those of relabels that are none of them: held, because people disagree."""
    missing = {p.record for p in picked} - set(rows["record"].to_pylist())
    if not missing:
        return rows
    view_of = loop.workspace.ledger.view_pages(
        scrub_rule=Rules(loop.workspace).scrub, records=sorted(missing)
    )
    return pa.concat_tables([rows, *(one_per_record(page.table) for page in view_of)])


@dataclass(frozen=True)
class _Proposal:
    """What the page of a record may suggest, by whom, and how sure that is."""

    text: str
    by: str
    confidence: float | None = None


_NOTHING = _Proposal("", "")


def _suggestions(scores: pa.Table | None, adapter: str) -> dict[str, _Proposal]:
    if scores is None:
        return {}
    columns = (scores[name].to_pylist() for name in ("record", "completion", "confidence"))
    return {
        record: _Proposal(text, adapter, confidence)
        for record, text, confidence in zip(*columns, strict=True)
        if text is not None
    }


def _show(
    loop: Run, rows: pa.Table, picked: Sequence[acquisition.Picked], suggestions: Mapping[str, _Proposal]
) -> list[Showing]:
    """One Showing per record and annotator: the model's suggestion, else the source's draft, unless it is blind.

    What is judged is shown to everybody; a blind showing then leaves out only why it was chosen.
    """
    workspace = loop.workspace
    question = current(workspace)
    columns = ("record", "messages", "prompt", "completion", "trust")
    seen = {row[0]: row[1:] for row in zip(*(rows[name].to_pylist() for name in columns), strict=True)}
    votes = _votes(workspace, question)
    proposed = {}
    for pick in picked:
        _, _, draft, trust = seen[pick.record]
        source = _Proposal(draft, "source") if trust == "candidate" and draft is not None else None
        proposed[pick.record] = suggestions.get(pick.record) or votes.get(pick.record) or source
    words = [
        (p.record, f"{seen[p.record][1]} {(proposed[p.record] or _NOTHING).text}")
        for p in picked
        if p.arm != acquisition.RELABEL
    ]
    per_record = workspace.config.the_question[1].annotators_per_record
    seats = loop.annotator.seats(workspace, question, words, per_record)
    again = [(p.record, "") for p in picked if p.arm == acquisition.RELABEL]
    given = Counter(person for people in seats.values() for person in people)
    seats |= loop.annotator.another(workspace, question, again, given) if again else {}
    passages = passages_of(workspace, {record: seen[record][1] for record in proposed})
    hides = question.kind in ("edit", "class")
    showings = []
    for pick in picked:
        # One more opinion must be somebody's own: nothing on the page says what others or the model think.
        alone = pick.arm == acquisition.RELABEL
        proposal = None if (pick.blind and hides) or alone else proposed[pick.record]
        why = {"why": pick.reason} if alone else _beside(pick, proposed[pick.record])
        for person in seats[pick.record]:
            showings.append(
                Showing(
                    record=pick.record,
                    question=question.name,
                    question_version=question.version,
                    view=records.digest(records.canonical_json(seen[pick.record][0])),
                    suggestion=proposal.text if proposal else None,
                    suggestion_by=proposal.by if proposal else None,
                    passages=passages[pick.record],
                    blind=pick.blind,
                    annotator=person,
                    extra=why,
                )
            )
    return showings


def _votes(workspace: Workspace, question: Question) -> dict[str, _Proposal]:
    """What the functions make of each record, where they vote on the classes that people are asked for."""
    table = (
        load_table(workspace, "probabilities", Rules(workspace).scrub) if question.kind == "class" else None
    )
    found = {}
    for row in table.to_pylist() if table is not None else ():
        if row["label"] in question.classes and row["weight"]:
            found[row["record"]] = _Proposal(row["label"], "functions", max(row["proba"]))
    return found


def _beside(pick: acquisition.Picked, proposal: _Proposal | None) -> dict[str, Any]:
    """What a Showing remembers beside the page. Of a suggestion that was held back only the digest: enough to see later
    whether people came to the same answer by themselves.
    """
    if pick.blind:
        return {"hidden": records.digest(normalise(proposal.text))} if proposal else {}
    return {"why": pick.reason, "confidence": proposal.confidence if proposal else None}


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

    With real people the twin learns from the control arm of every batch so far.
    """
    workspace = loop.workspace
    if loop.annotator.simulated:
        twins = frozenset(a.id for a in workspace.ledger.authors() if a.kind == f"simulated-{TWIN}")
        only = twins if arm == TWIN else frozenset()
        return Voices(only=only, silent=twins if arm == MAIN else frozenset(), sources=False)
    if arm == MAIN:
        return Voices()
    control = frozenset(record for record, (which, _) in arms(workspace).items() if which == "control")
    return Voices(records=control)


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
    scores = _score(loop, number, adapter, base)["scores"]
    table = load_artifact(workspace, "scores", scores) if scores else None
    picked = _picked(loop, number, pool(loop), table, loop.rule, adapter, MAIN)
    return [{"record": p.record, "arm": p.arm, "blind": p.blind, "reason": p.reason} for p in picked]
