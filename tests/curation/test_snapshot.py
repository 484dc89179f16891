"""Freezing, reading and guarding snapshots: same rows, same name, and no changed bit goes unseen."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import artifacts, snapshot
from curation.artifacts import MANIFEST, Store
from curation.errors import ConflictError, GateRefused, IntegrityError, TilthError, UsageError
from curation.records import EXAMPLES, canonical_json, digest, table, user_message
from curation.snapshot import GateRule, rows
from curation.snapshot.freezing import regroup
from curation.snapshot.spool import Spool

FACTS: dict[str, Any] = {
    "pii": {
        "unscanned": 0,
        "open_spans": 0,
        "collisions": 0,
        "marked": 0,
        "layers": ["patterns"],
        "rule": "abc",
    },
    "leakage": {"leaks": 0, "eval_sets": ["e1"]},
    "coverage": {"gaps": {"scrub": 0, "near": 0}},
    "agreement": {"alpha": 0.8},
    "stages": [{"stage": "exact", "in": 12, "out": 10, "reasons": {"an exact copy": 2}}],
    "card": {"title": "Toy rows", "license": "apache-2.0", "languages": ["en"], "tags": ["toy"]},
}


def example(number: int, **fields: Any) -> dict[str, Any]:
    """One toy example; ``fields`` replace its own."""
    row = {
        "record": digest(f"r{number}"),
        "messages": user_message(f"Where is parcel {number}? ☃"),
        "completion": f" It is at stop {number}.",
        "split": ("train", "train", "validation", "test")[number % 4],
        "weight": 1.0 if number % 3 else 0.5,
        "labels": [f"l{number}"],
        "authors": ["a-1"],
        "author_kinds": ["person"],
        "functions": [],
        "source": "main",
    }
    return {**row, **fields}


def examples(count: int, start: int = 0, **fields: Any) -> pa.Table:
    """``count`` toy examples."""
    return table([example(n, **fields) for n in range(start, start + count)], EXAMPLES)


def frozen(root: Path, count: int = 40, **options: Any) -> snapshot.Snapshot:
    """A store below ``root`` with one snapshot."""
    return snapshot.freeze([examples(count)], Store(root), facts=FACTS, **options)


def test_the_name_of_known_rows_never_changes() -> None:
    batch = examples(3).to_batches()[0]
    assert rows.canonical(batch)[0] == (
        '["tilth.row.1",[["user","Where is parcel 0? ☃"]]," It is at stop 0.","train",0.5]'.encode()
    )
    name = rows.name_of(rows.digests(rows.canonical(batch)))
    assert name == "528f1243fbfa3957a2c900809422968364637f83dbe19cf136df11c1009fd714"
    bodies = rows.canonical(batch)
    by_hand = sorted(hashlib.blake2b(body, digest_size=16).digest() for body in bodies)
    assert name == hashlib.sha256(b"tilth.snapshot.1\n" + b"".join(by_hand)).hexdigest()


def test_the_same_rows_have_the_same_name_in_any_order_and_any_tables(tmp_path: Path) -> None:
    whole = examples(40)
    shuffled = whole.take(random.Random(1).sample(range(40), 40))
    first = frozen(tmp_path / "a")
    for n, tables in enumerate(([shuffled], [whole.slice(30), whole.slice(0, 30)], shuffled.to_batches(7))):
        given_ = (t if isinstance(t, pa.Table) else pa.Table.from_batches([t]) for t in tables)
        assert snapshot.freeze(given_, Store(tmp_path / f"b{n}"), facts=FACTS).name == first.name


def test_lineage_and_facts_do_not_change_the_name_and_row_content_does(tmp_path: Path) -> None:
    base = example(0)
    name = _name_of(tmp_path, base)
    for same in (
        {"labels": ["x"]},
        {"arm": "control", "round": 3},
        {"source": "y"},
        {"record": "other"},
        {"prompt": "?"},
    ):
        assert _name_of(tmp_path, {**base, **same}) == name
    changes = (
        {"completion": "x"},
        {"split": "test"},
        {"weight": 0.25},
        {"messages": user_message("x")},
        {"messages": [{"role": "system", "content": base["messages"][0]["content"]}]},
    )
    assert len({name, *(_name_of(tmp_path, {**base, **change}) for change in changes)}) == len(changes) + 1


def _name_of(folder: Path, *given_: dict[str, Any]) -> str:
    store = Store(folder / digest(repr(given_)))
    return snapshot.freeze([table(given_, EXAMPLES)], store, facts=FACTS).name


def _plain(row: dict[str, Any]) -> list[Any]:
    pairs = [[message["role"], message["content"]] for message in row["messages"]]
    return [pairs, row["completion"], row["split"], row["weight"] + 0.0]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(
                st.tuples(st.sampled_from(["user", "assistant", "système"]), st.text()),
                min_size=1,
                max_size=3,
            ),
            st.text(),
            st.sampled_from(["train", "validation", "test"]),
            st.floats(0, 1e6, allow_nan=False),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_fast_canonical_form_is_the_plain_one(found: list[Any]) -> None:
    made = [
        example(
            n,
            messages=[{"role": r, "content": c} for r, c in pairs],
            completion=text,
            split=split,
            weight=weight,
        )
        for n, (pairs, text, split, weight) in enumerate(found)
    ]
    whole = rows.conform(table(made, EXAMPLES))
    plain = [canonical_json([rows.VERSION, *_plain(row)]) for row in made]
    assert rows.canonical(whole.to_batches()[0]) == plain
    # A slice has offsets of its own: they must not shift the messages.
    assert [body for batch in whole.slice(1).to_batches() for body in rows.canonical(batch)] == plain[1:]


def test_freezing_the_same_rows_again_finds_the_snapshot_that_is_there(tmp_path: Path) -> None:
    first = frozen(tmp_path)
    again = snapshot.freeze(
        [examples(40, source="elsewhere")], Store(tmp_path), facts={**FACTS, "stages": []}
    )
    assert (first.fresh, again.fresh) == (True, False)
    assert again.manifest == first.manifest
    assert snapshot.names(Store(tmp_path)) == [first.name]
    assert list((tmp_path / ".staging").iterdir()) == []


def test_rows_that_do_not_fit_in_memory_give_the_same_files(tmp_path: Path) -> None:
    count = 3_000
    small = frozen(tmp_path / "a", count)
    spilled = snapshot.freeze(
        (examples(100, start) for start in range(0, count, 100)),
        Store(tmp_path / "b"),
        facts=FACTS,
        spill_bytes=50_000,
    )
    assert spilled.manifest["files"] == small.manifest["files"]


def test_a_run_on_disk_is_no_larger_than_its_rows(tmp_path: Path) -> None:
    rows = examples(2_000, 0)
    spool = Spool(tmp_path, limit=1)
    spool.add(rows, bytes(16 * rows.num_rows))
    (run,) = tmp_path.iterdir()
    assert run.stat().st_size < 1.5 * rows.nbytes + (200 << 10)  # what the heads of 192 batches may take


def test_large_snapshots_are_cut_into_shards_that_read_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curation.snapshot.freezing.GROUP_ROWS", 10)
    cut = frozen(tmp_path, 200, shard_bytes=2_000)
    shards = sorted(path.name for path in (cut.path / "data").glob("train-*"))
    assert shards == [f"train-{n:05d}-of-{len(shards):05d}.parquet" for n in range(len(shards))]
    assert len(shards) > 2
    assert snapshot.verify(Store(tmp_path), cut.name).rows == 200
    assert snapshot.load(cut.path, split="train").num_rows == cut.splits["train"] == 100


def test_regrouping_keeps_rows_and_order() -> None:
    pieces = [examples(n, start) for n, start in ((3, 0), (0, 3), (9, 3), (1, 12))]
    found = list(regroup(pieces, 5))
    assert [t.num_rows for t in found] == [5, 5, 3]
    assert pa.concat_tables(found)["record"].to_pylist() == examples(13)["record"].to_pylist()
    assert list(regroup([], 5)) == []


def test_what_is_loaded_is_what_was_frozen(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    whole = snapshot.load(Store(tmp_path), made.name)
    assert whole.schema.equals(EXAMPLES)
    expected = {
        row["record"]: {**row, "prompt": row["messages"][0]["content"]} for row in examples(40).to_pylist()
    }
    assert {row["record"]: row for row in whole.to_pylist()} == expected
    assert {s: snapshot.load(made.path, split=s).num_rows for s in made.splits} == made.splits
    with pytest.raises(UsageError, match="no split 'dev'"):
        snapshot.load(made.path, split="dev")


def test_a_prompt_is_always_what_its_messages_say(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    made = snapshot.freeze(
        [table([example(0, prompt="a lie"), example(1, messages=talk)], EXAMPLES)],
        Store(tmp_path),
        facts=FACTS,
    )
    assert sorted(snapshot.load(made.path)["prompt"].to_pylist()) == [
        "Where is parcel 0? ☃",
        "user: Hi\nassistant: Yes?\nuser: Go",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"completion": None}, "no completion"),
        ({"messages": []}, "no messages"),
        ({"messages": None}, "no messages"),
        ({"messages": [{"role": "user", "content": None}]}, "without role or content"),
        ({"split": "dev"}, "split 'dev'"),
        ({"weight": float("nan")}, "weight nan"),
        ({"weight": -1.0}, r"weight -1\.0"),
        ({"weight": None}, "weight None"),
        ({"record": None}, "no record id"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_refused_by_name(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        snapshot.freeze([table([example(0), example(1, **fields)], EXAMPLES)], Store(tmp_path), facts=FACTS)
    assert snapshot.names(Store(tmp_path)) == []


def test_no_rows_unknown_columns_and_unknown_facts_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="no rows"):
        snapshot.freeze([], store, facts=FACTS)
    with pytest.raises(UsageError, match="surprise"):
        snapshot.freeze([examples(1).append_column("surprise", [[1]])], store, facts=FACTS)
    with pytest.raises(UsageError, match=r"lack \['completion'\]"):
        snapshot.freeze([examples(1).drop_columns(["completion"])], store, facts=FACTS)
    with pytest.raises(UsageError, match="unknown facts: piii"):
        snapshot.freeze([examples(1)], store, facts={**FACTS, "piii": {}})


def test_freezing_does_not_change_the_callers_tables(tmp_path: Path) -> None:
    whole = examples(40)
    before = whole.to_pylist()
    snapshot.freeze([whole], Store(tmp_path), facts=FACTS)
    assert whole.to_pylist() == before


@pytest.mark.parametrize("column", ["record", "group", "cluster"])
def test_what_stands_on_two_sides_is_refused_by_name(tmp_path: Path, column: str) -> None:
    both = [example(0, **{column: "x9"}), example(2, **{column: "x9"})]
    with pytest.raises(GateRefused, match=f"{column} x9 stands in train and in validation"):
        snapshot.freeze([table(both, EXAMPLES)], Store(tmp_path), facts=FACTS)
    one_side = [example(0, **{column: "x9"}), example(1, **{column: "x9"})]
    snapshot.freeze([table(one_side, EXAMPLES)], Store(tmp_path), facts=FACTS)


@pytest.mark.parametrize("column", ["record", "group"])
def test_a_test_row_of_the_parent_never_becomes_a_training_row(tmp_path: Path, column: str) -> None:
    store = Store(tmp_path)
    parent = snapshot.freeze(
        [table([example(0), example(3, **{column: "x9"})], EXAMPLES)], store, facts=FACTS
    )
    newcomer = 3 if column == "record" else 4
    moved = [example(0), example(newcomer, **{column: "x9"}, split="train")]
    with pytest.raises(GateRefused, match=f"{column} x9 stands in train and in test"):
        snapshot.freeze([table(moved, EXAMPLES)], store, facts={**FACTS, "parent": parent.name})
    child = snapshot.freeze(
        [table([*moved[:1], example(7)], EXAMPLES)], store, facts={**FACTS, "parent": parent.name}
    )
    assert child.manifest["parent_checked"] is True
    orphan = snapshot.freeze([examples(5)], store, facts={**FACTS, "parent": "f" * 64})
    assert orphan.manifest["parent_checked"] is False


# Gates


def _facts(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**FACTS, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "gate", "words"),
    [
        ({"pii": {**FACTS["pii"], "unscanned": 3}}, "pii", "without a scan under the current rule: 3"),
        ({"pii": {**FACTS["pii"], "open_spans": 1}}, "pii", "without an alias: 1"),
        ({"pii": {**FACTS["pii"], "collisions": 2}}, "pii", "aliases .*: 2"),
        ({"pii": {"unscanned": 0}}, "pii", "was not counted"),
        ({"pii": None}, "pii", "nobody has looked"),
        ({"leakage": {"leaks": 4}}, "leakage", "an evaluation set holds: 4"),
        ({"leakage": None}, "leakage", "nobody has looked"),
        ({"coverage": {"gaps": {"near": 7}}}, "coverage", "near has not seen 7 rows"),
        ({"coverage": None}, "coverage", "nobody has looked"),
        ({"agreement": {"alpha": 0.59}}, "agreement", r"0\.590; 0\.600 is asked for"),
        ({"agreement": {"alpha": float("nan")}}, "agreement", "not measured"),
        ({"agreement": None}, "agreement", "not measured"),
    ],
)
def test_a_gate_refuses_by_name(tmp_path: Path, changes: dict[str, Any], gate: str, words: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(GateRefused, match=f"the {gate} gate refuses: .*{words}") as caught:
        snapshot.freeze([examples(4)], store, facts=_facts(**changes), rule=GateRule(min_alpha=0.6))
    assert caught.value.exit_code == 6
    assert snapshot.names(store) == []
    snapshot.freeze([examples(4)], store, facts=FACTS, rule=GateRule(min_alpha=0.6))


def test_every_refusing_gate_is_named_at_once() -> None:
    results = snapshot.check_gates({}, GateRule(min_alpha=0.6))
    with pytest.raises(GateRefused) as caught:
        snapshot.refuse(results)
    for gate in ("pii", "leakage", "coverage", "agreement"):
        assert f"the {gate} gate" in str(caught.value)


def test_agreement_that_nobody_asks_for_is_reported_as_not_measured() -> None:
    for rule in (GateRule(), GateRule(min_alpha=0.0)):
        by_gate = {r.gate: r for r in snapshot.check_gates(_facts(agreement=None), rule)}
        assert by_gate["agreement"].status == "not measured"
        snapshot.refuse(list(by_gate.values()))


def test_a_gate_that_is_switched_off_says_so(tmp_path: Path) -> None:
    made = snapshot.freeze(
        [examples(4)],
        Store(tmp_path),
        facts=_facts(pii=None, leakage=None),
        rule=GateRule(pii=False, leakage=False),
    )
    assert [g["status"] for g in made.manifest["gates"]] == ["off", "off", "passed", "off", "passed"]
    assert "switched off by \\[gates\\] pii" in (made.path / "README.md").read_text()
    assert snapshot.require_trainable(made.path).name == made.name


# A trainer's guard (six ways in which a snapshot may not be trained on)


def _forge(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and make its digest right again, as somebody who knows the format would."""
    found = orjson.loads((folder / MANIFEST).read_bytes())
    change(found)
    body = {key: value for key, value in found.items() if key != "digest"}
    (folder / MANIFEST).write_bytes(artifacts._spell({**body, "digest": artifacts._digest(body)}))


def _rewrite_row(folder: Path) -> None:
    path = next(folder.glob("data/train-*"))
    whole = pq.read_table(path)
    text = pa.array(["poison", *whole["completion"].to_pylist()[1:]])
    pq.write_table(whole.set_column(whole.schema.get_field_index("completion"), "completion", text), path)
    relpath = str(path.relative_to(folder))

    def restate(found: dict[str, Any]) -> None:
        found["files"][relpath] = {"sha256": artifacts.file_sha256(path), "size": path.stat().st_size}

    _forge(folder, restate)


def _edit_byte(folder: Path) -> None:
    path = next(folder.glob("data/train-*"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _gate(name: str, status: str) -> Callable[[Path], None]:
    def change(found: dict[str, Any]) -> None:
        next(gate for gate in found["gates"] if gate["gate"] == name)["status"] = status

    return lambda folder: _forge(folder, change)


@pytest.mark.parametrize(
    ("damage", "approval", "approved", "error", "words"),
    [
        (lambda f: None, "gates", None, None, ""),
        (lambda f: None, "curator", True, None, ""),
        (lambda f: None, "curator", None, GateRefused, "a curator must approve"),
        (lambda f: None, "gates", False, GateRefused, "a curator has refused"),
        (_gate("pii", "refused"), "gates", None, GateRefused, "pii gate refused"),
        (
            lambda f: _forge(f, lambda m: m["gates"].pop(0)),
            "gates",
            None,
            GateRefused,
            "pii gate was not asked",
        ),
        (_edit_byte, "gates", None, IntegrityError, "bytes have changed"),
        (_rewrite_row, "gates", None, IntegrityError, "rows are not those"),
        (lambda f: (f / MANIFEST).unlink(), "gates", None, IntegrityError, "no manifest"),
    ],
)
def test_a_trainer_refuses_what_may_not_be_trained_on(
    tmp_path: Path,
    damage: Any,
    approval: str,
    approved: bool | None,
    error: type[TilthError] | None,
    words: str,
) -> None:
    made = snapshot.freeze([examples(40)], Store(tmp_path), facts=FACTS, rule=GateRule(approval=approval))
    damage(made.path)
    if error is None:
        assert snapshot.require_trainable(made.path, approved=approved).name == made.name
        return
    with pytest.raises(error, match=words):
        snapshot.require_trainable(made.path, approved=approved)


def test_a_snapshot_without_training_rows_is_not_trained_on(tmp_path: Path) -> None:
    made = snapshot.freeze([examples(1, start=3)], Store(tmp_path), facts=FACTS)
    with pytest.raises(GateRefused, match="no rows to train on"):
        snapshot.require_trainable(Store(tmp_path), made.name)


# Bit rot


def _flip(path: Path, position: int, bit: int) -> None:
    """Flip one bit, and keep the file's size and time of change."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.seek(position)
        old = file.read(1)[0]
        file.seek(position)
        file.write(bytes([old ^ (1 << bit)]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _undetected(made: snapshot.Snapshot, flips: int, seed: int = 0) -> list[tuple[str, int, int]]:
    """Flips of one bit each that ``verify`` did not notice, or blamed on another file. Every kind of file in turn."""
    draw = random.Random(seed)
    files = [*sorted(made.manifest["files"]), MANIFEST]
    missed = []
    for number in range(flips):
        relpath = files[number % len(files)]
        path = made.path / relpath
        position, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
        _flip(path, position, bit)
        try:
            snapshot.verify(made.path)
            missed.append((relpath, position, bit))
        except IntegrityError as error:
            if str(path) != error.where:
                missed.append((relpath, position, bit))
        _flip(path, position, bit)
    return missed


def test_one_flipped_bit_anywhere_is_found_and_the_file_named(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    assert _undetected(made, 100) == []
    snapshot.verify(made.path)


@pytest.mark.slow
def test_a_thousand_flipped_bits_are_all_found(tmp_path: Path) -> None:
    assert _undetected(frozen(tmp_path), 1_000, seed=1) == []


def test_a_verifier_that_does_not_hash_misses_flipped_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = frozen(tmp_path)
    stated = {str(made.path / path): file["sha256"] for path, file in made.manifest["files"].items()}
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: stated[str(path)])
    assert _undetected(made, 50) != []


@pytest.mark.parametrize("relpath", ["data/train-00000-of-00001.parquet", "README.md", MANIFEST])
def test_a_truncated_file_is_found(tmp_path: Path, relpath: str) -> None:
    made = frozen(tmp_path)
    os.truncate(made.path / relpath, (made.path / relpath).stat().st_size // 2)
    with pytest.raises(IntegrityError, match=relpath.replace(".", r"\.")):
        snapshot.verify(made.path)
    with pytest.raises(IntegrityError):
        snapshot.load(made.path)


def test_swapped_files_and_swapped_snapshots_are_found(tmp_path: Path) -> None:
    made = frozen(tmp_path, 400, shard_bytes=1)
    other = snapshot.freeze([examples(40)], Store(tmp_path), facts=FACTS)
    a, b = (made.path / f"data/{split}-00000-of-00001.parquet" for split in ("test", "validation"))
    _swap(a, b)
    with pytest.raises(IntegrityError, match="data/test"):
        snapshot.verify(made.path)
    _swap(a, b)
    snapshot.verify(made.path)
    _swap(made.path, other.path)
    for name in (made.name, other.name):
        with pytest.raises(IntegrityError, match="it says that it is"):
            snapshot.verify(Store(tmp_path), name)


def _swap(a: Path, b: Path) -> None:
    spare = a.with_name("spare")
    a.rename(spare)
    b.rename(a)
    spare.rename(b)


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda f: _forge(f, lambda m: m.update(rows=41)), "its 40 rows are not those"),
        (
            lambda f: _forge(f, lambda m: m.update(name="0" * 64)),
            "rows are not those that 000000000000 names",
        ),
        (lambda f: _forge(f, lambda m: m.update(row="tilth.row.9")), r"tilth\.row\.9"),
        (lambda f: _forge(f, lambda m: m.update(kind="adapters")), "not what was asked for"),
        (_rewrite_row, "rows are not those"),
    ],
)
def test_a_forged_manifest_does_not_hide_changed_rows(tmp_path: Path, forge: Any, words: str) -> None:
    made = frozen(tmp_path)
    forge(made.path)
    with pytest.raises(TilthError, match=words):
        snapshot.verify(made.path)


def test_a_parquet_file_that_cannot_be_read_is_an_integrity_error(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    path = next(made.path.glob("data/train-*"))
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(IntegrityError, match="cannot be read"):
        snapshot.load(made.path)


# Reading, comparing, carrying


def test_a_unique_beginning_of_a_name_is_enough(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = [snapshot.freeze([examples(n)], store, facts=FACTS).name for n in range(1, 19)]
    for name in made:
        assert snapshot.resolve(store, name) == snapshot.show(store, name).name == name
    shared = next(c for c in "0123456789abcdef" if sum(name.startswith(c) for name in made) > 1)
    with pytest.raises(UsageError, match="begins the names of"):
        snapshot.resolve(store, shared)
    for nothing in ("zz", "", "../"):
        with pytest.raises(UsageError, match="no snapshot is named"):
            snapshot.resolve(store, nothing)


def test_a_diff_names_every_kind_of_change_with_its_reason(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = [example(n) for n in range(8)]
    after = [
        *before[1:3],
        {**before[3], "completion": "other"},
        {**before[4], "weight": 0.1},
        {**before[5], "split": "validation"},
        {**before[6], "messages": user_message("scrubbed"), "weight": 0.2},
        before[7],
        example(8),
    ]
    a, b = (snapshot.freeze([table(given_, EXAMPLES)], store, facts=FACTS) for given_ in (before, after))
    reasons = pa.table({"record": [before[3]["record"]], "reason": ["a curator edited it"]})
    found = snapshot.diff((store, a.name), b.path, reasons)
    assert found.counts() == {
        "added": 1, "removed": 1, "relabelled": 1, "reweighted": 2, "moved": 1, "reworded": 1,
    }  # fmt: skip
    assert found.same == 3
    (relabelled,) = found.of("relabelled")
    assert relabelled.record == before[3]["record"]
    assert relabelled.reason == "a curator edited it"
    assert (relabelled.before or {})["completion"] == " It is at stop 3."
    assert (relabelled.after or {})["completion"] == "other"
    assert found.of("removed")[0].reason == "no decision names this record"
    told = found.to_dict()
    assert told["counts"] == found.counts()
    assert {"change": "moved", "before": "train", "after": "validation"}.items() <= next(
        entry for entry in told["changes"] if entry["change"] == "moved"
    ).items()
    back = snapshot.diff(b.path, a.path, lambda record: f"because of {record[:4]}")
    assert back.of("removed")[0].record == digest("r8")
    assert back.of("removed")[0].reason == f"because of {digest('r8')[:4]}"


def test_a_snapshot_does_not_differ_from_itself_nor_by_order(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    found = snapshot.diff(made.path, made.path)
    assert found.changes == ()
    assert found.same == 40


def test_several_answers_of_one_record_are_compared_each(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = [example(0, completion=text) for text in ("a", "b", "b", "c")]
    then = [example(0, completion=text) for text in ("b", "d", "a")]
    a, b = (snapshot.freeze([table(given_, EXAMPLES)], store, facts=FACTS) for given_ in (first, then))
    found = snapshot.diff(a.path, b.path)
    assert found.same == 2
    assert [
        (c.kinds, (c.before or {}).get("completion"), (c.after or {}).get("completion"))
        for c in found.changes
    ] == [
        (("relabelled",), "b", "d"),
        (("removed",), "c", None),
    ]


def test_exports_hold_every_row_in_the_format_asked_for(tmp_path: Path) -> None:
    made = frozen(tmp_path)
    lines = {}
    for to in ("jsonl", "trl", "chat"):
        assert snapshot.export(made.path, None, to, tmp_path / f"{to}.jsonl") == 40
        lines[to] = [json.loads(line) for line in (tmp_path / f"{to}.jsonl").read_text().splitlines()]
    for flat, trl, chat in zip(*lines.values(), strict=True):
        answer = {"role": "assistant", "content": flat["completion"]}
        kept = {"split": flat["split"], "weight": flat["weight"]}
        assert trl == {"prompt": user_message(flat["prompt"]), "completion": [answer], **kept}
        assert chat["messages"] == [*trl["prompt"], answer]
    assert {line["id"] for line in lines["jsonl"]} == set(examples(40)["record"].to_pylist())
    assert (
        snapshot.export(made.path, None, "trl", tmp_path / "test.jsonl", split="test") == made.splits["test"]
    )
    with pytest.raises(UsageError, match="no format"):
        snapshot.export(made.path, None, "csv", tmp_path / "x")


def test_a_copied_snapshot_trains_elsewhere_and_comes_back_as_itself(tmp_path: Path) -> None:
    made = frozen(tmp_path / "here")
    copy = snapshot.export_directory(Store(tmp_path / "here"), made.name[:10], tmp_path / "there/copy")
    assert snapshot.require_trainable(copy.path).name == made.name
    assert snapshot.import_directory(copy.path, Store(tmp_path / "other"), dry_run=True).name == made.name
    assert snapshot.names(Store(tmp_path / "other")) == []
    again = snapshot.import_directory(copy.path, Store(tmp_path / "other"))
    assert again.fresh
    assert again.manifest == made.manifest
    assert not snapshot.import_directory(copy.path, Store(tmp_path / "other")).fresh
    with pytest.raises(ConflictError, match="not empty"):
        snapshot.export_directory(made.path, None, copy.path)
    _edit_byte(copy.path)
    with pytest.raises(IntegrityError):
        snapshot.import_directory(copy.path, Store(tmp_path / "third"))
    assert snapshot.names(Store(tmp_path / "third")) == []


def test_a_half_copied_snapshot_is_none(tmp_path: Path) -> None:
    made = frozen(tmp_path / "here")
    shutil.copytree(made.path, tmp_path / "part", ignore=shutil.ignore_patterns(MANIFEST))
    with pytest.raises(IntegrityError, match="no manifest"):
        snapshot.load(tmp_path / "part")


def test_the_card_says_what_happened_and_cannot_be_broken_by_the_data(tmp_path: Path) -> None:
    hostile = "x | y\n# Heading <script>alert(1)</script> [link](http://x)\n---\nlicense: evil"
    facts = {**FACTS, "stages": [{"stage": hostile, "in": 5, "out": 4, "reasons": {hostile: 1}}]}
    facts["card"] = {"title": hostile, "license": 'a"b\nlanguage: xx'}
    made = snapshot.freeze([examples(4, source=hostile)], Store(tmp_path), facts=facts)
    text = (made.path / "README.md").read_text()
    body = text.split("\n---\n", 1)[1]
    assert "<script>" not in body
    assert "[link]" not in body
    assert [line for line in body.splitlines() if line.startswith("# ")] == [body.strip().splitlines()[0]]
    yaml = pytest.importorskip("yaml")
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == 'a"b\nlanguage: xx'
    assert "language" not in head
    assert head["size_categories"] == ["n<1K"]


LOAD = """
import socket, sys
def refuse(*_):
    raise RuntimeError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
from datasets import Features, load_dataset
from curation.records import EXAMPLES
rows = load_dataset(sys.argv[1], cache_dir=sys.argv[2])
assert rows["train"].features == Features.from_arrow_schema(EXAMPLES), rows["train"].features
print({split: len(part) for split, part in rows.items()}, rows["train"][0]["messages"][0]["role"])
"""


def test_datasets_loads_the_folder_as_it_stands_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    made = frozen(tmp_path / "store", 200, shard_bytes=1_000)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(made.path), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        cwd=Path(__file__).resolve().parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'train': 100, 'validation': 50, 'test': 50} user"
    snapshot.verify(made.path)
