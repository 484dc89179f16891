"""From the field's formats to rows: prompts, completions, tools, mappings, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.errors import IntegrityError, UsageError
from curation.formats import BadRow, Mapping, Row, read, sniff


def everything(path: Path, **options: Any) -> tuple[list[Row], list[BadRow]]:
    batches = list(read(path, **options))
    return [row for b in batches for row in b.rows], [row for b in batches for row in b.bad]


def put(folder: Path, text: str, name: str = "raw.jsonl") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def of(folder: Path, *records: Any, format: str | None = None, **mapped: str) -> list[Row]:
    """The rows of some records; none may be bad."""
    path = put(folder, "\n".join(map(json.dumps, records)))
    rows, bad = everything(path, mapping=Mapping(**mapped), format=format)
    assert not bad, bad[0].sentence(path)
    return rows


def bad_of(folder: Path, record: Any, **mapped: str) -> BadRow:
    rows, bad = everything(put(folder, json.dumps(record)), mapping=Mapping(**mapped))
    assert not rows
    return bad[0]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_completion_keeps_its_leading_space_and_its_last_newline(tmp_path: Path) -> None:
    row = of(tmp_path, {"prompt": " The sky is", "completion": " blue.\n"})[0]
    assert (row.messages, row.completion) == ([user(" The sky is")], " blue.\n")


def test_a_prompt_may_come_without_a_completion_or_with_null(tmp_path: Path) -> None:
    rows = of(
        tmp_path, {"prompt": "a"}, {"prompt": "a", "completion": None}, {"prompt": "b", "completion": "c"}
    )
    assert [row.completion for row in rows] == [None, None, "c"]


def test_fields_beside_the_text_are_kept_as_tags(tmp_path: Path) -> None:
    row = of(tmp_path, {"prompt": "a", "completion": "b", "id": 7, "weights": [1.5, None]})[0]
    assert (row.key, row.tags) == (None, {"id": 7, "weights": [1.5, None]})


def test_group_lang_time_and_gold_are_taken_by_their_names(tmp_path: Path) -> None:
    row = of(
        tmp_path, {"prompt": "a", "gold": "g", "group": "t1", "lang": "en", "time": "2026-01-01", "x": 1}
    )[0]
    assert (row.gold, row.group, row.lang, row.time, row.tags) == ("g", "t1", "en", "2026-01-01", {"x": 1})


def test_the_last_words_of_the_assistant_are_the_completion_of_a_chat(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Be kind."},
        user("Hi"),
        assistant("Hello"),
        user("Bye"),
        assistant("So long"),
    ]
    row = of(tmp_path, {"messages": talk})[0]
    assert (row.messages, row.completion, row.tags) == (talk[:4], "So long", {})


def test_a_chat_that_ends_with_the_user_awaits_its_answer(tmp_path: Path) -> None:
    talk = [user("Hi"), assistant("Hello"), user("Bye")]
    row = of(tmp_path, {"messages": talk})[0]
    assert (row.messages, row.completion) == (talk, None)


def test_conversational_prompts_and_completions_are_lists(tmp_path: Path) -> None:
    row = of(tmp_path, {"prompt": [user("Hi")], "completion": [assistant(" Hello")]})[0]
    assert (row.messages, row.completion) == ([user("Hi")], " Hello")


def test_of_a_completion_with_a_tool_call_the_last_message_is_learnt(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    }
    answer = [call, {"role": "tool", "content": "7", "tool_call_id": "c1"}, assistant("Seven.")]
    row = of(tmp_path, {"prompt": [user("How many?")], "completion": answer})[0]
    assert [m["role"] for m in row.messages] == ["user", "tool_call", "tool"]
    assert row.completion == "Seven."
    assert row.tags == {"message_extras": {"2": {"tool_call_id": "c1"}}}


def test_a_tool_call_is_text_that_holds_every_null_it_had_and_no_other(tmp_path: Path) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": {"city": None, "n": 3}}}
    ]
    talk = [user("Where?"), {"role": "assistant", "content": None, "tool_calls": calls}]
    row = of(tmp_path, {"messages": talk})[0]
    assert row.messages == [user("Where?")]
    assert json.loads(row.completion or "") == {"content": None, "tool_calls": calls}


def test_parts_of_text_are_joined_and_pictures_refused(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = of(tmp_path, {"messages": [{"role": "user", "content": parts}]})[0]
    assert row.messages == [user("ab")]
    picture = [{"type": "image_url", "image_url": "x"}]
    assert (
        bad_of(tmp_path, {"messages": [{"role": "user", "content": picture}]}).reason == "unsupported content"
    )


def test_alpaca_is_read_with_its_system_and_history(tmp_path: Path) -> None:
    record = {
        "instruction": "Sum up",
        "input": "A text",
        "output": "Short",
        "system": "S",
        "history": [["q", "a"]],
    }
    row = of(tmp_path, record)[0]
    assert row.messages == [
        {"role": "system", "content": "S"},
        user("q"),
        assistant("a"),
        user("Sum up\nA text"),
    ]
    assert row.completion == "Short"
    assert of(tmp_path, {"instruction": "Sum up", "input": "", "output": ""})[0].completion is None


def test_sharegpt_is_read_with_tools_and_a_system_prompt(tmp_path: Path) -> None:
    talk = [
        {"from": "human", "value": "How many?"},
        {"from": "function_call", "value": '{"name":"count","arguments":{}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "Seven."},
    ]
    row = of(tmp_path, {"conversations": talk, "system": "S", "tools": "[]"})[0]
    assert [m["role"] for m in row.messages] == ["system", "user", "tool_call", "tool"]
    assert (row.completion, row.tags) == ("Seven.", {"tools": "[]"})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": [{"role": "wizard", "content": "a"}]}, "unknown role"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown role"),
        ({"messages": [{"content": "a"}]}, "missing key"),
        ({"messages": [{"role": "user"}]}, "missing key"),
        ({"messages": ["a"]}, "wrong type"),
        ({"messages": "a"}, "wrong type"),
        ({"messages": []}, "empty prompt"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "empty prompt"),
        ({"messages": [user("a"), assistant(" ")]}, "empty completion"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "unknown role"),
        ({"conversations": [{"from": "alien", "value": "a"}]}, "unknown role"),
        ({"conversations": [{"from": "human"}]}, "missing key"),
        ({"instruction": 5, "output": "a"}, "wrong type"),
        ({"instruction": "", "input": "", "output": "a"}, "empty prompt"),
        ({"instruction": "a", "output": "b", "history": [["q"]]}, "wrong type"),
        ({"data": {"text": "a"}, "annotations": "x"}, "wrong type"),
        ({"data": {"text": "a"}, "annotations": [{"result": [{"value": 7}]}]}, "wrong type"),
        ({"data": {"text": ""}}, "empty prompt"),
    ],
)  # fmt: skip
def test_damage_to_a_shape_has_its_reason(record: Any, reason: str, tmp_path: Path) -> None:
    assert bad_of(tmp_path, record).reason == reason


def test_preference_pairs_are_set_aside_until_an_answer_is_named(tmp_path: Path) -> None:
    pair = {"prompt": "a", "chosen": "good", "rejected": "bad"}
    assert bad_of(tmp_path, pair).reason == "preference pair"
    row = of(tmp_path, pair, completion="chosen")[0]
    assert (row.completion, row.tags) == ("good", {"rejected": "bad"})


# Label Studio


def annotation(kind: str, *values: str, **more: Any) -> dict[str, Any]:
    name = "text" if kind == "textarea" else "choices"
    return {
        "result": [{"type": kind, "from_name": "x", "to_name": "y", "value": {name: list(values)}}],
        **more,
    }


def test_every_answer_to_a_task_is_a_completion_of_one_record(tmp_path: Path) -> None:
    answers = [
        annotation("textarea", "One"),
        annotation("textarea", "Two"),
        annotation("textarea", "X", was_cancelled=True),
    ]
    task = {
        "id": 5,
        "data": {"prompt": "Hi", "item_id": "r1", "note": "n"},
        "annotations": answers,
        "file_upload": "f",
    }
    rows = of(tmp_path, task)
    assert [(row.completion, row.key, row.tags) for row in rows] == [
        ("One", "r1", {"note": "n"}),
        ("Two", "r1", {"note": "n"}),
    ]


def test_choices_are_a_completion_and_spans_are_none(tmp_path: Path) -> None:
    span = {"result": [{"type": "labels", "value": {"start": 0, "end": 1, "text": "a", "labels": ["X"]}}]}
    rows = of(tmp_path, {"data": {"text": "a"}, "annotations": [annotation("choices", "spam"), span, 17]})
    assert [row.completion for row in rows] == ["spam"]
    assert [
        r.completion for r in of(tmp_path, {"data": {"text": "a"}, "annotations": [span], "predictions": []})
    ] == [None]


def test_the_text_field_of_a_foreign_task_is_mapped(tmp_path: Path) -> None:
    task = {"data": {"question": "Hi"}, "annotations": [annotation("choices", "yes")]}
    assert sniff(put(tmp_path, json.dumps(task))).fields == ("question",)
    row = of(tmp_path, task, prompt="question")[0]
    assert (row.messages, row.completion) == ([user("Hi")], "yes")


# mappings


def test_any_fields_can_be_mapped(tmp_path: Path) -> None:
    record = {
        "q": "a",
        "a": "b",
        "right": "c",
        "ticket": 17,
        "customer": "k",
        "l": "en",
        "at": "2026",
        "other": 1,
    }
    named = {
        "prompt": "q",
        "completion": "a",
        "gold": "right",
        "id": "ticket",
        "group": "customer",
        "lang": "l",
        "time": "at",
    }
    row = of(tmp_path, record, **named)[0]
    assert row == Row(1, 0, [user("a")], "b", "c", "17", "k", "en", "2026", {"other": 1})


@pytest.mark.parametrize(
    ("spelled", "text"),
    [
        ("5", "5"),
        ("1.50", "1.50"),
        ("true", "true"),
        ("1e3", "1e3"),
        ("-0.0", "-0.0"),
        ('" x"', " x"),
        ("0", "0"),
    ],
)
def test_a_mapped_number_is_taken_as_it_is_spelled(spelled: str, text: str, tmp_path: Path) -> None:
    path = put(tmp_path, f'{{"q":"a","n":{spelled}}}')
    rows, _ = everything(path, mapping=Mapping(prompt="q", completion="n"))
    assert rows[0].completion == text


def test_a_mapped_field_that_a_row_lacks_is_null_unless_it_is_needed(tmp_path: Path) -> None:
    path = put(tmp_path, '{"q":"a","a":"b","k":"1"}\n{"q":"a","k":null}\n{"a":"b","k":"1"}\n{"q":"","k":"1"}')
    rows, bad = everything(path, mapping=Mapping(prompt="q", completion="a", id="k"))
    assert [row.completion for row in rows] == ["b"]
    assert [row.reason for row in bad] == ["missing key", "missing key", "empty prompt"]
    rows, _ = everything(path, mapping=Mapping(prompt="q", completion="a"))
    assert [row.completion for row in rows] == ["b", None]


def test_a_field_inside_another_is_reached_with_a_dot(tmp_path: Path) -> None:
    row = of(tmp_path, {"input": {"text": "a"}, "n": {"x": 2.50}}, prompt="input.text", completion="n.x")[0]
    assert (row.messages, row.completion) == ([user("a")], "2.5")


def test_a_mapped_conversation_keeps_its_answer_unless_another_is_mapped(tmp_path: Path) -> None:
    record = {"talk": [user("Hi"), assistant("Hello")], "better": "Good day"}
    assert of(tmp_path, record, prompt="talk")[0].completion == "Hello"
    row = of(tmp_path, record, prompt="talk", completion="better")[0]
    assert (row.messages, row.completion) == ([user("Hi")], "Good day")


def test_a_mapped_field_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"'categry', did you mean 'category'\? The fields are: text, category"
    ):
        everything(
            put(tmp_path, "text,category\na,b\n", "a.csv"),
            mapping=Mapping(prompt="text", completion="categry"),
        )


# CSV


def test_a_csv_record_with_newlines_keeps_its_first_line_and_its_offset(tmp_path: Path) -> None:
    text = 'prompt,completion\r\n"a\n,""x""\r\n",b\r\né,"c\nd"\r\ne,f'
    path = put(tmp_path, text, "a.csv")
    rows, bad = everything(path)
    assert not bad
    assert [row.line for row in rows] == [2, 5, 7]
    starts = [text.encode().index(start) for start in (b'"a', "é".encode(), b"e,f")]
    assert [row.offset for row in rows] == starts
    assert [row.messages[0]["content"] for row in rows] == ['a\n,"x"\r\n', "é", "e"]
    assert [row.completion for row in rows] == ["b", "c\nd", "f"]


def test_damage_in_a_csv_costs_its_record_alone(tmp_path: Path) -> None:
    lines = ["prompt,completion", "a,b", "a", "a,b,c", "", 'a,"b"c', 'a,"open', "a,b", ",b", "a,b\0", "a,b"]
    path = put(tmp_path, "\n".join(lines) + "\n", "a.csv")
    path.write_bytes(path.read_bytes() + b"a,\xff\n")
    rows, bad = everything(path)
    assert [(row.line, row.reason) for row in bad] == [
        (3, "wrong column count"),
        (4, "wrong column count"),
        (5, "blank line"),
        (6, "bad quote"),
        (7, "bad quote"),
        (9, "empty prompt"),
        (10, "nul character"),
        (12, "not utf-8"),
    ]
    assert [row.line for row in rows] == [2, 8, 11]
    offsets = [sum(len(line) + 1 for line in lines[: row.line - 1]) for row in bad]
    assert [row.offset for row in bad] == offsets


def test_an_empty_csv_field_is_no_completion(tmp_path: Path) -> None:
    rows, bad = everything(put(tmp_path, 'prompt,completion,group\na,,\nb,"",x\n', "a.csv"))
    assert [(row.completion, row.group) for row in rows] == [(None, None), (None, "x")]
    assert not bad


def test_a_field_of_a_megabyte_is_read(tmp_path: Path) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["prompt", "completion"], ["a\n" * 500_000, "b"]])
    rows, bad = everything(put(tmp_path, buffer.getvalue(), "a.csv"))
    assert not bad
    assert len(rows[0].messages[0]["content"]) == 1_000_000


def test_a_csv_with_carriage_returns_alone_is_read(tmp_path: Path) -> None:
    rows, bad = everything(put(tmp_path, "prompt,completion\ra,b\rc,d\r", "a.csv"))
    assert [(row.line, row.completion) for row in rows] == [(2, "b"), (3, "d")]
    assert not bad


def test_quotes_in_a_tsv_are_text_where_they_do_not_quote(tmp_path: Path) -> None:
    plain = put(tmp_path, 'prompt\tcompletion\nsize 5"\tok\n"what" he said\tfine\n', "a.tsv")
    assert [row.messages[0]["content"] for row in everything(plain)[0]] == ['size 5"', '"what" he said']
    quoted = put(tmp_path, 'prompt\tcompletion\n"a\tb"\tok\n', "b.tsv")
    assert [row.messages[0]["content"] for row in everything(quoted)[0]] == ["a\tb"]


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'prompt' more than once"):
        everything(put(tmp_path, "prompt,prompt\na,b\n", "a.csv"))


# Parquet


def parquet(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=10)
    return folder / "a.parquet"


def test_parquet_is_read_in_row_groups(tmp_path: Path) -> None:
    path = parquet(tmp_path, text=[f"t{i}" for i in range(35)], n=list(range(35)), picture=[b"x"] * 35)
    rows, bad = everything(path, mapping=Mapping(prompt="text", completion="n"), batch=10)
    assert not bad
    assert [(row.line, row.offset, row.completion) for row in rows] == [(i + 1, i, str(i)) for i in range(35)]
    assert rows[0].tags == {}


def test_nulls_that_arrow_put_into_messages_are_dropped(tmp_path: Path) -> None:
    talk = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "bot"}]]
    rows, bad = everything(parquet(tmp_path, messages=talk))
    assert not bad
    assert rows[0].tags == {"message_extras": {"answer": {"name": "bot"}}}


def test_bad_rows_of_parquet_show_what_they_held(tmp_path: Path) -> None:
    rows, bad = everything(parquet(tmp_path, prompt=["a", "", None, "b"], completion=["x", "y", "z", None]))
    assert [row.line for row in rows] == [1, 4]
    assert [(row.line, row.reason) for row in bad] == [(2, "empty prompt"), (3, "empty prompt")]
    assert json.loads(bad[0].raw) == {"prompt": "", "completion": "y"}


def test_text_in_parquet_that_is_not_utf_8_costs_its_row_alone(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff")]
    )
    rows, bad = everything(parquet(tmp_path, prompt=broken))
    assert [row.line for row in rows] == [1]
    assert [(row.line, row.reason) for row in bad] == [(2, "not utf-8")]


@pytest.mark.parametrize("cut", [6, -1, 60])
def test_damaged_parquet_is_refused(cut: int, tmp_path: Path) -> None:
    path = parquet(tmp_path, prompt=["a"] * 100)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError, match="Parquet data is damaged"):
        everything(path)
