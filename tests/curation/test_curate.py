"""The cleaning stages over a workspace: which of several duplicates stays, and that the order of arrival is nothing to
it."""

from __future__ import annotations

import json
import random
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curation import assemble, curate, findings, workspace
from curation.curate import Rules
from curation.errors import UsageError
from curation.formats import Mapping
from curation.opinions import Voices
from curation.workspace import init, open_workspace
from tests.curation.toys import write_rows

WORDS = ["".join(letters) for letters in product("bdgklmnprstv", "aeiou", "bdgklmnprst", "aeo")]


def prose(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


PROMPT = prose(1)
GOOD = prose(2, 40) + "."
CUT = " ".join([*GOOD.split()[:-1], "because", "the"])  # the same answer, stopped in the middle


def row(name: str, completion: str, prompt: str = PROMPT, time: str = "2024-01-01") -> dict[str, str]:
    return {"id": name, "prompt": prompt, "completion": completion, "time": time}


def ingested(folder: Path, *batches: list[dict[str, str]], trust: str = "reference") -> Path:
    init(folder, actor="ana", name="desk")
    config = (
        folder / "tilth.toml"
    )  # made-up words look like names, and aliases would be compared instead of them
    config.write_text(config.read_text().replace('layers = ["patterns", "names"]', 'layers = ["patterns"]'))
    for number, rows in enumerate(batches):
        add(folder, rows, f"{number}", trust)
    return folder


def add(folder: Path, rows: list[dict[str, str]], name: str, trust: str = "reference") -> None:
    path = write_rows(folder / f"rows-{name}.jsonl", rows)
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, path, source="s", mapping=Mapping(id="id"), trust=trust)


def names(opened: Any) -> dict[str, str]:
    """The key that each record was ingested with."""
    found = opened.ledger.records()
    return dict(zip(found["record"].to_pylist(), found["key"].to_pylist(), strict=True))


def dropped(folder: Path, stage: str = "near") -> dict[str, str]:
    """The records that a stage drops, and what is kept for each."""
    with open_workspace(folder, actor="ana") as opened:
        curate.curate(opened)
        found = opened.ledger.decisions(stage=stage, rule=Rules(opened).of(stage)).to_pylist()
        called = names(opened)
    gone = [r for r in found if r["action"] == "drop"]
    return {called[r["record"]]: called[json.loads(r["evidence"])["kept"]] for r in gone}


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_of_arrival_changes_nothing(tmp_path, order):
    rows = [row("a", GOOD, time="2024-03-01"), row("b", GOOD, PROMPT + " please", time="2024-01-01")]
    rows.append(row("c", GOOD + " Bye.", time="2024-02-01"))
    folder = ingested(tmp_path / "w", *([rows[i]] for i in order))
    assert dropped(folder) == {"a": "b", "c": "b"}


def test_the_row_without_a_flaw_stays_before_the_better_trusted_and_the_older(tmp_path):
    folder = ingested(tmp_path / "w", [row("old", CUT, time="2020-01-01")], trust="reference")
    add(folder, [row("new", GOOD, time="2024-01-01")], "x", "candidate")
    assert dropped(folder) == {"old": "new"}


def test_without_quality_the_flawed_row_would_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(curate, "_flaws", lambda *_: {})
    folder = ingested(tmp_path / "w", [row("old", CUT, time="2020-01-01")], trust="reference")
    add(folder, [row("new", GOOD, time="2024-01-01")], "x", "candidate")
    assert dropped(folder) == {"new": "old"}


def test_the_better_trusted_stays_before_the_older(tmp_path):
    folder = ingested(tmp_path / "w", [row("old", GOOD, time="2020-01-01")], trust="candidate")
    add(folder, [row("new", GOOD + " Bye.", time="2024-01-01")], "x", "reference")
    assert dropped(folder) == {"old": "new"}


def frozen(folder: Path) -> set[str]:
    """Freeze what is there; the keys of its records."""
    with open_workspace(folder, actor="ana") as opened:
        curate.curate(opened)
        composed = assemble.compose(opened, Voices(sources=True))
        made = assemble.freeze(opened, composed)
        assert made.rows > 0
        called = names(opened)
        return {called[record] for record in curate.frozen_records(opened)}


@pytest.mark.parametrize("blind", [False, True])
def test_what_a_snapshot_used_is_not_evicted_by_what_comes_later(tmp_path, monkeypatch, blind):
    """``blind`` is the control: without a look at the snapshots the older row would push the frozen one out."""
    others = [row(f"o{i}", prose(100 + i, 20) + ".", prose(50 + i)) for i in range(5)]
    folder = ingested(tmp_path / "w", [row("first", GOOD, time="2024-01-01"), *others])
    assert "first" in frozen(folder)
    add(folder, [row("older", GOOD + " Bye.", time="2020-01-01")], "x")
    if blind:
        monkeypatch.setattr(curate, "frozen_records", lambda _: set())
    assert dropped(folder) == ({"first": "older"} if blind else {"older": "first"})


def test_one_prompt_with_several_good_answers_is_one_record_with_several_references(tmp_path):
    answers = [prose(200 + i, 30) + "." for i in range(3)]
    folder = ingested(tmp_path / "w", [row("a", answer) for answer in answers])
    assert dropped(folder) == {}
    assert dropped(folder, "conflict") == {}
    with open_workspace(folder, actor="ana") as opened:
        assert opened.ledger.counts()["records"] == 1
        assert opened.ledger.labels(kinds={"reference"}).num_rows == 3


# --- Leaks --------------------------------------------------------------------------------------------


def reserved_and_leaking(folder: Path) -> Path:
    """A test set, and a pool with a leak of it at each level among rows that are none."""
    held = [prose(900 + i, 40) for i in range(3)]
    rows = [row(f"o{i}", prose(100 + i, 20) + ".", prose(50 + i)) for i in range(60)]
    rows += [
        row("exact", prose(300, 20) + ".", held[0].upper() + "!"),
        row("near", prose(301, 20) + ".", held[1] + " please"),
        row("ngram", prose(302, 20) + ".", " ".join([prose(70), *held[2].split()[5:25], prose(71)])),
    ]
    ingested(folder, rows)
    tested = [row(f"held{i}", prose(400 + i, 20) + ".", text) for i, text in enumerate(held)]
    path = write_rows(folder / "test.jsonl", tested)
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(
            opened, path, source="t", mapping=Mapping(id="id"), trust="reference", eval_set="test"
        )
    return folder


def test_leaks_at_every_level_stay_out_of_the_snapshot(tmp_path):
    used = frozen(reserved_and_leaking(tmp_path / "w"))
    assert {"o1", "held0"} <= used
    assert not used & {"exact", "near", "ngram"}


def test_without_the_stage_they_would_be_trained_on(tmp_path, monkeypatch):
    monkeypatch.setattr(curate.leakage, "find_leaks", lambda *_: curate.records.DECISIONS.empty_table())
    used = frozen(reserved_and_leaking(tmp_path / "w"))
    assert "ngram" in used
    assert "near" not in used, "it shares a cluster with a reserved row, which composing looks at by itself"


def test_a_leak_that_two_aliases_hide_is_found_on_the_raw_view(tmp_path, monkeypatch):
    """Scrubbing is made to give every record other words, as aliases would."""
    real = curate.pii.scrub_view

    def scan(rows, scrubber, marks):
        told, aliases = real(rows, scrubber, marks)
        found = told.to_pylist()
        for record, prompt in zip(rows["record"].to_pylist(), rows["prompt"].to_pylist(), strict=True):
            other = " ".join(f"{word}{record[:4]}" for word in prompt.split())
            found = [d for d in found if (d["record"], d["label"]) != (record, None)]
            output = json.dumps(curate.records.user_message(other))
            found.append(curate.records.decision(record, "rewrite", "alias", output=output))
        return curate.records.table(found, curate.records.DECISIONS), aliases

    monkeypatch.setattr(curate.pii, "scrub_view", scan)
    folder = reserved_and_leaking(tmp_path / "w")
    assert {"exact", "near", "ngram"} <= set(leaking(folder))


def leaking(folder: Path) -> set[str]:
    with open_workspace(folder, actor="ana") as opened:
        curate.curate(opened)
        found = opened.ledger.decisions(stage="leak", rule=Rules(opened).leak).to_pylist()
        called = names(opened)
    return {called[r["record"]] for r in found if r["action"] == "drop"}


def test_the_audit_shows_limits_formats_and_words_and_decides_nothing(tmp_path):
    folder = ingested(
        tmp_path / "w", [row(f"o{i}", prose(100 + i, 20) + ".", prose(50 + i)) for i in range(60)]
    )
    with open_workspace(folder, actor="ana") as opened:
        curate.curate(opened)
        before = opened.ledger.decisions().num_rows
        found = findings.audit(opened, "source")
        assert set(found) == {"limits", "formats", "harsh_words"}
        assert found["harsh_words"][0]["rows"] == 60
        assert opened.ledger.decisions().num_rows == before
        with pytest.raises(UsageError, match="no column"):
            findings.audit(opened, "nothing")


def test_records_in_other_words_and_within_others_are_shown_and_nothing_is_decided(tmp_path):
    mail, thread = prose(1, 40), f"{prose(2, 90)} {prose(1, 40)} {prose(3, 90)}"
    prompts = {"mail": mail, "thread": thread, "same": prose(4), "again": prose(5)}
    folder = ingested(tmp_path / "w", [row(name, GOOD, text) for name, text in prompts.items()])

    def encode(texts):  # two prompts mean the same, whatever they share
        ways = {prompts["same"]: (1.0, 0.1, 0), prompts["again"]: (1.0, 0, 0), mail: (0, 1.0, 0)}
        return np.array([ways.get(text, (0, 0, 1.0)) for text in texts], np.float32)

    with open_workspace(folder, actor="ana") as opened:
        curate.curate(opened)
        before, called = opened.ledger.decisions().num_rows, names(opened)
        (like,) = findings.resembling(opened, encode, 0.95)["resembling"]
        (held,) = findings.within(opened)["contained"]
        assert {called[like["record"]], called[like["resembles"]]} == {"same", "again"}
        assert (called[held["record"]], called[held["within"]]) == ("mail", "thread")
        assert findings.resembling(opened, encode, 0.999)["resembling"] == []
        assert opened.ledger.decisions().num_rows == before
