"""The filters that compare rows, as a shell calls them: a pipe in, a pipe out, clusters and reports beside."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.apps.test_cli import ROOT, tilth

ROWS = [
    {"id": "a", "prompt": "one two three four five six seven eight nine ten", "completion": "yes"},
    {"id": "b", "prompt": "ONE two  three four five six seven eight nine ten", "completion": "Yes"},
    {"id": "c", "prompt": "something else", "completion": "yes"},
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def piped(*words: str, cwd: Path) -> tuple[str, str]:
    """What a command writes to stdout and stderr when the rows are piped into it."""
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", *words],
        cwd=cwd,
        input=LINES,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    return done.stdout, done.stderr


def test_rows_pass_through_a_pipe_and_nothing_is_left_behind(tmp_path: Path) -> None:
    out, talk = piped("dedup", "-", "--clusters", "c.jsonl", "--out", "k.jsonl", cwd=tmp_path)
    assert (tmp_path / "k.jsonl").read_text().splitlines() == [LINES.splitlines()[i] for i in (0, 2)]
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {
        "cluster": 0,
        "members": ["a", "b"],
        "kept": "a",
    }
    assert "reading" in talk
    assert "rows" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.jsonl", "k.jsonl"]


def test_the_result_says_what_was_verified_and_what_a_sample_shows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES)
    found = tilth("dedup", "rows.jsonl", "--fields", "completion", cwd=tmp_path)
    assert (found["rows"], found["kept"], found["clusters"]) == (3, 1, 1)
    assert found["check"] == {"sample": 1, "pairs": 0, "found": 0, "recall": 1.0}
    assert "check" not in tilth("dedup", "rows.jsonl", "--sample", "0", cwd=tmp_path)


def test_an_engine_that_is_not_known_is_bad_usage(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES)
    told = tilth("dedup", "rows.jsonl", "--engine", "cloud", cwd=tmp_path, code=2)
    assert "auto, here, processes" in told["error"]["next"]


def test_a_leak_is_reported_by_both_ids(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "test.jsonl").write_text(
        json.dumps({"id": "t", "prompt": "Something else!", "completion": "Yes"})
    )
    words = (
        "decontaminate",
        "rows.jsonl",
        "--against",
        "test.jsonl",
        "--report",
        "r.jsonl",
        "--out",
        "k.jsonl",
    )
    found = tilth(*words, cwd=tmp_path)
    assert (found["rows"], found["removed"], found["by_method"]) == (3, 1, {"exact": 1})
    report = json.loads((tmp_path / "r.jsonl").read_text())
    assert report == {"id": "c", "matched": "test.jsonl:t", "method": "exact", "score": 1.0}
    assert [json.loads(line)["id"] for line in (tmp_path / "k.jsonl").read_text().splitlines()] == ["a", "b"]


SAYING = ["my parcel is lost", "the package never came", "who pays customs", "MY parcel is lost"]
VECTORS = np.array([[1, 0, 0], [0.99, 0.1, 0], [0, 1, 0], [1, 0, 0]], np.float32)


def said(folder: Path) -> None:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"id": f"r{i}", "text": text}) + "\n" for i, text in enumerate(SAYING))
    )
    np.save(folder / "v.npy", VECTORS)
    listed = pa.array(VECTORS.tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"n": [1, 2, 3, 4], "embedding": listed}), folder / "v.parquet")


@pytest.mark.parametrize("vectors", ["v.npy", "v.parquet"])
def test_rows_in_other_words_are_shown_and_dropped_only_when_asked(tmp_path: Path, vectors: str) -> None:
    said(tmp_path)
    words = ("dedup", "rows.jsonl", "--vectors", vectors, "--resembling", "r.jsonl", "--out", "k.jsonl")
    found = tilth(*words, cwd=tmp_path)
    assert (found["kept"], found["resembling"]) == (3, 1)
    shown = json.loads((tmp_path / "r.jsonl").read_text())
    assert shown == {"id": "r1", "resembles": "r0", "score": pytest.approx(0.99, abs=0.01)}
    assert tilth(*words, "--drop-resembling", cwd=tmp_path)["kept"] == 2
    kept = [json.loads(line)["id"] for line in (tmp_path / "k.jsonl").read_text().splitlines()]
    assert kept == ["r0", "r2"]


def test_vectors_that_do_not_fit_are_refused_and_never_unpickled(tmp_path: Path) -> None:
    said(tmp_path)
    np.save(tmp_path / "short.npy", VECTORS[:2])
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], object), allow_pickle=True)
    pq.write_table(pa.table({"n": [1, 2, 3, 4]}), tmp_path / "none.parquet")
    for name, code, word in (
        ("short.npy", 2, "2 vectors"),
        ("objects.npy", 5, "allow_pickle"),
        ("none.parquet", 2, "0 columns"),
    ):
        told = tilth("dedup", "rows.jsonl", "--vectors", name, cwd=tmp_path, code=code)
        assert word in told["error"]["what"]


def test_the_bundled_base_can_be_the_encoder(tmp_path: Path) -> None:
    said = [
        f"the {thing} of {name} is {state}"
        for thing in ("parcel", "card")
        for name in ("Ana", "Bo")
        for state in ("lost", "late", "blue", "here", "at the depot in the north of the town")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in said))
    words = ("dedup", "rows.jsonl", "--semantic", "bundled", "--cosine", "0.5")
    found = tilth(*words, "--drop-resembling", "--resembling", "r.jsonl", cwd=tmp_path)
    shown = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert found["resembling"] == len(shown) > 0
    assert found["kept"] == 20 - len(shown)
    assert not {one["resembles"] for one in shown} & {one["id"] for one in shown}
    np.save(tmp_path / "v.npy", VECTORS)
    assert tilth(*words, "--vectors", "v.npy", cwd=tmp_path, code=2)["error"]["where"] == "--vectors"


def test_a_mail_that_lies_in_a_thread_is_shown_and_stays(tmp_path: Path) -> None:
    mail = " ".join(f"word{i}" for i in range(40))
    thread = " ".join([*(f"before{i}" for i in range(90)), mail, *(f"behind{i}" for i in range(90))])
    lines = (json.dumps({"id": name, "text": value}) for name, value in (("mail", mail), ("thread", thread)))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = tilth("dedup", "rows.jsonl", "--contained", "c.jsonl", cwd=tmp_path)
    assert (found["kept"], found["contained"], found["contained_partial"]) == (2, 1, 0)
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {"id": "mail", "within": "thread", "share": 1.0}


def test_what_was_there_already_stays_and_its_copies_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text(LINES)
    old = [ROWS[1] | {"id": "o1"}, {"id": "o2", "prompt": "quite another", "completion": "no"}]
    old.append(old[1] | {"id": "o3"})  # copies among the old rows are nobody's business here
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    words = ("dedup", "new.jsonl", "--against", "old.jsonl", "--out", "k.jsonl", "--clusters", "c.jsonl")
    found = tilth(*words, cwd=tmp_path)
    assert (found["rows"], found["kept"], found["clusters"]) == (3, 1, 1)
    assert [json.loads(line)["id"] for line in (tmp_path / "k.jsonl").read_text().splitlines()] == ["c"]
    cluster = json.loads((tmp_path / "c.jsonl").read_text())
    assert cluster == {"cluster": 0, "members": ["old.jsonl:o1", "a", "b"], "kept": "old.jsonl:o1"}
    assert tilth("dedup", "new.jsonl", "--against", "new.jsonl", cwd=tmp_path)["kept"] == 0


def test_a_row_that_lies_in_one_that_was_there_is_named_with_its_file(tmp_path: Path) -> None:
    mail = " ".join(f"word{i}" for i in range(40))
    thread = " ".join([*(f"before{i}" for i in range(90)), mail])
    (tmp_path / "old.jsonl").write_text(json.dumps({"text": "short"}) + "\n" + json.dumps({"text": thread}))
    (tmp_path / "new.jsonl").write_text(json.dumps({"id": "mail", "text": mail}))
    tilth("dedup", "new.jsonl", "--against", "old.jsonl", "--contained", "c.jsonl", cwd=tmp_path)
    assert json.loads((tmp_path / "c.jsonl").read_text())["within"] == "old.jsonl:1"


def against(folder: Path, held: str, *words: str, code: int = 0) -> Any:
    (folder / "rows.jsonl").write_text(LINES)
    (folder / "test.jsonl").write_text(held)
    return tilth("decontaminate", "rows.jsonl", "--against", "test.jsonl", *words, cwd=folder, code=code)


def test_an_evaluation_set_without_rows_is_refused(tmp_path: Path) -> None:
    assert "holds no row" in against(tmp_path, "", code=2)["error"]["what"]


def test_a_set_that_is_compared_by_other_fields_is_told(tmp_path: Path) -> None:
    prompt = json.dumps({"id": "t", "prompt": "Something else!"})
    assert (
        "by its prompt, rows.jsonl by its prompt and completion" in against(tmp_path, prompt)["warnings"][0]
    )
    assert "warnings" not in against(tmp_path, prompt, "--fields", "prompt")
