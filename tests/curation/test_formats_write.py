"""Writing: what is read back is what was written, or the loss is listed; a spreadsheet runs nothing."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import StorageFailed, UsageError
from curation.formats import LOSSES, TARGETS, BadRow, Mapping, Row, convert, neutral, read, write
from curation.formats import write as write_rows
from curation.formats.write import FORMULA
from tests.curation.damage import damaged

QUIET = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=60)
NAMED = Mapping(id="id")

# The suffix and the target of everything that can be written.
WAYS = {
    "jsonl": (".jsonl", None),
    "list": (".json", None),
    "chat": (".jsonl", "chat"),
    "trl": (".jsonl", "trl"),
    "alpaca": (".json", "alpaca"),
    "sharegpt": (".json", "sharegpt"),
    "label-studio": (".json", "label-studio"),
    "csv": (".csv", None),
    "tsv": (".tsv", None),
    "parquet": (".parquet", None),
    "parquet chat": (".parquet", "chat"),
    "parquet trl": (".parquet", "trl"),
    "parquet alpaca": (".parquet", "alpaca"),
    "gzip": (".jsonl.gz", "chat"),
}


def everything(path: Path, **options: Any) -> tuple[list[Row], list[BadRow]]:
    batches = list(read(path, **options))
    return [row for b in batches for row in b.rows], [row for b in batches for row in b.bad]


def content(row: Row) -> tuple[Any, ...]:
    """All of a row but its place in a file."""
    return row.messages, row.completion, row.gold, row.key, row.group, row.lang, row.time, row.tags


def there_and_back(rows: list[Row], folder: Path, way: str, **options: Any) -> tuple[list[Row], list[BadRow]]:
    """The rows as another file gives them, and those that its format refused; none may be bad."""
    suffix, to = WAYS[way]
    path = folder / f"rows{suffix}"
    refused: list[BadRow] = []
    done = write(path, rows, to=to, on_bad=refused.append, **options)
    assert (done.rows, done.refused) == (len(rows) - len(refused), len(refused))
    keyed = all(row.key is not None for row in rows) and rows and way != "label-studio"
    found, bad = everything(path, mapping=NAMED if keyed and done.rows else None)
    assert not bad, bad[0].sentence(path)
    return found, refused


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
).filter(lambda text: not text.isspace())
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NAMES = st.sampled_from(["note", "score", "source_id", "é", "meta"])
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY, inner, max_size=3),
    max_leaves=6,
)
CALL = st.builds(
    lambda name, arguments: json.dumps(
        {
            "content": None,
            "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
        },
        ensure_ascii=False,
        separators=(",", ":"),
    ),
    TEXT,
    st.dictionaries(
        st.text("abc", max_size=3),
        st.none() | st.integers(-9, 9) | st.lists(st.none(), max_size=2),
        max_size=2,
    ),
)


def message(role: str, texts: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({"role": st.just(role), "content": texts})


USER = message("user", TEXT)
TURN = st.one_of(
    message("user", ANY), message("assistant", ANY), message("tool", ANY), message("tool_call", CALL)
)
PAIRS = st.lists(st.tuples(message("user", ANY), message("assistant", ANY)).map(list), max_size=2)
TALK = st.one_of(
    st.builds(lambda user: [user], USER),
    st.builds(
        lambda system, pairs, user: [*system, *chain(*pairs), user],
        st.lists(message("system", TEXT), max_size=1),
        PAIRS,
        USER,
    ),
    st.builds(lambda turns, user: [*turns, user], st.lists(TURN, max_size=3), USER),
)
ROWS = st.lists(
    st.builds(
        Row,
        line=st.just(1),
        offset=st.just(0),
        messages=TALK,
        completion=st.none() | TEXT,
        gold=st.none() | TEXT,
        key=TEXT,
        group=st.none() | TEXT,
        lang=st.none() | st.sampled_from(["en", "de"]),
        time=st.none() | st.just("2026-01-01T00:00:00Z"),
        tags=st.dictionaries(NAMES, JSON, max_size=2),
    ),
    min_size=1,
    max_size=12,
)


def check_round_trip(rows: list[Row], folder: Path, way: str) -> None:
    """Every row comes back as it was, or was refused with a reason."""
    options = {"neutralise": False} if way in ("csv", "tsv") else {}
    found, refused = there_and_back(rows, folder, way, **options)
    assert {bad.reason for bad in refused} <= {"not expressible"}
    gone = {bad.raw.decode() for bad in refused}
    kept = [with_listed_losses(row, way) for row in rows if content_json(row) not in gone]
    assert [content(row) for row in found] == [content(row) for row in kept]


def with_listed_losses(row: Row, way: str) -> Row:
    """The row as :data:`LOSSES` says that it comes back."""
    if way == "label-studio":
        return replace(row, gold=None)
    if way == "sharegpt":
        return replace(row, messages=[bare_call(m) if m["role"] == "tool_call" else m for m in row.messages])
    return row


def bare_call(message: dict[str, str]) -> dict[str, str]:
    """A call of OpenAI's format as ShareGPT has it."""
    call = json.loads(message["content"])["tool_calls"][0]["function"]
    return {**message, "content": json.dumps(call, ensure_ascii=False, separators=(",", ":"))}


def content_json(row: Row) -> str:
    return json.dumps([row.messages, row.completion], ensure_ascii=False, separators=(",", ":"))


@pytest.mark.parametrize("way", WAYS)
@QUIET
@given(rows=ROWS)
def test_what_is_written_is_read_back_as_it_was(way: str, rows: list[Row], tmp_path: Path) -> None:
    check_round_trip(rows, tmp_path, way)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@settings(QUIET, max_examples=300)
@given(rows=ROWS)
def test_ten_thousand_rows_are_read_back_as_they_were(way: str, rows: list[Row], tmp_path: Path) -> None:
    check_round_trip(rows, tmp_path, way)


def test_the_round_trip_notices_a_text_that_is_stripped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import curation.formats.shapes as shapes

    honest = shapes.SHAPES["prompt-completion"]

    def sabotaged(fields: Any) -> Any:
        taken = honest(fields)
        return taken._replace(completion=taken.completion.strip())

    monkeypatch.setitem(shapes.SHAPES, "prompt-completion", sabotaged)
    with pytest.raises(AssertionError):
        check_round_trip([Row(1, 0, [{"role": "user", "content": "a"}], " b", key="1")], tmp_path, "jsonl")


def plain(text: str = "a", completion: str | None = " b", **more: Any) -> Row:
    return Row(1, 0, [{"role": "user", "content": text}], completion, **more)


def test_most_rows_of_every_format_are_held_and_not_refused(tmp_path: Path) -> None:
    rows = [plain(f"p{i}", f"c{i}", key=str(i), tags={"n": i}) for i in range(50)]
    for way in WAYS:
        found, refused = there_and_back(rows, tmp_path, way)
        assert (len(found), refused) == (50, [])


def test_a_record_survives_chat_task_and_export(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "Where?"}]
    row = Row(1, 0, talk, " Here.\n", key="r1", group="g", tags={"note": [1, None]})
    write(tmp_path / "chat.jsonl", [row], to="chat")
    chats, _ = everything(tmp_path / "chat.jsonl", mapping=NAMED)
    write(tmp_path / "tasks.json", chats, to="label-studio")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert tasks[0]["predictions"][0]["result"][0]["value"]["text"] == [" Here.\n"]
    answer = {
        "type": "textarea",
        "from_name": "completion",
        "to_name": "prompt",
        "value": {"text": [" There.\n"]},
    }
    tasks[0] |= {
        "id": 9,
        "annotations": [{"id": 1, "completed_by": 2, "result": [answer], "was_cancelled": False}],
    }
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    back, _ = everything(tmp_path / "export.json")
    row.completion = " There.\n"
    assert [content(r) for r in back] == [content(row)]


def test_no_null_is_written_that_was_not_there(tmp_path: Path) -> None:
    for way, (suffix, to) in WAYS.items():
        if suffix in (".jsonl", ".json"):
            write(tmp_path / f"x{suffix}", [plain(completion=None)], to=to)
            assert "null" not in (tmp_path / f"x{suffix}").read_text(), way


def test_tool_calls_of_a_chat_come_back_with_every_null(tmp_path: Path) -> None:
    calls = [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "find", "arguments": {"city": None, "deep": {"x": None}}},
        }
    ]
    talk = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "Rome", "tool_call_id": "c1"},
        {"role": "assistant", "content": "In Rome.", "weight": 1},
    ]
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps({"messages": talk, "tools": [{"x": None}]}))
    convert(source, tmp_path / "b.jsonl", "chat")
    convert(tmp_path / "b.jsonl", tmp_path / "c.parquet", "chat")
    convert(tmp_path / "c.parquet", tmp_path / "d.jsonl", "chat")
    assert json.loads((tmp_path / "d.jsonl").read_text()) == {"messages": talk, "tools": [{"x": None}]}


def test_a_call_of_sharegpt_becomes_one_of_openai_and_back(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": "How many?"},
        {"from": "function_call", "value": '{"name":"count","arguments":{"a":null}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "Seven."},
    ]
    (tmp_path / "a.jsonl").write_text(json.dumps({"conversations": talk}))
    convert(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "chat")
    call = json.loads((tmp_path / "b.jsonl").read_text())["messages"][1]
    assert call["tool_calls"][0]["function"] == {"name": "count", "arguments": {"a": None}}
    convert(tmp_path / "b.jsonl", tmp_path / "c.jsonl", "sharegpt")
    assert json.loads((tmp_path / "c.jsonl").read_text())["conversations"] == talk


def test_every_target_lists_its_losses_in_words() -> None:
    assert set(TARGETS) == set(LOSSES)
    assert {"jsonl", "chat", "alpaca", "sharegpt", "trl", "label-studio", "csv", "parquet"} == set(TARGETS)
    assert all(loss for losses in LOSSES.values() for loss in losses)


@pytest.mark.parametrize(
    ("row", "to"),
    [
        (Row(1, 0, [{"role": "tool", "content": "x"}], "y"), "alpaca"),
        (Row(1, 0, [{"role": "system", "content": ""}, {"role": "user", "content": "x"}], "y"), "alpaca"),
        (Row(1, 0, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]), "chat"),
        (Row(1, 0, [{"role": "developer", "content": "x"}], "y"), "sharegpt"),
        (Row(1, 0, [{"role": "tool_call", "content": "not JSON"}], "y"), "chat"),
        (plain(tags={"messages": 1}), "chat"),
        (plain(tags={"id": 1}, key="k"), "jsonl"),
        (plain(tags={"prompt": 1}), "label-studio"),
        (plain(tags={"odd": object()}), "jsonl"),
        (plain(tags={"message_extras": 3}), "chat"),
    ],
)
def test_a_row_that_a_format_cannot_hold_is_set_aside_with_a_reason(
    row: Row, to: str, tmp_path: Path
) -> None:
    refused: list[BadRow] = []
    done = write(tmp_path / "a.jsonl", [row, plain()], to=to, on_bad=refused.append)
    assert (done.rows, done.refused) == (1, 1)
    assert refused[0].reason == "not expressible"
    assert refused[0].message


# spreadsheets


HOSTILE = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "＋1", "－1", "＠x", " =1", "\u200b=1",
    '"=1', "'=1", '=HYPERLINK("http://x","y")', "=cmd|' /C calc'!A0", "\ufeff=1", "|x", "%0A",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_no_cell_of_a_csv_starts_a_formula(text: str, tmp_path: Path) -> None:
    row = plain(text, text, key=text, group=text, lang=text, gold=text)
    for name in ("a.csv", "a.tsv"):
        write(tmp_path / name, [row])
        with (tmp_path / name).open(newline="") as handle:
            cells = [
                c for line in csv.reader(handle, delimiter="\t" if name == "a.tsv" else ",") for c in line
            ]
        assert f"'{text}" in cells
        assert not [cell for cell in cells if cell[:1] in FORMULA and cell]


@pytest.mark.parametrize("text", HOSTILE)
def test_json_and_parquet_and_a_lossless_csv_are_never_altered(text: str, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        write(tmp_path / name, [plain(text, f"{text}x")], neutralise=False)
        rows, _ = everything(tmp_path / name)
        assert (rows[0].messages[0]["content"], rows[0].completion) == (text, f"{text}x")
    lossless = (tmp_path / "a.jsonl").read_bytes()
    write(tmp_path / "a.jsonl", [plain(text, f"{text}x")], neutralise=True)
    assert (tmp_path / "a.jsonl").read_bytes() == lossless


def test_harmless_cells_stay_as_they_are() -> None:
    for text in ("a=b", "", "5 - 3", "{}", "«-»", "x@y.z", "_"):
        assert neutral(text) == text


def test_without_neutralising_the_check_of_cells_fails(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [plain("=1+1")], neutralise=False)
    with (tmp_path / "a.csv").open(newline="") as handle:
        assert any(cell[:1] in FORMULA for line in csv.reader(handle) for cell in line if cell)


# files


def test_converting_counts_every_record(tmp_path: Path) -> None:
    found = damaged(300, 6)
    (tmp_path / "a.jsonl").write_bytes(found.data)
    bad: list[BadRow] = []
    done = convert(tmp_path / "a.jsonl", tmp_path / "b.json", "alpaca", on_bad=bad.append)
    assert (done.records, done.rows, done.quarantined) == (300, 263, 37)
    assert len(bad) == 37
    assert len(json.loads((tmp_path / "b.json").read_text())) == 263


def test_converting_keeps_the_names_that_were_mapped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("ticket,text,category,id\nT1,a,b,7\n")
    mapping = Mapping(prompt="text", completion="category", id="ticket")
    convert(tmp_path / "a.csv", tmp_path / "b.jsonl", mapping=mapping)
    assert json.loads((tmp_path / "b.jsonl").read_text()) == {
        "ticket": "T1",
        "prompt": "a",
        "completion": "b",
        "id": "7",
    }


def test_a_file_may_be_converted_onto_itself(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt":"a","completion":"b"}\n' * 1000)
    convert(path, path, "chat")
    rows, bad = everything(path)
    assert (len(rows), bad) == (1000, [])


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for suffix, to in WAYS.values():
        paths = [tmp_path / f"{n}{suffix}" for n in (1, 2)]
        for path in paths:
            write(path, [plain(key="1", tags={"x": 1})], to=to)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_no_rows_give_a_valid_empty_file(tmp_path: Path) -> None:
    for suffix, to in WAYS.values():
        path = tmp_path / f"empty{suffix}"
        assert write(path, [], to=to).rows == 0
        assert everything(path) == ([], [])


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def rows() -> Any:
        yield plain()
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError):
        write(path, rows())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="the disk is full"):
        write(tmp_path / "a.jsonl", [plain()])
    assert os.listdir(tmp_path) == []


def test_rows_go_to_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=out))
    write("-", [plain()], to="chat")
    assert json.loads(out.getvalue())["messages"][1] == {"role": "assistant", "content": " b"}


def test_gzip_is_written_by_suffix(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.gz", [plain()])
    assert json.loads(gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes())) == {
        "prompt": "a",
        "completion": " b",
    }


@pytest.mark.parametrize(
    ("name", "to", "what"),
    [
        ("a.jsonl", "alpacca", "did you mean 'alpaca'"),
        ("a.csv", "chat", "csv cannot hold chat"),
        ("a.parquet", "sharegpt", "parquet cannot hold sharegpt"),
        ("-", "parquet", "to a plain file alone"),
        ("a.parquet.gz", None, "to a plain file alone"),
        ("no/such/folder/a.jsonl", None, "no such folder"),
        (".", None, "folder"),
    ],
)
def test_an_impossible_target_is_refused(name: str, to: str | None, what: str, tmp_path: Path) -> None:
    path = name if name == "-" else tmp_path / name
    with pytest.raises(UsageError, match=what):
        write_rows(path, [plain()], to=to)
