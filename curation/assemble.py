"""From opinions to examples: votes of functions, Labels of people and sources, weighed, cleaned and frozen.

This is where a snapshot's rows come from. It reads the ledger and the stages' decisions, and writes one artifact.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation import consensus, judging, pii, records, snapshot, voting
from curation.config import settings
from curation.consensus import Consensus, Opinion
from curation.curate import (
    BLOCKING,
    STAGES,
    Rules,
    blocked,
    changes,
    load_table,
    require_covered,
    save_table,
    scrubbed_labels,
    tally,
    without,
)
from curation.engine import without_collector
from curation.ledger import Function, Question
from curation.marks import left_in, marked
from curation.question import current
from curation.records import SOURCE_TRUST
from curation.workspace import Progress, Workspace, silent, view

# Weak rows, labelled by functions alone, must be this sure, and there may be this many of them for each row that a
# person labelled: enough to teach what nobody has labelled yet, too few to drown what people said.
WEAK_CONFIDENCE = 0.8
WEAK_SHARE = 1.0
# Of so many of them at most (neighbours are sought among all pairs), the share that their neighbours confirm is kept.
WEAK_POOL = 10_000
WEAK_TRUSTED = 0.5
MOST_NAMED = 10  # records that a refusal names
SPLIT_OF_ROLE = {"test": "test", "dev": "validation"}


@dataclass(frozen=True)
class Voices:
    """Whose Labels count: everybody's less ``silent``, or only those of ``only``; functions too where ``weak``.

    Two arms of one experiment train on the same records' worth of different people's Labels, so an author can be left
    out by opaque id.
    """

    only: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    records: frozenset[str] | None = None
    weak: bool = True
    sources: bool = True

    def hears(self, author: str) -> bool:
        """Whether the Labels of ``author`` count."""
        return author in self.only if self.only else author not in self.silent


def vote(workspace: Workspace, *, progress: Progress = silent) -> dict[str, Any] | None:
    """Apply the workspace's labeling functions to every record but those of ``test``; ``None`` where there are none.

    The answers to ``dev`` measure the functions, choose the label model and calibrate it. The votes on the other records
    and their probabilities are kept as artifacts; the report is returned, with up to three wrong votes of each function
    on ``dev``.
    """
    functions = find_functions(workspace)
    if not functions:
        return None
    progress("voting", 0, None)
    declared = {name for function in functions for name in function.classes}
    question = current(workspace, function_classes=sorted(declared))
    rules = Rules(workspace)
    roles = _roles(workspace)
    rows = one_per_record(
        without(view(workspace, rule=rules.scrub), {r for r, role in roles.items() if role == "test"})
    )
    chosen = voting.functions_for(functions, question.classes)
    votes = voting.apply_functions(chosen, rows, classes=question.classes, limits=voting.Limits())
    gold = _dev_gold(workspace, question, roles, rules, votes)
    probabilities, report = voting.label(votes, model=workspace.config.functions.label_model, gold=gold)
    reserved = set(roles)
    save_table(workspace, "votes", rules.scrub, without(votes.table(), reserved))
    save_table(workspace, "probabilities", rules.scrub, without(probabilities, reserved))
    workspace.ledger.add_functions(
        [Function(f.digest, f.name, f.path.name, f.source, f.classes) for f in functions]
    )
    told = report.as_dict()
    if gold is not None:
        _add_examples(told["functions"], votes, gold, rows)
    return told


def _dev_gold(
    workspace: Workspace,
    question: Question,
    roles: Mapping[str, str],
    rules: Rules,
    votes: voting.Votes,
) -> np.ndarray | None:
    """Class indices of the answers to ``dev``, -1 elsewhere; ``None`` where no answer is known."""
    dev = {record: role for record, role in roles.items() if role == "dev"}
    if question.kind != "class" or not dev:
        return None
    answers = {c.record: c.value for c in _reserved(workspace, question, dev, rules)["validation"]}
    if not answers:
        return None
    return voting.read_gold([answers.get(record) for record in votes.records], votes.classes)


def _add_examples(
    functions: list[dict[str, Any]], votes: voting.Votes, gold: np.ndarray, rows: pa.Table
) -> None:
    """Put each function's worst wrong votes beside its figures, with the text that it was wrong about."""
    texts = dict(zip(rows["record"].to_pylist(), rows["prompt"].to_pylist(), strict=True))
    worst = voting.worst_examples(votes, gold)
    for function in functions:
        function["worst"] = [
            {"record": record, "vote": vote, "gold": right, "prompt": texts[record]}
            for record, vote, right in worst[function["name"]]
        ]


def find_functions(workspace: Workspace) -> list[voting.Function]:
    """The labeling functions that the configuration's modules hold, found by path."""
    found: list[voting.Function] = []
    for module in workspace.config.functions.modules:
        path = workspace.root / module
        if path.is_file() or any(not file.name.startswith("_") for file in path.glob("*.py")):
            found += voting.find_functions(path)
    return found


def one_per_record(rows: pa.Table) -> pa.Table:
    """The first row of every record: for stages that look at prompts alone."""
    ids = rows["record"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    first = np.unique(ids, return_index=True)[1]
    return rows.take(pa.array(np.sort(first)))


def reserved_records(workspace: Workspace) -> set[str]:
    """The records that belong to any evaluation set."""
    return set(workspace.ledger.eval_items()["record"].to_pylist())


def opinions(
    workspace: Workspace,
    question: Question,
    voices: Voices,
    kinds: set[str],
    records: Sequence[str] | None = None,
) -> list[Opinion]:
    """The latest Label of each author on each record, as seen after scrubbing, of the given kinds.

    What people said under another question is no answer to this one. Whoever accepts an answer stands behind its text;
    an answer that at least as many reject as accept is nobody's.
    """
    rows = scrubbed_labels(workspace, Rules(workspace), kinds, records)
    latest: dict[tuple[str, str, str], Opinion] = {}
    shown = _accepted(workspace, rows) if question.kind == "accept" else {}
    names = ("record", "label", "author", "kind", "body", "question")
    columns = (rows[name].to_pylist() for name in names)
    for record, label, author, kind, body, asked in zip(*columns, strict=True):
        if kind == "person" and question.name and asked not in (None, question.name):
            continue
        if kind == "person" and question.kind == "accept":
            body = shown.get(label)
        value = None if body is None else question_value(question, body)
        if value is None or not voices.hears(author):
            continue
        if voices.records is not None and record not in voices.records:
            continue
        # A source may give several references; a person's newer answer replaces the older one.
        key = label if kind in SOURCE_TRUST else author
        latest[record, kind, key] = Opinion(record, label, author, kind, value)
    return list(latest.values())


def _accepted(workspace: Workspace, rows: pa.Table) -> dict[str, str]:
    """The text that each accepting Label stands behind, for records that more people accept than reject."""
    people = [row for row in rows.to_pylist() if row["kind"] == "person" and row["showing"]]
    shown = {s.id: s.suggestion for s in workspace.ledger.showings([row["showing"] for row in people])}
    votes: dict[tuple[str, str], int] = {}
    for row in people:
        key = (row["record"], shown.get(row["showing"]) or "")
        votes[key] = votes.get(key, 0) + (1 if row["body"] == "accept" else -1)
    return {
        row["label"]: text
        for row in people
        if (text := shown.get(row["showing"])) and row["body"] == "accept" and votes[row["record"], text] > 0
    }


def question_value(question: Question, value: str) -> str | None:
    """The answer as the question knows it; ``None`` where a class is not (or no longer) one of its classes.

    A class that a revision renamed or merged counts as the new one.
    """
    if question.kind in ("compare", "rubric", "spans"):
        return None  # an opinion about an answer is no answer
    if question.kind != "class":
        return value
    value = question.mapping.get(value) or value
    return value if value in question.classes else None


@dataclass
class Composition:
    """The rows of a snapshot to be, why others are not among them, and what the gates will be told.

    ``stages`` counts rows in and out of each stage with reasons; ``held`` are records that wait for a curator; ``marked``
    are records in which personal data that somebody marked still stands.
    """

    tables: list[pa.Table] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    held: list[Consensus] = field(default_factory=list)
    alpha: float | None = None
    unscanned: int = 0
    open_spans: int = 0
    collisions: int = 0
    marked: list[str] = field(default_factory=list)
    leaks: int = 0
    eval_sets: list[str] = field(default_factory=list)

    def count(self, split: str) -> int:
        """How many rows a split has."""
        return sum(pc.sum(pc.equal(table["split"], split)).as_py() or 0 for table in self.tables)


@without_collector()
def compose(
    workspace: Workspace, voices: Voices | None = None, *, progress: Progress = silent
) -> Composition:
    """Every example that may be trained or measured on, with split, weight and lineage.

    Raises :class:`GateRefused` where a stage has not seen every row.
    """
    voices = voices or Voices()
    rules = Rules(workspace)
    require_covered(workspace, rules)
    question = current(workspace)
    composed = Composition()
    stopped = blocked(workspace, rules, STAGES[:-1])  # whether people agree is looked at anew below
    roles = _roles(workspace)
    lineage = _Lineage.of(workspace, rules)
    heard = opinions(workspace, question, voices, _training_kinds(voices))
    people = [o for o in heard if o.kind in ("person", "curator")]
    composed.alpha = consensus.krippendorff_alpha((o.record, o.author, o.value) for o in people)
    agreed = _agree(workspace, question, heard)
    composed.held = [c for c in agreed if c.needs_review]
    beside = _beside(workspace, roles, lineage)
    near_test = _beside(workspace, [r for r, role in roles.items() if role == "test"], lineage)
    out = stopped | set(roles) | beside
    usable = [c for c in agreed if not c.needs_review and c.record not in out]
    weak = _weak(workspace, question, usable, out | {c.record for c in agreed}, voices)
    progress("composing", len(usable), None)
    splits = {"train": [*usable, *weak], **_reserved(workspace, question, roles, rules)}
    splits["validation"] = [c for c in splits["validation"] if c.record not in near_test]
    classes = len(question.classes) if question.kind == "class" else None
    for split, rows in splits.items():
        composed.tables += list(_examples(workspace, rules, rows, split, lineage, classes))
    composed.stages = _stage_counts(workspace, rules, beside, composed)
    _guard(workspace, rules, splits["train"], composed)
    return composed


def _beside(workspace: Workspace, reserved: Collection[str], lineage: _Lineage) -> set[str]:
    """Records that share a group or a cluster of near-duplicates with a reserved one, and are not reserved."""
    if not reserved:
        return set()
    groups = workspace.ledger.groups()
    taken = {groups[record] for record in reserved if record in groups}
    clusters = {lineage.clusters[record] for record in reserved if record in lineage.clusters}
    near = {record for record, group in groups.items() if group in taken}
    near |= {record for record, cluster in lineage.clusters.items() if cluster in clusters}
    return near - set(reserved)


def _stage_counts(
    workspace: Workspace, rules: Rules, beside: set[str], composed: Composition
) -> list[dict[str, Any]]:
    """Rows into and out of each stage, with the reasons in words."""
    left = workspace.ledger.counts()["records"]
    counted = []
    for stage in STAGES[:-1]:
        found = workspace.ledger.decisions(stage=stage, rule=rules.of(stage))
        stopping = found.filter(pc.is_in(found["action"], value_set=pa.array(BLOCKING)))
        gone = len(set(stopping["record"].to_pylist()))
        counted.append(
            {
                "stage": stage,
                "in": left,
                "out": left - gone,
                "reasons": tally(workspace, stage, rules.of(stage)),
            }
        )
        left -= gone
    held = len({c.record for c in composed.held})
    counted.append(
        {
            "stage": "split",
            "in": left,
            "out": left - len(beside),
            "reasons": {"beside a reserved row": len(beside)},
        }
    )
    counted.append(
        {
            "stage": "consensus",
            "in": left - len(beside),
            "out": left - len(beside) - held,
            "reasons": {"people disagree": held},
        }
    )
    return counted


def _guard(workspace: Workspace, rules: Rules, train: Sequence[Consensus], composed: Composition) -> None:
    """What the gates judge, looked at once more on the very rows that would be frozen."""
    ids = {c.record for c in train}
    for stage, attribute in (("scrub", "unscanned"), ("leak", "leaks")):
        found = workspace.ledger.decisions(stage=stage, rule=rules.of(stage))
        bad = found.filter(pc.is_in(found["action"], value_set=pa.array(BLOCKING)))
        setattr(composed, attribute, len(ids & set(bad["record"].to_pylist())))
    composed.marked = left_in(composed.tables, marked(workspace))
    composed.eval_sets = sorted(set(_roles(workspace).values()))
    aliases = workspace.ledger.aliases()
    if aliases and workspace.config.pii.mode == "pseudonym":
        composed.collisions = len(pii.collisions(aliases, _raw_texts(workspace)))


def _raw_texts(workspace: Workspace) -> Iterator[str]:
    """Every text as it came in, page by page: what an alias must not be found in."""
    for page in workspace.ledger.view_pages(scrub_rule=None):
        yield from page.table["prompt"].to_pylist()
        yield from (text for text in page.table["completion"].to_pylist() if text)


def _training_kinds(voices: Voices) -> set[str]:
    return {"person", "curator"} | ({"reference"} if voices.sources else set())


def _roles(workspace: Workspace) -> dict[str, str]:
    items = workspace.ledger.eval_items()
    return dict(zip(items["record"].to_pylist(), items["role"].to_pylist(), strict=True))


def _agree(workspace: Workspace, question: Question, heard: list[Opinion]) -> list[Consensus]:
    """One answer a record, or several of free text, each weighed also by what people think of it."""
    if question.kind == "class":
        skill = consensus.skills(heard, question.classes)
        agreed = consensus.class_consensus(heard, question.classes, priors(workspace, question), skill=skill)
    else:
        agreed = consensus.text_consensus(heard, skill=consensus.skills(heard, None))
    return judging.weighed(agreed, judging.judged(workspace))


def people_skills(workspace: Workspace) -> dict[str, float]:
    """What each person's word on the loop's question is worth; empty where their answers meet too rarely."""
    question = current(workspace)
    heard = opinions(workspace, question, Voices(), {"person"})
    return consensus.skills(heard, question.classes if question.kind == "class" else None)


def settle(workspace: Workspace) -> int:
    """Leave to a curator the records that people disagree on or call poor, and lift what is settled by now; how many are
    held.

    A Label of a curator, and a record let in by one, ends the matter.
    """
    rules, question = Rules(workspace), current(workspace)
    spoken = sorted(set(workspace.ledger.labels(kinds={"person"})["record"].to_pylist()))
    heard = opinions(workspace, question, Voices(), _training_kinds(Voices()), spoken) if spoken else []
    held = {c.record: c for c in _agree(workspace, question, heard) if c.needs_review}
    found = [records.decision(c.record, "hold", c.reason) for c in held.values()]
    standing = workspace.ledger.decisions(stage="consensus", rule=rules.consensus)
    new = changes(standing, records.table(found, records.DECISIONS))
    if new.num_rows:
        workspace.ledger.decide("consensus", rules.consensus, new, covered=[], supersede=False)
    return len(held)


def priors(workspace: Workspace, question: Question) -> dict[str, np.ndarray]:
    """The label model's distribution over the question's classes, for the records that functions voted on."""
    table = load_table(workspace, "probabilities", Rules(workspace).scrub)
    if table is None or not table.num_rows:
        return {}
    index = {name: i for i, name in enumerate(question.classes)}
    priors = {}
    for row in table.filter(pc.greater(table["weight"], 0)).to_pylist():
        prior = np.full(len(index), 1e-3 / len(index))
        for name, p in zip(row["classes"], row["proba"], strict=True):
            if name in index:
                prior[index[name]] += p
        priors[row["record"]] = prior / prior.sum()
    return priors


def _weak(
    workspace: Workspace, question: Question, usable: list[Consensus], taken: set[str], voices: Voices
) -> list[Consensus]:
    """Rows that only functions labelled, surely enough and like their neighbours; drawn by digest, the same every time."""
    if not (voices.weak and question.kind == "class"):
        return []
    table = load_table(workspace, "probabilities", Rules(workspace).scrub)
    if table is None:
        return []
    found = []
    for row in table.filter(pc.greater(table["weight"], 0)).to_pylist():
        best = int(np.argmax(row["proba"]))
        sure = float(row["proba"][best])
        if sure >= WEAK_CONFIDENCE and row["record"] not in taken:
            found.append(Consensus(row["record"], row["classes"][best], sure, (), (), ("function",), False))
    found.sort(key=lambda c: records.digest("weak" + c.record))
    return _confirmed(workspace, found[:WEAK_POOL])[: int(WEAK_SHARE * len(usable))]


def _confirmed(workspace: Workspace, weak: list[Consensus]) -> list[Consensus]:
    """The half of the rows whose classes the wording of their neighbours confirms best (the cut statistic)."""
    views = _views(workspace, Rules(workspace), weak)
    texts = dict(zip(views["record"].to_pylist(), views["prompt"].to_pylist(), strict=True))
    told = [c for c in weak if c.record in texts]
    if not told:
        return []
    code = {value: i for i, value in enumerate(dict.fromkeys(c.value for c in told))}
    sure = np.zeros((len(told), len(code)))
    sure[np.arange(len(told)), [code[c.value] for c in told]] = [c.confidence for c in told]
    features = voting.lexical_features([texts[c.record] for c in told])
    keep = voting.trusted(sure, features, WEAK_TRUSTED)
    return [c for c, kept in zip(told, keep.tolist(), strict=True) if kept]


def _reserved(
    workspace: Workspace, question: Question, roles: Mapping[str, str], rules: Rules
) -> dict[str, list[Consensus]]:
    """The answers that evaluation measures against: gold where there is some, else references, else people's."""
    # Asked as free text: a class that nobody has named yet is an answer all the same, and a hard one.
    heard = opinions(workspace, Question("", 0, "edit", ()), Voices(), _EVAL_KINDS, records=sorted(roles))
    unsafe = blocked(workspace, rules, ("scrub",))
    by_record: dict[str, dict[str, list[Opinion]]] = {}
    for opinion in heard:
        if opinion.record not in unsafe:
            by_record.setdefault(opinion.record, {}).setdefault(opinion.kind, []).append(opinion)
    found: dict[str, list[Consensus]] = {"validation": [], "test": []}
    for record, kinds in by_record.items():
        kind = next(kind for kind in ("gold", "curator", "reference", "person") if kind in kinds)
        found[SPLIT_OF_ROLE[roles[record]]] += [
            Consensus(record, o.value, 1.0, (o.label,), (o.author,), (o.kind,), False) for o in kinds[kind]
        ]
    return found


_EVAL_KINDS = {"gold", "reference", "person", "curator"}


@dataclass(frozen=True)
class _Lineage:
    """What the rows of a snapshot carry about where they come from."""

    arms: dict[str, tuple[str, int]]
    clusters: dict[str, str]
    functions: dict[str, list[str]]

    @classmethod
    def of(cls, workspace: Workspace, rules: Rules) -> _Lineage:
        clusters = load_table(workspace, "clusters", rules.near)
        votes = load_table(workspace, "votes", rules.scrub)
        functions: dict[str, list[str]] = {}
        if votes is not None:
            given = votes.filter(pc.is_valid(votes["vote"]))
            for record, function in zip(
                given["record"].to_pylist(), given["function"].to_pylist(), strict=True
            ):
                functions.setdefault(record, []).append(function)
        return cls(
            arms=arms(workspace),
            clusters={}
            if clusters is None
            else dict(zip(clusters["record"].to_pylist(), clusters["cluster"].to_pylist(), strict=True)),
            functions=functions,
        )


def arms(workspace: Workspace) -> dict[str, tuple[str, int]]:
    """The arm and the round in which each record was first chosen."""
    found: dict[str, tuple[str, int]] = {}
    for selection in workspace.ledger.selections():
        for item in selection.items:
            found.setdefault(item.record, (item.arm, selection.round))
    return found


PAGE = 20_000


def _examples(
    workspace: Workspace,
    rules: Rules,
    rows: Sequence[Consensus],
    split: str,
    lineage: _Lineage,
    classes: int | None,
) -> Iterator[pa.Table]:
    """Consensus rows joined with the scrubbed messages of their records, a page at a time."""
    for start in range(0, len(rows), PAGE):
        page = rows[start : start + PAGE]
        views = _views(workspace, rules, page)
        places = pc.index_in(pa.array([c.record for c in page], pa.string()), value_set=views["record"])
        if places.null_count:  # not in view any more: undone, or erased
            page = [c for c, place in zip(page, places.to_pylist(), strict=True) if place is not None]
            places = places.drop_null()
        yield _example_table(page, views.take(places), split, lineage, classes)


def _views(workspace: Workspace, rules: Rules, page: Sequence[Consensus]) -> pa.Table:
    """The scrubbed VIEW of the records of a page, one row each, without completions."""
    ids = list(dict.fromkeys(c.record for c in page))
    pages = workspace.ledger.view_pages(scrub_rule=rules.scrub, records=ids, kinds=())
    return pa.concat_tables([records.VIEW.empty_table(), *(p.table for p in pages)]).combine_chunks()


def _example_table(
    agreed: Sequence[Consensus], views: pa.Table, split: str, lineage: _Lineage, classes: int | None
) -> pa.Table:
    """One row of EXAMPLES per consensus; ``views`` holds the record of each, in the same order.

    Among so many ``classes`` confidence counts from a guess upwards; a free text has as much weight as confidence.
    """
    sure = np.array([c.confidence for c in agreed])
    weight = sure if classes is None or split != "train" else voting.loss_weight(sure, classes)
    chosen = [lineage.arms.get(c.record, (None, None)) for c in agreed]
    train = split == "train"
    columns: dict[str, Any] = {
        **{name: views[name] for name in ("record", "messages", "prompt", "source", "group")},
        "completion": [c.value for c in agreed],
        "split": [split] * len(agreed),
        "weight": np.round(weight, 6),
        "labels": [c.labels for c in agreed],
        "authors": [c.authors for c in agreed],
        "author_kinds": [c.kinds for c in agreed],
        "functions": [sorted(lineage.functions.get(c.record, ())) if train else () for c in agreed],
        "arm": [arm for arm, _ in chosen],
        "round": [number for _, number in chosen],
        "cluster": [lineage.clusters.get(c.record) for c in agreed],
    }
    arrays = [
        column if isinstance(column, pa.ChunkedArray) else pa.array(column, field.type)
        for field in records.EXAMPLES
        for column in (columns[field.name],)
    ]
    return pa.Table.from_arrays(arrays, schema=records.EXAMPLES)


@without_collector()
def freeze(
    workspace: Workspace,
    composed: Composition,
    *,
    label: str = "",
    round: int | None = None,
    dry_run: bool = False,
) -> snapshot.Snapshot:
    """Check the gates and commit a snapshot; the same rows give the same name and change nothing.

    ``label`` keeps apart the lines of snapshots that descend from one another: a random twin has its own parents.
    With ``dry_run`` nothing is written, and the snapshot has no name. Raises :class:`GateRefused` with every gate
    that refused.
    """
    section = workspace.config.gates
    rule = snapshot.GateRule(section.pii, section.leakage, section.min_alpha, section.approval)
    facts = _facts(workspace, composed, label, round)
    if dry_run:
        snapshot.refuse(snapshot.check_gates(facts, rule))
        return snapshot.Snapshot("", sum(t.num_rows for t in composed.tables), workspace.store.root)
    frozen = snapshot.freeze(composed.tables, workspace.store, facts=facts, rule=rule)
    book = workspace.ledger
    book.add_snapshot(
        frozen.name,
        round=round,
        rows=frozen.rows,
        manifest_digest=frozen.manifest["digest"],
    )
    book.set_watermark(f"snapshot:{label}", frozen.name)
    return frozen


def _facts(workspace: Workspace, composed: Composition, label: str, round: int | None) -> dict[str, Any]:
    """What the manifest and the data card say of a snapshot, beside its rows; every number is counted here."""
    rules = Rules(workspace)
    config = workspace.config
    return {
        "workspace": config.workspace.name,
        "parent": workspace.ledger.watermark(f"snapshot:{label}"),
        "round": round,
        "rules": {stage: rules.of(stage) for stage in STAGES} | {"settings": settings(config)},
        "versions": versions(),
        "stages": composed.stages,
        "pii": {
            "unscanned": composed.unscanned,
            "open_spans": composed.open_spans,
            "collisions": composed.collisions,
            "marked": len(composed.marked),
            "marked_records": composed.marked[:MOST_NAMED],
            "layers": list(config.pii.layers),
            "mode": config.pii.mode,
        },
        "leakage": {"leaks": composed.leaks, "eval_sets": composed.eval_sets},
        "coverage": {"gaps": {}},
        "agreement": {"alpha": composed.alpha},
        "card": {"title": config.workspace.name, "languages": list(config.workspace.languages)},
    }


def versions() -> dict[str, str]:
    """The versions of what decided about rows; recorded, and no part of a snapshot's name."""
    names = ("tilth", "numpy", "pyarrow", "presidio-analyzer", "snorkel")
    found = {"python": platform.python_version()}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def list_snapshots(workspace: Workspace) -> list[dict[str, Any]]:
    """Every snapshot that exists, oldest first, with its verdict; one that another process froze is listed too."""
    known = {s.name: s for s in workspace.ledger.snapshots()}
    found = []
    for name in snapshot.names(workspace.store):
        shown = snapshot.show(workspace.store, name)
        entry = known.get(name)
        found.append(
            {
                "name": name,
                "rows": shown.rows,
                "splits": shown.splits,
                "round": shown.manifest.get("round"),
                "parent": shown.manifest.get("parent"),
                "verdict": entry.verdict if entry else None,
                "time": shown.manifest["recorded"]["created"],
            }
        )
    return sorted(found, key=lambda row: (row["time"], row["name"]))


def diff_snapshots(workspace: Workspace, old: str, new: str) -> dict[str, Any]:
    """What changed between two snapshots and why, from the decisions and Labels of the ledger."""
    store = workspace.store
    found = snapshot.diff(
        (store, snapshot.resolve(store, old)), (store, snapshot.resolve(store, new)), _reasons(workspace)
    )
    return found.to_dict()


def _reasons(workspace: Workspace) -> Callable[[str], str | None]:
    """Why a record stands where it stands: what keeps it out, else who labelled it last."""
    rules = Rules(workspace)
    told: dict[str, str] = {}
    rows = workspace.ledger.labels(kinds={"person", "curator", "reference"})
    for record, kind, seq in zip(
        rows["record"].to_pylist(), rows["kind"].to_pylist(), rows["seq"].to_pylist(), strict=True
    ):
        told[record] = f"labelled by a {kind} (label {seq})"
    for stage in STAGES:
        for row in workspace.ledger.decisions(stage=stage, rule=rules.of(stage)).to_pylist():
            if row["action"] in BLOCKING:
                told[row["record"]] = f"{stage}: {row['reason']}"
    for row in workspace.ledger.review_states().to_pylist():
        told[row["record"]] = f"a curator: {row['action']} {row['reason'] or ''}".strip()
    return told.get
