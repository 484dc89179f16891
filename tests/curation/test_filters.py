"""Files that are read twice: what stays, in its bytes and its order; on one core or several; in bounded memory."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curation import filters, formats, grouping, recall, shingles
from curation.errors import IntegrityError, UsageError
from curation.leakage import LeakageRule
from curation.minhash import DuplicateRule

RULE = DuplicateRule()
WORDS = [f"w{i}" for i in range(3000)]


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def corpus(rows: int) -> list[str]:
    """Texts of which every fourth is like the one before it, and every eighth equal to an earlier one."""
    texts: list[str] = []
    for i in range(rows):
        if i % 8 == 7:
            texts.append(texts[i // 2].upper())
        elif i % 4 == 3:
            texts.append(texts[-1] + " more")
        else:
            texts.append(prose(i))
    return texts


def written(path: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"id": f"r{i}", "text": t, "n": i}) for i, t in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def copies_of(path: Path, folder: Path, sample: int = 0, **more) -> tuple[filters.Copies, bytes, list[dict]]:
    folder.mkdir()
    ids: dict[int, object] = {}
    with formats.repeatable(path, folder) as source:
        found = filters.find_copies(source, [], RULE, folder, sample=sample, **more)
        kept = b"".join(filters.kept_lines(source, found.stays, found.shared, ids))
    return found, kept, list(filters.clusters(found, ids))


def test_a_file_gives_the_clusters_that_its_texts_give(tmp_path):
    texts = corpus(400)
    path = written(tmp_path / "rows.jsonl", texts)
    found, kept, clusters = copies_of(path, tmp_path / "work")
    labels = grouping.group(texts, RULE).labels
    assert found.labels.tolist() == labels.tolist()
    lines = path.read_bytes().splitlines(keepends=True)
    assert kept == b"".join(line for i, line in enumerate(lines) if labels[i] == i)
    assert [c["kept"] for c in clusters] == [c["members"][0] for c in clusters]
    places = [[int(m[1:]) for m in c["members"]] for c in clusters]
    assert places == [c.tolist() for c in grouping.group(texts, RULE).clusters()]
    assert all(place == sorted(place) for place in places)


def test_the_size_of_blocks_and_parts_changes_nothing(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", corpus(300))
    whole = copies_of(path, tmp_path / "one", sample=50)
    monkeypatch.setattr(formats.Repeatable.blocks, "__defaults__", (2000,))
    monkeypatch.setattr(filters, "_NUMBERS", 100)
    parts = copies_of(path, tmp_path / "two", sample=50)
    assert parts[0].labels.tolist() == whole[0].labels.tolist()
    assert parts[1:] == whole[1:]
    assert parts[0].check == whole[0].check


def test_processes_give_what_one_process_gives(tmp_path, monkeypatch):
    path = written(tmp_path / "rows.jsonl", corpus(120))
    monkeypatch.setattr(formats.Repeatable.blocks, "__defaults__", (3000,))
    here = copies_of(path, tmp_path / "one")
    there = copies_of(path, tmp_path / "two", workers=2)
    assert there[0].labels.tolist() == here[0].labels.tolist()
    assert there[1:] == here[1:]


def test_auto_uses_all_cores_for_a_large_file_alone():
    assert filters.processes("auto", 1000) == 1
    assert filters.processes("auto", 1 << 30) == filters.processes("processes", 10)
    assert filters.processes("here", 1 << 30) == 1


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl.gz"])
def test_other_containers_are_written_as_json_lines(tmp_path, name):
    rows = [{"id": "a", "text": prose(1)}, {"id": "b", "text": prose(1)}, {"id": "c", "text": prose(2)}]
    path = tmp_path / name
    if name == "rows.csv":
        path.write_text("id,text\n" + "".join(f"{r['id']},{r['text']}\n" for r in rows))
    elif name == "rows.json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    _, kept, clusters = copies_of(path, tmp_path / "work")
    assert [json.loads(line) for line in kept.splitlines()] == [rows[0], rows[2]]
    assert clusters == [{"cluster": 0, "members": ["a", "b"], "kept": "a"}]


def test_rows_pass_byte_for_byte_and_blank_lines_count_for_nothing(tmp_path):
    path = tmp_path / "rows.jsonl"
    one, other = b'{"text": "a b",  "price": 1.50}', '{"text":"caf\u00e9"}'.encode()
    path.write_bytes(b"\xef\xbb\xbf" + one + b"\n\n" + other + b"\n  \n" + b'{"text":"A  B"}')
    found, kept, clusters = copies_of(path, tmp_path / "work")
    assert kept == one + b"\n" + other + b"\n"
    assert clusters == [{"cluster": 0, "members": [0, 2], "kept": 0}]
    assert len(found.labels) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_is_named_in_whichever_process_it_is_read(tmp_path, workers):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(UsageError, match=r"rows.jsonl:3: truncated"):
        copies_of(path, tmp_path / "work", workers=workers)


def test_an_empty_file_has_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("")
    found, kept, clusters = copies_of(path, tmp_path / "work", sample=10)
    assert (len(found.labels), kept, clusters) == (0, b"", [])


def test_a_file_that_changes_between_two_readings_is_an_error(tmp_path):
    path = written(tmp_path / "rows.jsonl", corpus(20))
    with formats.repeatable(path, tmp_path) as source:
        list(source.blocks())
        written(path, corpus(21))
        with pytest.raises(IntegrityError, match="changed while it was read"):
            list(source.blocks())


LIMITED = """
import resource, sys
from curation import filters, formats, minhash, recall, shingles
import numpy, pyarrow, tempfile, pathlib
shingles.WORTH_COMPILING = 10**12
data = sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (data * 1024 + int(sys.argv[2]), resource.RLIM_INFINITY))
with tempfile.TemporaryDirectory() as folder, formats.repeatable(sys.argv[1], pathlib.Path(folder)) as source:
    WORK
"""
DEDUP = """found = filters.find_copies(source, [], minhash.DuplicateRule(), pathlib.Path(folder), sample=20)
    print(sum(len(part) for part in filters.kept_lines(source, found.stays, found.shared, {})))"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell what is used")
@pytest.mark.parametrize(
    ("work", "done"), [(DEDUP, True), ("rows = [b.objects() for b in source.blocks()]", False)]
)
def test_a_file_larger_than_the_memory_that_is_left_is_done_and_is_more_than_reading_it_can(
    tmp_path, work, done
):
    path, long = tmp_path / "rows.jsonl", " ".join(f"word{i}" for i in range(4000))
    with path.open("w") as file:
        for i in range(9000):
            file.write(json.dumps({"text": f"{i} {long[i % 97 * 20 :][:20_000]}"}) + "\n")
    size = path.stat().st_size
    assert size > 150 << 20
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED.replace("WORK", work), str(path), str(150 << 20)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    if done:
        assert ran.returncode == 0, ran.stderr[-1500:]
    else:  # refused memory is an exception, or, inside a library, the end of the process
        assert "MemoryError" in ran.stderr or ran.returncode < 0


# --- The exact comparison of a sample ---------------------------------------------------------------


def test_the_sample_finds_what_brute_force_finds():
    texts = corpus(300)
    made = grouping.InMemory(texts, RULE)
    groups = grouping.cluster(made, RULE)
    found = recall.check(made, groups, RULE, 10_000)
    distinct = np.flatnonzero(grouping.first_of_name(made.names) == np.arange(300))
    sets = made.sets(distinct)
    every = np.array([[i, j] for i in range(len(distinct)) for j in range(i)])
    near = int((shingles.pair_jaccard(sets, every) >= RULE.threshold).sum())
    assert near > 20
    assert (found.pairs, found.found, found.recall) == (2 * near, 2 * near, 1.0)


def test_the_sample_notices_a_banding_that_misses_pairs():
    texts = [" ".join(["x", *prose(i // 2).split()[: 56 + 4 * (i % 2)]]) for i in range(600)]
    poor = DuplicateRule(bands=1, rows=64)
    made = grouping.InMemory(texts, poor)
    assert recall.check(made, grouping.cluster(made, poor), poor, 600).recall < 0.5
    good = grouping.InMemory(texts, RULE)
    assert recall.check(good, grouping.cluster(good, RULE), RULE, 600).recall == 1.0


def test_the_sample_depends_on_content_and_not_on_order():
    texts = corpus(200)
    turned = list(reversed(texts))
    one, other = (grouping.InMemory(t, RULE) for t in (texts, turned))
    assert recall.check(one, grouping.cluster(one, RULE), RULE, 40) == recall.check(
        other, grouping.cluster(other, RULE), RULE, 40
    )


# --- Leaks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_leaks_of_a_file_are_named_by_file_and_id(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(formats.Repeatable.blocks, "__defaults__", (3000,))
    texts = [prose(i) for i in range(80)]
    held = written(tmp_path / "test.jsonl", [texts[3].upper(), prose(900), texts[70] + " too"])
    pool = written(tmp_path / "rows.jsonl", texts)
    ids: dict[int, object] = {}
    with formats.repeatable(pool, tmp_path) as source, formats.repeatable(held, tmp_path) as against:
        found = filters.find_leaks(source, [against], [], LeakageRule(), workers=workers)
        clean = b"".join(filters.clean_lines(source, found, ids))
    assert ids == {3: "r3", 70: "r70"}
    assert [found.matched[leak.matched] for leak in found.leaks.values()] == [f"{held}:r0", f"{held}:r2"]
    assert [json.loads(line)["n"] for line in clean.splitlines()] == [
        i for i in range(80) if i not in (3, 70)
    ]
