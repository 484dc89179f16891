"""What the filters read, and documents in passages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curation.errors import UsageError
from curation.formats import BadRow, chunks, passages, read_objects, text_fields, text_of
from curation.records import digest


def put(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# objects


def test_an_object_is_named_by_its_id_or_its_index(tmp_path: Path) -> None:
    path = put(
        tmp_path,
        '{"id":"x","text":"a"}\n{"text":"b"}\n{"id":7,"text":"c"}\n{"id":null,"text":"d"}\n',
        "a.jsonl",
    )
    assert [identity for identity, _ in read_objects(path)] == ["x", 1, 7, 3]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_objects_are_read_from_every_container_as_they_are(name: str, tmp_path: Path) -> None:
    found = [{"any": "a", "thing": "1"}, {"any": "b", "thing": "2"}]
    texts = {
        "a.json": json.dumps(found),
        "a.jsonl": "\n".join(map(json.dumps, found)),
        "a.csv": "any,thing\na,1\nb,2\n",
    }
    assert [record for _, record in read_objects(put(tmp_path, texts[name], name))] == found


def test_a_bad_line_stops_a_filter_with_its_place_unless_somebody_takes_it(tmp_path: Path) -> None:
    path = put(tmp_path, '{"text":"a"}\n\n{"text":\n5\n{"text":"b"}\n', "a.jsonl")
    with pytest.raises(UsageError, match=r"a\.jsonl:3: truncated"):
        list(read_objects(path))
    bad: list[BadRow] = []
    assert [record for _, record in read_objects(path, bad.append)] == [{"text": "a"}, {"text": "b"}]
    assert [(row.line, row.reason) for row in bad] == [(3, "truncated"), (4, "not an object")]


def test_text_fields_are_found_by_name() -> None:
    assert text_fields({"text": "a", "prompt": "b"}) == ("text",)
    assert text_fields({"completion": "c", "prompt": "b"}) == ("prompt", "completion")
    assert text_fields({"prompt": "b"}) == ("prompt",)
    assert text_fields({"messages": []}) == ("messages",)
    assert text_fields({"a": 1, "b": 2}, ["b", "a"]) == ("b", "a")


def test_a_missing_text_field_is_named_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="the fields are: body, id"):
        text_fields({"body": "a", "id": 1})
    with pytest.raises(UsageError, match="did you mean 'body'"):
        text_fields({"body": "a"}, ["boddy"])


def test_several_fields_are_joined_by_a_newline_and_absent_ones_add_nothing() -> None:
    record = {"a": "x", "n": 5, "none": None, "yes": True}
    assert text_of(record, ("a", "n", "none", "missing", "yes")) == "x\n5\ntrue"


def test_messages_become_lines_of_role_and_content() -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert text_of({"messages": talk}, ("messages",)) == "user: Hi\nassistant: Hello"
    with pytest.raises(UsageError, match="neither text nor messages"):
        text_of({"x": {"y": 1}}, ("x",))


# passages


MANUAL = """\
# Returns

Within 30 days.

## Damaged goods
A photo is needed.

```
# no heading
```

Refunds
-------

In five days.

# Contact
Call us.
"""


def test_a_markdown_document_is_cut_at_its_headings(tmp_path: Path) -> None:
    path = put(tmp_path, MANUAL, "policy.md")
    found = passages(path)
    assert [(p.heading, p.text) for p in found] == [
        (["Returns"], "Within 30 days."),
        (["Returns", "Damaged goods"], "A photo is needed.\n\n```\n# no heading\n```"),
        (["Returns", "Refunds"], "In five days."),
        (["Contact"], "Call us."),
    ]
    assert {p.document for p in found} == {"policy.md"}
    assert {p.version for p in found} == {digest(path.read_bytes())}


def test_a_changed_document_has_another_version(tmp_path: Path) -> None:
    old = passages(put(tmp_path, "One.", "a.txt"))
    new = passages(put(tmp_path, "Two.", "a.txt"))
    assert old[0].version != new[0].version


def test_plain_text_has_no_headings(tmp_path: Path) -> None:
    found = passages(put(tmp_path, "# not a heading\n\nText", "a.txt"))
    assert [(p.heading, p.text) for p in found] == [([], "# not a heading\n\nText")]


def test_an_empty_document_has_no_passages(tmp_path: Path) -> None:
    assert passages(put(tmp_path, "\n\n", "a.md")) == []


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    text = " ".join(f"This is sentence number {i}." for i in range(200))
    found = chunks(text, 300)
    assert all(len(chunk) <= 300 and chunk.endswith(".") for chunk in found)
    assert " ".join(found) == text


def test_a_megabyte_without_a_space_is_cut_all_the_same() -> None:
    found = chunks("x" * 1_000_000, 1000)
    assert len(found) == 1000


@settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.text(st.sampled_from("ab. !\n\t#-"), max_size=200), st.integers(5, 60))
def test_no_word_of_a_text_is_lost_and_no_chunk_is_too_long(text: str, length: int) -> None:
    found = chunks(text, length)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(0 < len(chunk) <= length for chunk in found)


@pytest.mark.parametrize(("name", "data"), [("a.pdf", b"%PDF"), ("a.md", b"\xff\xfe"), ("a.docx", b"PK")])
def test_a_document_that_is_not_plain_text_is_refused(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UsageError):
        passages(path)
