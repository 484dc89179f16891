"""The made-up desk: the same seed gives the same bytes, and every planted fault is where the truth says it
is.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from apps.demo import corpus
from curation.errors import UsageError
from curation.text import jaccard, normalise, shingles


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    out = tmp_path_factory.mktemp("desk")
    began = time.process_time()
    truth = corpus.generate(out)
    return out, truth.as_dict(), time.process_time() - began


def read(path: Path, broken: set[int] = frozenset()) -> dict[str, dict]:
    lines = path.read_bytes().split(b"\n")[:-1]
    rows = [json.loads(line) for number, line in enumerate(lines, 1) if number not in broken]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def pool(desk):
    out, truth, _ = desk
    return read(out / "inquiries.jsonl", {fault["line"] for fault in truth["malformed"]})


def joined(row):
    return "\n".join(filter(None, (row["prompt"], row["completion"])))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        corpus.generate(tmp_path / name, seed=seed, inquiries=300)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["inquiries.jsonl"] != files(tmp_path / "c")["inquiries.jsonl"]


def test_the_month_is_made_within_seconds_and_holds_what_was_asked(desk, pool):
    out, truth, seconds = desk
    assert seconds < 5
    assert len(pool) == truth["rows"] == 3000
    assert json.loads((out / "truth.json").read_text(encoding="utf-8")) == json.loads(json.dumps(truth))


def test_there_are_sixty_templates_and_five_for_every_intent():
    templates = corpus.templates()
    assert set(templates) == set(corpus.INTENTS)
    assert sum(map(len, templates.values())) >= 60
    assert min(map(len, templates.values())) >= 5
    assert sum(corpus.SHARES.values()) == pytest.approx(1.0)


def test_every_slot_is_filled(pool):
    assert [r["id"] for r in pool.values() if re.search(r"[{}\[\]|]", r["prompt"])] == []


def test_no_intent_is_missing_and_the_rarest_is_one_or_two_in_a_hundred(desk, pool):
    counts = Counter(r["gold"] for r in pool.values() if r["gold"])
    assert set(counts) == set(corpus.INTENTS)
    assert 0.004 < min(counts.values()) / len(pool) < 0.025
    assert desk[1]["gold"].items() >= {r["id"]: r["gold"] for r in pool.values() if r["gold"]}.items()


def test_wrong_drafts_are_all_listed_and_about_fifteen_in_a_hundred(desk, pool):
    listed = {fault["id"] for fault in desk[1]["wrong"]}
    drafted = [r for r in pool.values() if r["completion"] and r["gold"]]
    wrong = {r["id"] for r in drafted if r["completion"] != r["gold"]}
    assert wrong == listed & set(pool)
    assert 0.6 < len(drafted) / len(pool) < 0.8
    assert 0.11 < len(wrong) / len(drafted) < 0.19


def test_exact_duplicates_come_later_and_say_the_same(desk, pool):
    faults = desk[1]["exact"]
    assert len(faults) == 90
    assert {f["how"] for f in faults} == {"same", "case", "space"}
    order = {key: place for place, key in enumerate(pool)}
    for fault in faults:
        twin, first = pool[fault["id"]], pool[fault["of"]]
        assert order[fault["id"]] > order[fault["of"]]
        assert normalise(joined(twin)) == normalise(joined(first))
        assert (twin["prompt"] == first["prompt"]) == (fault["how"] == "same")


def test_near_duplicates_are_as_similar_as_the_truth_says(desk, pool):
    faults = desk[1]["near"]
    for fault in faults:
        twin, first = pool[fault["id"]], pool[fault["of"]]
        assert jaccard(shingles(joined(twin)), shingles(joined(first))) == pytest.approx(
            fault["similarity"], abs=1e-4
        )
        assert normalise(joined(twin)) != normalise(joined(first))
        assert fault["hard"] == (fault["similarity"] < 0.8)
    assert sum(not f["hard"] for f in faults) >= 85
    assert sum(f["hard"] for f in faults) >= 25


def test_no_two_mails_are_similar_unless_it_was_planned(desk, pool):
    """Otherwise a finder of duplicates would be punished for being right."""
    planned = {frozenset((f["id"], f["of"])) for f in desk[1]["exact"] + desk[1]["near"]}
    planned |= {frozenset(f["ids"]) for f in desk[1]["contradictions"]}
    machines = set(desk[1]["boilerplate"])
    found = similar_pairs({k: shingles(joined(r)) for k, r in pool.items() if k not in machines}, 0.7)
    assert found - planned == set()
    assert len(found & planned) > 200  # the search does find what was planned


def similar_pairs(sets, threshold):
    """All pairs at or above the threshold: prefix filtering, exact."""
    frequency = Counter(s for shape in sets.values() for s in shape)
    index, found = {}, set()
    for key, shape in sorted(sets.items(), key=lambda item: len(item[1])):
        ordered = sorted(shape, key=lambda s: (frequency[s], s))
        prefix = ordered[: len(ordered) - int(-(-threshold * len(ordered) // 1)) + 1]
        for other in {o for s in prefix for o in index.get(s, ())}:
            if jaccard(shape, sets[other]) >= threshold:
                found.add(frozenset((key, other)))
        for s in prefix:
            index.setdefault(s, []).append(key)
    return found


def test_contradictions_are_the_same_mail_under_two_drafts(desk, pool):
    assert len(desk[1]["contradictions"]) == 45
    for fault in desk[1]["contradictions"]:
        one, other = (pool[key] for key in fault["ids"])
        assert one["prompt"] == other["prompt"]
        assert [one["completion"], other["completion"]] == fault["drafts"]
        assert one["completion"] != other["completion"]


def test_threads_share_their_intent_and_some_are_long(desk, pool):
    members = [[pool[key] for key in keys if key in pool] for keys in desk[1]["threads"].values()]
    several = [mails for mails in members if len(mails) > 1]
    assert len(several) > 100
    assert max(map(len, several)) == 4
    for mails in several:
        assert len({m["gold"] for m in mails}) == len({m["thread"] for m in mails}) == 1


def test_personal_data_lies_where_the_truth_says_and_of_every_kind(desk, pool):
    spans = [s for s in desk[1]["personal"] if s["id"] in pool]
    for span in spans:
        assert pool[span["id"]]["prompt"][span["start"] : span["end"]] == span["text"]
    kinds = Counter(s["entity_type"] for s in spans)
    patterns = {"EMAIL_ADDRESS", "PHONE_NUMBER", "IBAN_CODE", "CREDIT_CARD", "US_SSN", "IP_ADDRESS"}
    assert set(kinds) == patterns | {"PERSON"}
    assert min(kinds.values()) >= 15


def test_every_address_in_a_mail_is_in_the_truth(desk, pool):
    """Negative control of the truth: a pattern finds no e-mail address that is not listed."""
    listed = {(s["id"], s["start"]) for s in desk[1]["personal"] if s["entity_type"] == "EMAIL_ADDRESS"}
    found = {
        (r["id"], m.start()) for r in pool.values() for m in re.finditer(r"[\w.+-]+@[\w.-]+\w", r["prompt"])
    }
    assert found == listed & {(i, s) for i, s in listed if i in pool}
    assert found


def test_evaluation_rows_leak_as_listed_and_otherwise_not(desk, pool):
    out, truth, _ = desk
    evaluation = read(out / "eval.jsonl")
    assert len(evaluation) == 200
    prompts = {row["prompt"]: key for key, row in evaluation.items()}
    exact = {f["id"] for f in truth["leaks"] if f["how"] == "exact"}
    assert {key for key, row in pool.items() if row["prompt"] in prompts} == exact
    assert (len(exact), len(truth["leaks"])) == (30, 45)
    for fault in truth["leaks"]:
        near = jaccard(shingles(pool[fault["id"]]["prompt"]), shingles(evaluation[fault["eval"]]["prompt"]))
        assert near == 1.0 if fault["how"] == "exact" else 0.6 < near < 1.0


def test_malformed_lines_are_where_the_truth_says_and_nothing_else_is_broken(desk):
    out, truth, _ = desk
    lines = (out / "inquiries.jsonl").read_bytes().split(b"\n")[:-1]
    assert {number for number, line in enumerate(lines, 1) if not sound(line)} == {
        fault["line"] for fault in truth["malformed"]
    }
    assert Counter(f["kind"] for f in truth["malformed"]) == dict.fromkeys(corpus._BROKEN, 4)


def sound(line: bytes) -> bool:
    try:
        row = json.loads(line)
        return bool(row["prompt"].strip())
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def test_machine_mails_have_neither_intent_nor_draft(desk, pool):
    assert len(desk[1]["boilerplate"]) == 60
    assert {(pool[k]["gold"], pool[k]["completion"]) for k in desk[1]["boilerplate"]} == {(None, None)}


def test_the_next_export_repeats_a_quarter_unchanged(desk, pool):
    out, truth, _ = desk
    coming = read(out / "inquiries-next.jsonl")
    again = set(coming) & set(pool)
    assert again == set(truth["overlap"])
    assert len(again) == len(coming) // 4 == 150
    assert all(coming[key] == pool[key] for key in again)


def test_there_are_fifteen_passages_under_headings(desk):
    texts = [p.read_text(encoding="utf-8") for p in sorted((desk[0] / "policies").glob("*.md"))]
    assert sum(text.count("\n## ") for text in texts) == 15
    assert all(text.startswith("# ") for text in texts)


def test_every_fault_refers_to_known_rows(desk, pool):
    truth = desk[1]
    ids = set(pool) | set(read(desk[0] / "inquiries-next.jsonl"))
    named = [f[k] for part in ("exact", "near") for f in truth[part] for k in ("id", "of")]
    named += [f["id"] for part in ("wrong", "leaks", "personal") for f in truth[part]] + truth["boilerplate"]
    assert set(named) <= ids


def test_too_few_inquiries_are_refused(tmp_path):
    with pytest.raises(UsageError, match="too few"):
        corpus.generate(tmp_path, inquiries=100)
