"""The trainer as the loop wants it: what may not be trained on is refused, and finished work is found again."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import torch

from apps.learner import LocalLearner, grouped
from apps.lease import LedgerSink, held
from apps.models import find_adapter, generate
from curation import assemble, snapshot, workspace
from curation.curate import curate
from curation.errors import ConflictError, GateRefused, IntegrityError, UsageError
from curation.formats import Mapping
from curation.ledger import Adapter
from curation.records import EXAMPLES, VIEW, table, user_message
from curation.workspace import Workspace, init, open_workspace
from tests.curation.toys import inquiries, write_rows

torch.set_num_threads(
    1
)  # matrices this small lose by sharing the work; and a forked process has no second thread


def desk(folder: Path, **settings: str) -> Path:
    """A workspace with labelled, curated rows and a base that takes seconds to make."""
    init(folder, actor="ana", name="desk")
    text = (folder / "tilth.toml").read_text().replace("rank = 16", "rank = 4\nadapt_steps = 4\nepochs = 1.0")
    for old, new in settings.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "tilth.toml").write_text(text)
    rows = write_rows(
        folder / "rows.jsonl", [{**row, "completion": row.pop("gold")} for row in inquiries(60)]
    )
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, rows, mapping=Mapping(id="id"), trust="reference")
        curate(opened)
    return folder


def frozen(opened: Workspace) -> str:
    return assemble.freeze(opened, assemble.compose(opened)).name


def base(learner: LocalLearner) -> str:
    texts = (row["prompt"] for row in inquiries(60))
    return learner.base(texts, workspace.silent)


def test_an_adapter_is_trained_once_and_found_again(tmp_path: Path) -> None:
    with open_workspace(desk(tmp_path / "w"), actor="ana") as opened:
        learner = LocalLearner(opened)
        name, made = frozen(opened), base(learner)
        first = learner.train(name, base=made, progress=workspace.silent)
        stamp = (opened.store.root / first.folder / "manifest.json").stat().st_mtime_ns
        again = learner.train(name, base=made, progress=workspace.silent)
        assert again == first
        assert (opened.store.root / first.folder / "manifest.json").stat().st_mtime_ns == stamp


def test_a_snapshot_that_waits_for_a_curator_is_refused_until_it_is_approved(tmp_path: Path) -> None:
    folder = desk(tmp_path / "w", **{'approval = "gates"': 'approval = "curator"'})
    with open_workspace(folder, actor="ana") as opened:
        learner = LocalLearner(opened)
        name, made = frozen(opened), base(learner)
        with pytest.raises(GateRefused, match="curator"):
            learner.train(name, base=made, progress=workspace.silent)
        opened.ledger.approve(name, "approved", by="ana", reason="looked at it")
        assert learner.train(name, base=made, progress=workspace.silent).adapter
        opened.ledger.approve(name, "refused", by="ana", reason="on second thoughts")
        (opened.store.root / "adapters").rename(opened.store.root / "elsewhere")
        with pytest.raises(GateRefused, match="refused"):
            learner.train(name, base=made, progress=workspace.silent)


def test_a_snapshot_with_one_changed_byte_is_refused(tmp_path: Path) -> None:
    with open_workspace(desk(tmp_path / "w"), actor="ana") as opened:
        learner = LocalLearner(opened)
        name, made = frozen(opened), base(learner)
        data = next((opened.store.path("snapshots", name) / "data").glob("train-*"))
        body = bytearray(data.read_bytes())
        body[len(body) // 2] ^= 1
        data.chmod(0o644)
        data.write_bytes(bytes(body))
        with pytest.raises(IntegrityError):
            learner.train(name, base=made, progress=workspace.silent)
        assert not (opened.store.root / "adapters").exists()


def test_rows_that_no_scan_has_seen_are_not_frozen(tmp_path: Path) -> None:
    folder = desk(tmp_path / "w")
    more = write_rows(
        tmp_path / "more.jsonl",
        [{"id": "N1", "prompt": "call me at +1 212 555 0188", "completion": "billing"}],
    )
    with open_workspace(folder, actor="ana") as opened:
        workspace.ingest(opened, more, mapping=Mapping(id="id"), trust="reference")
        with pytest.raises(GateRefused, match="has not seen"):
            assemble.compose(opened)
        curate(opened)
        assert frozen(opened)


def test_a_snapshot_trains_on_another_host_and_its_adapter_comes_back_verified(tmp_path: Path) -> None:
    from training import registry

    with open_workspace(desk(tmp_path / "here"), actor="ana") as opened:
        name, made = frozen(opened), base(LocalLearner(opened))
        snapshot.export_directory(opened.store, name, tmp_path / "carried")
        bases = opened.store.root / "bases"
        init(tmp_path / "there", actor="ben", name="there")
        with open_workspace(tmp_path / "there", actor="ben") as other:
            assert snapshot.import_directory(tmp_path / "carried", other.store).name == name
            other.store.root.mkdir(exist_ok=True)
            (other.store.root / "bases").symlink_to(bases)
            trained = LocalLearner(other).train(name, base=made, progress=workspace.silent)
            folder = other.store.root / trained.folder
            assert registry.verify(folder)["snapshot"] == name
        answer = generate(folder, "where is my invoice", None, None, 4)
        assert isinstance(answer["text"], str)


def test_an_adapter_is_named_by_folder_or_refused_in_words(tmp_path: Path) -> None:
    from apps.cli.session import Session

    assert find_adapter(Session(), str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="no workspace"):
        find_adapter(Session(root=tmp_path), "abcdef")


def test_test_rows_of_one_record_are_one_prompt_with_several_references() -> None:
    rows = [
        {"record": record, "messages": user_message(record), "completion": answer}
        for record, answer in (("b", "one"), ("a", "two"), ("b", "three"))
    ]
    prompts, references = grouped(table(rows, EXAMPLES))
    assert [p[0]["content"] for p in prompts] == ["a", "b"]
    assert references == [["two"], ["one", "three"]]


# ------------------------------------------------------------------------------------- one run at a time


def _asked(learner: LocalLearner, adapter: str | None, made: str, classes: tuple[str, ...]) -> Any:
    rows = [
        {"record": row["id"], "messages": user_message(row["prompt"]), "prompt": row["prompt"]}
        for row in inquiries(6)
    ]
    return learner.score(adapter, made, table(rows, VIEW), classes)["disagreement"].to_pylist()


@pytest.mark.parametrize(
    ("committee", "adapters"), [("dropout", 1), ('ensemble"\nmembers = 2\n#', 2)], ids=["dropout", "ensemble"]
)
def test_bald_is_told_how_far_the_committee_disagrees(tmp_path: Path, committee: str, adapters: int) -> None:
    folder = desk(
        tmp_path / "w", **{'strategy = "hybrid" ': f'strategy = "bald"\ncommittee = "{committee}"\n#'}
    )
    with open_workspace(folder, actor="ana") as opened:
        learner = LocalLearner(opened, "bald")
        name, made = frozen(opened), base(learner)
        trained = learner.train(name, base=made, progress=workspace.silent)
        opened.ledger.add_adapter(
            Adapter(trained.adapter, name, made, trained.recipe, trained.metrics, trained.folder, "main")
        )
        found = _asked(learner, trained.adapter, made, ("billing", "claims"))
        assert all(0 <= value <= math.log(2) for value in found)
        assert max(found) > 0
        assert found == _asked(learner, trained.adapter, made, ("billing", "claims"))
        assert (
            len([f for f in (opened.store.root / "adapters").iterdir() if (f / "manifest.json").is_file()])
            == adapters
        )
        assert all(math.isnan(value) for value in _asked(learner, None, made, ("billing", "claims")))
        assert _asked(learner, trained.adapter, made, ()) == [None] * 6
        assert _asked(LocalLearner(opened), trained.adapter, made, ("billing", "claims")) == [None] * 6


def _triggered(folder: Path, name: str, made: str, queue: Any) -> None:
    with open_workspace(folder, actor="ana") as opened:
        learner = LocalLearner(opened)
        try:
            queue.put(learner.train(name, base=made, progress=workspace.silent).adapter)
        except Exception as error:
            queue.put(repr(error))


def test_eight_triggers_at_once_give_one_run(tmp_path: Path) -> None:
    folder = desk(tmp_path / "w")
    with open_workspace(folder, actor="ana") as opened:
        name, made = frozen(opened), base(LocalLearner(opened))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=_triggered, args=(folder, name, made, queue)) for _ in range(8)]
    for process in started:
        process.start()
    found = {queue.get(timeout=300) for _ in started}
    for process in started:
        process.join()
    assert len(found) == 1
    with open_workspace(folder, actor="ana") as opened:
        kinds = [event.kind for event in opened.ledger.events()]
    assert kinds.count("train-started") == kinds.count("train-finished") == 1


def _practised(folder: Path, made: Any, queue: Any) -> None:
    """Make the base, slowly enough that the other process asks for it meanwhile."""
    from training import pretrain

    real = pretrain.practise_base

    def slow(texts: list[str], out: Path, **options: Any) -> Any:
        made.put(os.getpid())
        time.sleep(1.5)
        return real(texts, out, **options)

    pretrain.practise_base = slow
    with open_workspace(folder, actor="ana") as opened:
        try:
            queue.put(base(LocalLearner(opened)))
        except Exception as error:
            queue.put(repr(error))


def _practised_by_two(folder: Path) -> tuple[int, set[str]]:
    """How many of two processes at once made the base, and what they say that it is called."""
    context = multiprocessing.get_context("fork")
    made, queue = context.Queue(), context.Queue()
    started = [context.Process(target=_practised, args=(folder, made, queue)) for _ in range(2)]
    for process in started:
        process.start()
    found = {queue.get(timeout=300) for _ in started}
    makers = [made.get(timeout=60)]
    with suppress(Empty):
        makers.append(made.get(timeout=1))
    for process in started:
        process.join()
    return len(makers), found


def test_of_two_runs_at_once_one_practises_the_base_and_the_other_waits_for_it(tmp_path: Path) -> None:
    folder = desk(tmp_path / "w")
    makers, found = _practised_by_two(folder)
    assert makers == 1
    assert [path.name for path in (folder / "artifacts" / "bases").iterdir()] == list(found)


def test_without_the_lease_both_would_practise_and_one_would_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.learner.held", lambda *args, **options: nullcontext())
    makers, found = _practised_by_two(desk(tmp_path / "w"))
    assert makers == 2
    assert any("Conflict" in name or "Error" in name for name in found)


def _slowly(folder: Path, out: Path, queue: Any) -> None:
    """Hold the lease, then publish: what a training does, with a pause to be stopped in."""
    with open_workspace(folder, actor="ana") as opened:
        try:
            with held(opened.ledger, "train:x", seconds=4.0) as sink:
                queue.put("holds")
                time.sleep(0.5)
                sink.holds()
                out.write_text(str(os.getpid()))
            queue.put("published")
        except ConflictError:
            queue.put("refused")


def test_a_holder_that_sleeps_through_its_lease_publishes_nothing(tmp_path: Path) -> None:
    folder, out = desk(tmp_path / "w"), tmp_path / "published"
    context = multiprocessing.get_context("fork")
    dreams, deeds = context.Queue(), context.Queue()  # one each: the sleeper might hold a shared one's lock
    zombie = context.Process(target=_slowly, args=(folder, out, dreams))
    zombie.start()
    assert dreams.get(timeout=60) == "holds"
    os.kill(zombie.pid or 0, signal.SIGSTOP)
    heir = context.Process(target=_slowly, args=(folder, out, deeds))
    heir.start()
    assert [deeds.get(timeout=60), deeds.get(timeout=60)] == ["holds", "published"]
    os.kill(zombie.pid or 0, signal.SIGCONT)
    assert dreams.get(timeout=60) == "refused"
    assert out.read_text() == str(heir.pid)
    zombie.join()
    heir.join()


def test_without_asking_whether_it_still_holds_the_sleeper_would_publish(tmp_path: Path) -> None:
    with (
        open_workspace(desk(tmp_path / "w"), actor="ana") as opened,
        opened.ledger.lease("train:x", seconds=0.2) as lease,
    ):
        time.sleep(0.4)
        with opened.ledger.lease("train:x", seconds=5), pytest.raises(ConflictError):
            LedgerSink(opened.ledger, lease).holds()


def test_a_holder_at_work_is_waited_for_no_longer_than_a_silent_one(tmp_path: Path) -> None:
    with (
        open_workspace(desk(tmp_path / "w"), actor="ana") as opened,
        held(opened.ledger, "train:x", seconds=1.0),
        pytest.raises(ConflictError, match="holds 'train:x'"),
        held(opened.ledger, "train:x", seconds=1.0),
    ):
        pytest.fail("two hold the same right")
