"""From opinions to a snapshot: which records make its rows, why others do not, and what the gates are told.

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

from curation import consensus, pii, records, snapshot, voting
from curation.collector import without_collector
from curation.config import settings
from curation.consensus import Consensus, Opinion
from curation.curate import BLOCKING, STAGES, Rules, blocked, require_covered, save_table, tally, without
from curation.engine import cores
from curation.errors import UsageError
from curation.examples import Lineage, example_tables
from curation.ledger import Function, Question
from curation.marks import left_in, marked
from curation.opinions import Voices, agree, opinions, training_kinds
from curation.question import current
from curation.weak import weak_rows
from curation.workspace import Progress, Workspace, silent, view

MOST_NAMED = 10  # records that a refusal names
SPLIT_OF_ROLE = {"test": "test", "dev": "validation"}


def vote(workspace: Workspace, *, progress: Progress = silent) -> dict[str, Any] | None:
    """Apply the workspace's labeling functions to every record but those of ``test``; ``None`` where there are none.

    The answers to ``dev`` measure the functions, choose the label model and calibrate it. The votes on the other records
    and their probabilities are kept as artifacts; the report is returned, with up to three wrong votes of each function
    on ``dev``. Raises :class:`UsageError` where the question has no classes.
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
    if rows.num_rows and not question.classes:
        raise UsageError(
            f"question {question.name!r} is of kind {question.kind!r} and has no classes to vote for",
            where=str(workspace.root / "tilth.toml"),
            next=f'Set kind = "class" in [question.{question.name}], or take the labeling functions away',
        )
    chosen = voting.functions_for(functions, question.classes)
    votes = voting.apply_functions(
        chosen, rows, classes=question.classes, limits=voting.Limits(), processes=cores()
    )
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
    lineage = Lineage.of(workspace, rules)
    heard = opinions(workspace, question, voices, training_kinds(voices))
    people = [o for o in heard if o.kind in ("person", "curator")]
    composed.alpha = consensus.krippendorff_alpha((o.record, o.author, o.value) for o in people)
    agreed = agree(workspace, question, heard)
    composed.held = [c for c in agreed if c.needs_review]
    beside = _beside(workspace, roles, lineage)
    near_test = _beside(workspace, [r for r, role in roles.items() if role == "test"], lineage)
    out = stopped | set(roles) | beside
    usable = [c for c in agreed if not c.needs_review and c.record not in out]
    taken = out | {c.record for c in agreed}
    weak = weak_rows(workspace, question, usable, taken) if voices.weak else []
    progress("composing", len(usable), None)
    splits = {"train": [*usable, *weak], **_reserved(workspace, question, roles, rules)}
    splits["validation"] = [c for c in splits["validation"] if c.record not in near_test]
    classes = len(question.classes) if question.kind == "class" else None
    for split, rows in splits.items():
        composed.tables += list(example_tables(workspace, rules, rows, split, lineage, classes))
    composed.stages = _stage_counts(workspace, rules, beside, composed)
    _guard(workspace, rules, splits["train"], composed)
    return composed


def _beside(workspace: Workspace, reserved: Collection[str], lineage: Lineage) -> set[str]:
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
    """Every text as its source brought it, page by page: what an alias must not be found in.

    People and models have seen the aliases, and their answers may well repeat them.
    """
    for page in workspace.ledger.view_pages(scrub_rule=None, kinds=records.SOURCE_TRUST):
        yield from page.table["prompt"].to_pylist()
        yield from (text for text in page.table["completion"].to_pylist() if text)


def _roles(workspace: Workspace) -> dict[str, str]:
    items = workspace.ledger.eval_items()
    return dict(zip(items["record"].to_pylist(), items["role"].to_pylist(), strict=True))


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
