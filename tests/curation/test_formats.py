"""Reading files: every record is accounted for, with its line, offset and reason, whatever the file holds."""

from __future__ import annotations

import gzip
import io
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import IntegrityError, TilthError, UsageError
from curation.formats import REASONS, BadRow, Batch, Mapping, Row, parse, read, sniff
from curation.formats import read as read_file
from curation.formats import stream as streams
from curation.formats.rows import Damage
from tests.curation.damage import GOOD, KINDS, Damaged, damaged

QUIET = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def put(folder: Path, data: bytes | str, name: str = "raw.jsonl") -> Path:
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def everything(path: Path | str, **options: Any) -> tuple[list[Row], list[BadRow]]:
    rows: list[Row] = []
    bad: list[BadRow] = []
    for batch in read_file(path, **options):
        rows += batch.rows
        bad += batch.bad
    return rows, bad


def one_bad(folder: Path, data: bytes | str, name: str = "raw.jsonl", **options: Any) -> BadRow:
    _, bad = everything(put(folder, data, name), **options)
    assert len(bad) == 1
    return bad[0]


# B1: damage at known lines


def check_accounts(found: Damaged, batches: Iterator[Batch], data: bytes) -> None:
    """Every line is a row or a bad row, and every bad row says rightly where it stood and why."""
    rows: list[Row] = []
    bad: dict[int, BadRow] = {}
    for batch in batches:
        assert batch.records == len(batch.rows) + len(batch.bad)
        rows += batch.rows
        bad |= {row.line: row for row in batch.bad}
    assert len(rows) + len(bad) == found.lines
    assert {line: row.reason for line, row in bad.items()} == {n: k.reason for n, k in found.damage.items()}
    starts = {row.line: row.offset for row in [*rows, *bad.values()]}
    assert starts == found.offsets
    for row in bad.values():
        assert data[row.offset : row.offset + len(row.raw) + 1] == row.raw + b"\n"
    for row in rows:
        assert row.messages[0]["content"].startswith(f"Where is order {row.line}?")
        assert row.completion is not None
        assert row.completion.startswith(" It left today. ")


def test_there_are_37_kinds_of_damage_and_every_reason_says_what_to_do() -> None:
    assert len({kind.name for kind in KINDS}) == 37
    assert {kind.reason for kind in KINDS} <= REASONS.keys()


@pytest.mark.parametrize("seed", range(5))
def test_a_file_with_37_kinds_of_damage_is_accounted_for_line_by_line(seed: int, tmp_path: Path) -> None:
    found = damaged(1000, seed)
    check_accounts(found, read(put(tmp_path, found.data), batch=137), found.data)


@pytest.mark.parametrize("block", [7, 64, 1021])
def test_where_a_block_of_the_file_ends_changes_nothing(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = damaged(120, 3)
    monkeypatch.setattr(streams, "BLOCK", block)
    check_accounts(found, read(put(tmp_path, found.data)), found.data)


def test_a_reader_that_skips_bad_lines_fails_the_check(tmp_path: Path) -> None:
    found = damaged(1000, 1)
    path = put(tmp_path, found.data)
    sabotaged = (Batch(b.rows, b.bad[:-1], b.bytes_read, b.records) for b in read(path))
    with pytest.raises(AssertionError):
        check_accounts(found, sabotaged, found.data)


def test_a_reader_that_counts_lines_from_zero_fails_the_check(tmp_path: Path) -> None:
    found = damaged(200, 1)
    path = put(tmp_path, found.data)

    def sabotaged() -> Iterator[Batch]:
        for batch in read(path):
            for row in batch.rows:
                row.line -= 1
            yield batch

    with pytest.raises(AssertionError):
        check_accounts(found, sabotaged(), found.data)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
def test_damage_in_many_more_orders_is_accounted_for(seed: int, tmp_path: Path) -> None:
    found = damaged(1000, seed, each=5)
    check_accounts(found, read(put(tmp_path, found.data)), found.data)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt":"a","completion":"b","n":01}', "bad number"),
        ('{"prompt":"a","completion":"b","n":+1}', "bad number"),
        ('{"prompt":"a","completion":"b","n":.5}', "bad number"),
        ('{"prompt":"a","completion":"b","n":1.}', "bad number"),
        ('{"prompt":"a","completion":"b","n":1e999}', "bad number"),
        ('{"prompt":"a","completion":"b","n":18446744073709551616}', "bad number"),
        ('{"prompt":"a","completion":"b","n":' + "9" * 5000 + "}", "bad number"),
        ('{"prompt":"a","completion":"b","n":-Infinity}', "not a number"),
        ('{"prompt":"a","completion":"b","n":nan}', "not a number"),
        ('{prompt:"a","completion":"b"}', "unquoted key"),
        ('{"prompt":"a" "completion":"b"}', "missing comma"),
        ('{"prompt" "a","completion":"b"}', "missing colon"),
        ('{"prompt","completion"}', "missing colon"),
        ('{"prompt":"a","completion":"b"} // done', "comment"),
        ("# a comment", "comment"),
        ('{"prompt":"a","completion":["b",]}', "bare comma"),
        ('{"prompt":"a","completion":}', "syntax error"),
        ("<<<<<<< HEAD", "syntax error"),
        ("<html><body>502</body></html>", "syntax error"),
        ("prompt", "bad literal"),
        ('"prompt', "truncated"),
        ("{", "truncated"),
        ("}", "syntax error"),
        ("[" * 100_000, "too deep"),
        ('{"a":' * 100_000, "too deep"),
        ('{"prompt":"a","completion":"b","x":' + "[" * 1010 + "]" * 1010 + ',"x":1}', "too deep"),
        ('{"prompt":"a","completion":"b","x":{"y":1,"y":2}}', "duplicate key"),
        ('{"prompt":"a","completion":"b","prompt" \t: "c"}', "duplicate key"),
        ('{"prompt":"a","completion":"\\ud83d"}', "lone surrogate"),
        ('{"prompt":"a","completion":"\\ude00\\ud83d"}', "lone surrogate"),
        ('{"prompt":"a","completion":"\\u12', "truncated"),
        ('{"prompt":"a","completion":"\\u12zz"}', "bad escape"),
        ('{"prompt":null,"completion":"b"}', "empty prompt"),
        ('{"prompt":[],"completion":"b"}', "empty prompt"),
        ('{"prompt":"a","completion":[]}', "empty completion"),
        ('{"prompt":"a","completion":7}', "wrong type"),
        ('{"prompt":true,"completion":"b"}', "wrong type"),
        ('{"chosen":"a","rejected":"b","prompt":"p"}', "preference pair"),
    ],
)
def test_each_damage_has_its_reason(line: str, reason: str, tmp_path: Path) -> None:
    if reason == "preference pair":
        bad = one_bad(tmp_path, line)
    else:
        bad = one_bad(tmp_path, f"{GOOD}\n{GOOD}\n{line}\n")
        assert bad.line == 3
        assert bad.offset == 2 * (len(GOOD) + 1)
    assert bad.reason == reason
    assert bad.message
    assert str(bad.raw, "utf-8", "surrogatepass").startswith(line[:10])


def test_a_message_never_quotes_the_text_of_a_record(tmp_path: Path) -> None:
    found = damaged(200, 5)
    _, bad = everything(put(tmp_path, found.data.replace(b"It left today", b"4111-1111-secret")))
    assert len(bad) == 37
    assert not [row.message for row in bad if "4111" in row.message]


def test_what_looks_like_damage_inside_a_text_is_none(tmp_path: Path) -> None:
    texts = [
        '":', ' " : " :', "\\", '\\":', "NaN,", "{'a': None,}", "\u202eabc", "\u2028", "\ufeff", "\x7f",
        "//", "😀", "[[[[", "a\tb\r\n", "\\ud800", "\\u0000",
    ]  # fmt: skip
    lines = [json.dumps({"prompt": text + "?", "completion": text + "!"}) for text in texts]
    rows, bad = everything(put(tmp_path, "\n".join(lines)))
    assert not bad
    assert [row.completion for row in rows] == [text + "!" for text in texts]


def test_integers_of_64_bits_are_kept_exactly(tmp_path: Path) -> None:
    numbers = [2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1]
    line = json.dumps({"prompt": "a", "completion": "b", "n": numbers})
    rows, bad = everything(put(tmp_path, line))
    assert not bad
    assert rows[0].tags["n"] == numbers


def test_a_large_float_is_no_damage(tmp_path: Path) -> None:
    rows, bad = everything(put(tmp_path, '{"prompt":"a","completion":"b","n":1e300}'))
    assert not bad
    assert rows[0].tags == {"n": 1e300}


# the shape of the file


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert everything(put(tmp_path, "")) == ([], [])
    assert list(read(put(tmp_path, ""))) == []


@pytest.mark.parametrize("name", ["raw.jsonl", "raw.csv"])
def test_a_byte_order_mark_at_the_start_is_accepted(name: str, tmp_path: Path) -> None:
    body = GOOD if name == "raw.jsonl" else "prompt,completion\na,b"
    rows, bad = everything(put(tmp_path, "\ufeff" + body, name))
    assert (len(rows), bad) == (1, [])


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_last_line_counts_with_and_without_its_line_end(end: str, tmp_path: Path) -> None:
    rows, bad = everything(put(tmp_path, f"{GOOD}\r\n{GOOD}{end}"))
    assert ([row.offset for row in rows], bad) == ([0, len(GOOD) + 2], [])


def test_blank_lines_are_bad_rows_so_that_the_counts_add_up(tmp_path: Path) -> None:
    rows, bad = everything(put(tmp_path, f"{GOOD}\n\n{GOOD}\n\n\n"))
    assert [row.line for row in bad] == [2, 4, 5]
    assert {row.reason for row in bad} == {"blank line"}
    assert len(rows) == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_line_over_the_limit_is_set_aside_and_its_neighbours_are_kept(place: int, tmp_path: Path) -> None:
    lines = [GOOD, GOOD]
    lines.insert(place, '{"prompt":"' + "x" * 5_000_000)
    rows, bad = everything(put(tmp_path, "\n".join(lines)), max_line=1_000_000)
    assert [row.line for row in rows] == [n + 1 for n in range(3) if n != place]
    assert (bad[0].line, bad[0].reason, bad[0].offset) == (
        place + 1,
        "line too long",
        place * (len(GOOD) + 1),
    )
    assert len(bad[0].raw) <= streams.KEPT
    assert rows[-1].offset == sum(len(line) + 1 for line in lines[: rows[-1].line - 1])


def test_a_gzip_file_reads_like_the_plain_one(tmp_path: Path) -> None:
    found = damaged(300, 2)
    plain = everything(put(tmp_path, found.data))
    assert everything(put(tmp_path, gzip.compress(found.data), "raw.jsonl.gz")) == plain
    assert everything(put(tmp_path, gzip.compress(found.data), "misnamed.jsonl")) == plain


def test_the_order_of_lines_changes_no_row_but_its_place(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "completion": f"c{i}", "k": i}) for i in range(200)]
    first, _ = everything(put(tmp_path, "\n".join(lines)))
    random.Random(0).shuffle(lines)
    second, _ = everything(put(tmp_path, "\n".join(lines)))

    def content(rows: list[Row]) -> list[str]:
        return sorted(json.dumps([row.messages, row.completion, row.tags]) for row in rows)

    assert content(first) == content(second)


@pytest.mark.parametrize("cut", [12, 100, -1])
def test_a_gzip_file_that_is_cut_off_is_refused_and_not_taken_for_whole(cut: int, tmp_path: Path) -> None:
    data = gzip.compress(damaged(500).data)
    with pytest.raises(IntegrityError, match="gzip"):
        everything(put(tmp_path, data[:cut], "raw.jsonl.gz"))


def test_a_gzip_file_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = bytearray(gzip.compress(damaged(500).data))
    data[len(data) // 2] ^= 4
    with pytest.raises(IntegrityError, match="gzip"):
        everything(put(tmp_path, bytes(data), "raw.jsonl.gz"))


def test_a_gzip_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXPANSION_FLOOR", 1 << 20)
    with pytest.raises(UsageError, match="compressed bytes have become"):
        everything(put(tmp_path, gzip.compress(b"x" * (64 << 20)), "raw.jsonl.gz"))


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"PK\x03\x04" + b"a" * 100, "ZIP"),
        (b"\x7fELF" + b"\0" * 100, "program"),
        (b"MZ\x90\0\x03\0\0\0\x04" + bytes(range(32)) * 20, "not text"),
        (b"%PDF-1.7\n{}", "PDF"),
        ("\ufeff{}".encode("utf-16-le"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        # without the clock: every worker must collect the same test
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "twice"),
    ],
)
def test_what_is_not_text_is_refused_before_it_is_parsed(head: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=what):
        everything(put(tmp_path, head, "renamed.jsonl"))


@pytest.mark.parametrize("path", ["missing.jsonl", "/dev/zero", ".", "a\0b", "x" * 5000])
def test_what_cannot_be_opened_is_named(path: str) -> None:
    with pytest.raises(UsageError):
        everything(path)


def test_standard_input_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = damaged(300, 4)
    for data in (found.data, gzip.compress(found.data)):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
        check_accounts(found, read("-"), found.data)


def test_progress_reaches_the_size_of_the_file_on_disk(tmp_path: Path) -> None:
    data = gzip.compress(damaged(2000).data)
    path = put(tmp_path, data, "raw.jsonl.gz")
    seen = [batch.bytes_read for batch in read(path, batch=500)]
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


def test_a_batch_never_holds_more_than_asked(tmp_path: Path) -> None:
    path = put(tmp_path, f"{GOOD}\n" * 95)
    assert [batch.records for batch in read(path, batch=20)] == [20, 20, 20, 20, 15]


# JSON lists


def test_a_list_is_read_element_by_element_with_exact_places(tmp_path: Path) -> None:
    found = [{"prompt": f"p{i}", "completion": 'c"]},{[' * (i % 3) + "\\"} for i in range(50)]
    data = json.dumps(found, indent=2).encode()
    rows, bad = everything(put(tmp_path, data, "raw.json"))
    assert not bad
    assert [row.completion for row in rows] == [item["completion"] for item in found]
    for row in rows:
        assert data[row.offset : row.offset + 1] == b"{"
        assert data[: row.offset].count(b"\n") + 1 == row.line


@pytest.mark.parametrize("block", [1, 3, 10])
def test_a_list_survives_any_cut_between_blocks(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [{"prompt": 'a[{\\"', "completion": "é" * i + '"'} for i in range(1, 9)]
    path = put(tmp_path, json.dumps(found, indent=1, ensure_ascii=False), "raw.json")
    whole = everything(path)
    monkeypatch.setattr(streams, "BLOCK", block)
    monkeypatch.setattr(streams, "HEAD", 20)
    assert everything(path, format="json") == whole
    assert len(whole[0]) == 8


@pytest.mark.parametrize(
    ("data", "good", "reasons"),
    [
        (f"[{GOOD},{GOOD}", 1, ["truncated"]),
        (f"[{GOOD},", 1, ["truncated"]),
        (f"[{GOOD},]", 1, ["bare comma"]),
        (f"[{GOOD},,{GOOD}]", 2, ["bare comma"]),
        (f"[{GOOD}] tail", 1, ["trailing text"]),
        (f"[{GOOD}][{GOOD}]", 1, ["trailing text"]),
        (f'[{GOOD},5,"x",null]', 1, ["not an object"] * 3),
        (f'[{GOOD},{{"prompt":"a",}}]', 1, ["bare comma"]),
        (f"[{GOOD}}}", 1, ["syntax error"]),
        (f"[{GOOD},{'[' * 5000}{']' * 5000},{GOOD}]", 2, ["too deep"]),
        ("[]", 0, []),
        ("[ \n ]\n", 0, []),
        ("[", 0, ["truncated"]),
    ],
)
def test_damage_in_a_list_costs_its_element_alone(
    data: str, good: int, reasons: list[str], tmp_path: Path
) -> None:
    rows, bad = everything(put(tmp_path, data, "raw.json"), format="json")
    assert len(rows) == good
    assert [row.reason for row in bad] == reasons


@pytest.mark.parametrize("filler", ["x" * 3_000_000, '\\"' * 1_500_000, "[" * 3_000_000, '"a",' * 700_000])
def test_an_element_over_the_limit_is_set_aside_in_bounded_memory(
    filler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BLOCK", 1 << 16)
    if filler[0] in "[":
        long = filler + "]" * len(filler)
    else:
        long = f'[{filler}"b"]' if filler.startswith('"') else f'{{"prompt":"{filler}"}}'
    data = f"[{GOOD},\n {long}\n, {GOOD}]"
    rows, bad = everything(put(tmp_path, data, "raw.json"), max_line=1_000_000)
    assert [row.line for row in rows] == [1, 3]
    assert (bad[0].line, bad[0].offset, bad[0].reason) == (2, len(GOOD) + 4, "line too long")
    assert data[rows[1].offset :].startswith(GOOD)


# B2: hostile input


def hostile() -> dict[str, bytes]:
    """Inputs that are made to be slow or large."""
    return {
        "one line of 10 MB": b'{"prompt":"' + b"a" * 10_000_000 + b'","completion":"b"}',
        "10 MB of escapes": b'{"prompt":"' + b"\\u0041" * 1_700_000 + b'","completion":"b"}',
        "10 MB of quoted colons": b'{"prompt":"' + b'\\":' * 3_300_000 + b'","completion":"b"}',
        "nesting of 100k": b'{"prompt":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "10 MB of brackets": b"[" * 10_000_000,
        "10 MB of braces": b'{"a":' * 2_000_000,
        "10 MB of quotes": b'"' * 10_000_000,
        "10 MB of backslashes": b'{"prompt":"' + b"\\" * 10_000_000,
        "10 MB of commas": b"{" + b"," * 10_000_000,
        "10 MB of CR": b"\r" * 10_000_000,
        "300,000 blank lines": b"\n" * 300_000,
        "a million keys": b'{"prompt":"a",' + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}",
        "a million equal keys": b'{"prompt":"a",' + b",".join([b'"k":1'] * 1_000_000) + b"}",
        "a number of 10 MB": b'{"prompt":"a","n":' + b"9" * 10_000_000 + b"}",
        "10 MB of NaN": b'{"prompt":"a","n":[' + b"NaN," * 2_500_000 + b"0]}",
        "10 MB that is not UTF-8": b'{"prompt":"' + b"\xff" * 10_000_000 + b'"}',
        "10 MB of lone surrogates": b'{"prompt":"' + b"\\ud800" * 1_600_000 + b'"}',
    }


@pytest.mark.parametrize("name", hostile())
def test_hostile_input_is_read_or_refused_within_two_seconds(name: str, tmp_path: Path) -> None:
    data = hostile()[name]
    path = put(tmp_path, data)
    start = time.process_time()
    with suppress(UsageError):
        rows, bad = everything(path)
        assert len(rows) + len(bad) == data.count(b"\n") + (not data.endswith(b"\n"))
    assert time.process_time() - start < 2


MEASURE = """
import resource, sys
from curation.formats import read
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for batch in read(sys.argv[1]):
    pass
print(peak() - before)
"""


@pytest.mark.parametrize(
    "name", ["one line of 10 MB", "a million keys", "nesting of 100k", "10 MB of quoted colons"]
)
def test_memory_stays_under_ten_times_a_hostile_input(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, hostile()[name])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < max(10 * path.stat().st_size, 32 << 20)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    with path.open("w") as sink:
        for _ in range(20):
            sink.write(f"{GOOD}\n" * 30_000)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 40 << 20


# B3: whatever the bytes are


JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["prompt", "completion", "messages", "role", "content", "conversations", "from", "value", "data",
     "instruction", "output", "input", "history", "system", "text", "annotations", "result", "type",
     "choices", "tool_calls", "id", "gold", "group", "message_extras", "chosen", "rejected"]
)  # fmt: skip
SHAPED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from(["user", "assistant", "human", "textarea", "a", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


def check_foreseen(path: Path) -> None:
    """Under every format, only the errors of the project, known reasons, and prompts that hold something."""
    for forced in (None, "jsonl", "json", "csv", "tsv", "chat", "alpaca", "sharegpt", "label-studio", "text"):
        try:
            rows, bad = everything(path, format=forced)
        except TilthError:
            continue
        assert {row.reason for row in bad} <= REASONS.keys()
        for row in rows:
            assert not row.messages[-1]["content"].isspace()
            assert row.messages[-1]["content"]


@QUIET
@given(st.binary(max_size=400))
def test_no_bytes_raise_anything_unforeseen(tmp_path: Path, data: bytes) -> None:
    check_foreseen(put(tmp_path, data))


@QUIET
@given(st.lists(SHAPED | JSONISH, max_size=5), st.booleans(), st.integers(0, 200))
def test_no_structure_raises_anything_unforeseen(tmp_path: Path, found: Any, listed: bool, cut: int) -> None:
    text = json.dumps(found) if listed else "\n".join(map(json.dumps, found))
    check_foreseen(put(tmp_path, text))
    check_foreseen(put(tmp_path, text[: len(text) - cut]))


@QUIET
@given(st.text(max_size=60) | st.from_regex(r'\{("[a-z]*"[:,] ?["\-+0-9.eE\\a-zN]*,?)*\}?'))
def test_what_python_reads_as_one_strict_value_is_read_alike_or_refused(text: str) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    try:
        value = parse(raw)
    except Damage as damage:
        code = damage.code
    else:
        code, same = "blank line", value == json.loads(text)
        assert same
    assert code in REASONS


# what is detected is said


@pytest.mark.parametrize(
    ("data", "name", "shape"),
    [
        (GOOD, "jsonl", "prompt-completion"),
        (f"[{GOOD}]", "json", "prompt-completion"),
        (f"[\n  {GOOD}\n]\n", "json", "prompt-completion"),
        ('{"text":"a"}', "jsonl", "text"),
        ('{"messages":[]}', "jsonl", "chat"),
        ('{"conversations":[]}', "jsonl", "sharegpt"),
        ('{"instruction":"a","output":"b"}', "jsonl", "alpaca"),
        ('{"data":{"text":"a"}}', "jsonl", "label-studio"),
        ('{"prompt":"a","chosen":"b","rejected":"c"}', "jsonl", "preference"),
        ("prompt,completion\na,b\n", "csv", "prompt-completion"),
        ("prompt;completion\na;b\n", "csv", "prompt-completion"),
        ("prompt\tcompletion\na\tb\n", "tsv", "prompt-completion"),
        ('["a"]\n' + f"{GOOD}\n" * 3, "jsonl", "prompt-completion"),
        ("[1]\n[2]\n" + f"{GOOD}\n", "jsonl", "prompt-completion"),
    ],
)
def test_a_format_is_detected_by_content_and_said(data: str, name: str, shape: str, tmp_path: Path) -> None:
    form = sniff(put(tmp_path, data, "data.txt"))
    assert (form.name, form.shape) == (name, shape)
    assert shape in form.why


def test_a_forced_format_is_believed(tmp_path: Path) -> None:
    path = put(tmp_path, '{"text":"a","prompt":"b"}')
    assert everything(path, format="text")[0][0].messages[0]["content"] == "a"
    assert "--format text" in sniff(path, "text").why


def test_an_unknown_format_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'alpaca'"):
        sniff(put(tmp_path, GOOD), "alpacca")


def test_one_indented_object_is_not_taken_for_records(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one JSON object"):
        sniff(put(tmp_path, json.dumps({"a": {"prompt": "b"}}, indent=2), "data.json"))


def test_a_file_without_known_fields_names_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"question, answer.*--map prompt=FIELD"):
        everything(put(tmp_path, '{"question":"a","answer":"b"}'))


def test_the_rows_of_another_shape_are_refused_with_their_lines(tmp_path: Path) -> None:
    chat = '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'
    rows, bad = everything(put(tmp_path, f"{GOOD}\n{chat}\n{GOOD}\n{chat}\n{GOOD}\n"))
    assert [row.line for row in rows] == [1, 3, 5]
    assert [(row.line, row.reason) for row in bad] == [(2, "mixture"), (4, "mixture")]


def test_a_bad_row_shows_itself_as_a_sentence_and_as_an_object(tmp_path: Path) -> None:
    bad = one_bad(tmp_path, GOOD + "\n" + '{"prompt":"","completion":"\xe9"}')
    sentence = bad.sentence("raw.jsonl")
    assert sentence.startswith("raw.jsonl:2: empty prompt: ")
    assert REASONS["empty prompt"] in sentence
    shown = bad.as_dict("raw.jsonl")
    assert (shown["line"], shown["offset"]) == (2, len(GOOD) + 1)
    assert json.loads(shown["raw"])["prompt"] == ""


def test_a_mapping_lists_every_problem_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        Mapping.parse(["promt=a", "completion", "id=a", "id=b"])
    for part in ("did you mean 'prompt'", "names no field", "both 'a' and 'b'"):
        assert part in str(caught.value)
