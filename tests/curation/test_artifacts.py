"""The artifact store: whole or absent, under its own name, inside its own root."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from curation import artifacts
from curation.artifacts import MANIFEST, Store, verify_folder, write_atomic
from curation.errors import ConflictError, IntegrityError, StorageFailed, UsageError
from tests.curation.faults import Fault, Forks


def stored(root: Path, name: str = "one", text: bytes = b"hello", **manifest: Any) -> Store:
    """A store below ``root`` that holds one artifact."""
    store = Store(root)
    store.put("things", name, "data/text.txt", text)
    store.commit("things", name, manifest)
    return store


def test_an_artifact_exists_only_once_it_is_committed(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.list("things") == []
    store.put("things", "one", "data/text.txt", b"hello")
    assert store.list("things") == Store(store.root).list("things") == []
    assert not store.has("things", "one")
    path = store.commit("things", "one", {"meaning": 42})
    assert store.list("things") == ["one"]
    assert (path / "data/text.txt").read_bytes() == b"hello"
    assert store.manifest("things", "one")["meaning"] == 42
    assert list((store.root / ".staging").iterdir()) == []


def test_bytes_files_and_functions_give_the_same_artifact(tmp_path: Path) -> None:
    text = os.urandom(3_000_000)
    (tmp_path / "source").write_bytes(text)
    store = Store(tmp_path / "store")
    made = {
        store.put("things", "one", "a", text),
        store.put("things", "one", "b", tmp_path / "source"),
        store.put(
            "things",
            "one",
            "c",
            lambda sink: [sink.write(text[i : i + 999]) for i in range(0, 3_000_000, 999)],
        ),
    }
    assert len(made) == 1
    store.commit("things", "one", {})
    assert store.verify("things", "one", deep=True)["files"]["c"]["size"] == 3_000_000


def test_committing_the_same_content_again_succeeds_and_other_content_conflicts(tmp_path: Path) -> None:
    store = stored(tmp_path, metric=1, recorded={"time": "early"})
    stored(tmp_path, metric=1, recorded={"time": "late"})
    assert store.manifest("things", "one")["recorded"] == {"time": "early"}
    with pytest.raises(ConflictError, match="other content"):
        stored(tmp_path, text=b"other", metric=1)
    with pytest.raises(ConflictError):
        stored(tmp_path, metric=2)
    assert (store.path("things", "one") / "data/text.txt").read_bytes() == b"hello"


def test_a_rotten_artifact_is_not_taken_for_the_same_content(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (store.path("things", "one") / "data/text.txt").write_bytes(b"jello")
    with pytest.raises(IntegrityError):
        stored(tmp_path)


def _commit(root: str, name: str, text: bytes, barrier: Any, results: Any) -> None:
    store = Store(root)
    store.put("things", name, "text", text)
    barrier.wait()
    try:
        store.commit("things", name, {})
        results.put("ok")
    except ConflictError:
        results.put("conflict")


@pytest.mark.parametrize(
    ("texts", "expected"), [([b"same"] * 4, ["ok"] * 4), ([b"a", b"b"], ["conflict", "ok"])]
)
def test_commits_of_one_name_at_once_agree_or_one_wins(
    tmp_path: Path, texts: list[bytes], expected: list[str]
) -> None:
    spawn = multiprocessing.get_context("spawn")
    results = spawn.Queue()
    for turn in range(3):
        barrier = spawn.Barrier(len(texts))
        workers = [
            spawn.Process(target=_commit, args=(str(tmp_path), f"n{turn}", text, barrier, results))
            for text in texts
        ]
        for worker in workers:
            worker.start()
        assert sorted(results.get(timeout=120) for _ in workers) == expected
        for worker in workers:
            worker.join()
        Store(tmp_path).verify("things", f"n{turn}", deep=True)
    assert list((tmp_path / ".staging").iterdir()) == []


def test_removing_hides_the_whole_artifact_and_its_name_is_free_again(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.remove("things", "one")
    assert store.list("things") == []
    assert list((tmp_path / "things").iterdir()) == []
    stored(tmp_path, text=b"other")
    with pytest.raises(UsageError, match="no 'two'"):
        store.remove("things", "two")


def test_a_folder_without_a_manifest_is_invisible_and_is_not_overwritten(tmp_path: Path) -> None:
    store = stored(tmp_path)
    (store.path("things", "one") / MANIFEST).unlink()
    assert store.list("things") == []
    with pytest.raises(UsageError, match="no 'one'"):
        store.path("things", "one")
    with pytest.raises(ConflictError, match="without a manifest"):
        stored(tmp_path)
    store.remove("things", "one")
    stored(tmp_path)


def test_what_was_put_and_discarded_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("things", "one", "a", b"x")
    store.put("things", "two", "a", b"x")
    store.discard("things", "one")
    with pytest.raises(UsageError, match="nothing was put"):
        store.commit("things", "one", {})
    store.commit("things", "two", {})
    assert list((tmp_path / ".staging").iterdir()) == []


def test_a_manifest_may_not_set_the_stores_own_keys_nor_hold_what_json_cannot(tmp_path: Path) -> None:
    for wrong in ({"files": {}}, {"digest": "x"}, {"odd": object()}):
        with pytest.raises(UsageError, match="manifest"):
            stored(tmp_path, **wrong)
    assert Store(tmp_path).list("things") == []


BAD_NAMES = [
    *(
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc",
        "a\\b",
        "\\\\host\\share",
        "C:",
        "c:x",
        "a b",
        "a\0b",
        "a\n",
        "-a",
        "_a",
    ),
    *(
        "A",
        "é",
        "a\u2024b",
        "\uff0e\uff0e",
        "a.",
        "a..",
        "con",
        "nul.txt",
        "com1",
        "lpt9.log",
        "%2e%2e",
        "a%2fb",
        "a#b",
    ),
    *(
        "//proc/self/root",
        "~root",
        "a" * 65,
        "a:b",
        "a*",
        "a?",
        'a"b',
        "a|b",
        "a<b",
        "$(x)",
        "a;b",
        ".hidden",
        "a\t",
    ),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_leaves_the_root(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "inside")
    calls = (
        lambda: store.put("things", name, "a", b"x"),
        lambda: store.put(name, "one", "a", b"x"),
        lambda: store.put("things", "one", name or "../x", b"x") if name not in _PLAIN_FILES else _refuse(),
        lambda: store.put("things", "one", f"{name}/../../x", b"x"),
        lambda: store.commit("things", name, {}),
        lambda: store.list(name),
        lambda: store.has("things", name),
        lambda: store.path("things", name),
        lambda: store.manifest("things", name),
        lambda: store.verify("things", name),
        lambda: store.remove("things", name),
        lambda: store.discard("things", name) or store.path(name, "one"),
    )
    for call in calls:
        with pytest.raises(UsageError):
            call()
    assert sorted(tmp_path.rglob("*")) == []


_PLAIN_FILES = {"A", "a/b", "a" * 65, "a.b"}  # no names of artifacts, but fine as files inside one


def _refuse() -> None:
    raise UsageError("a plain file name")


def test_the_manifests_own_name_cannot_be_put(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Store(tmp_path).put("things", "one", MANIFEST, b"{}")


def test_a_symbolic_link_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    outside = stored(tmp_path / "outside").path("things", "one")
    store = stored(tmp_path / "store")
    (store.root / "things/link").symlink_to(outside)
    assert store.list("things") == ["one"]
    for call in (store.verify, store.path, store.manifest, store.remove):
        with pytest.raises(IntegrityError, match="symbolic link"):
            call("things", "link")
    (store.root / "shelf").symlink_to(tmp_path / "outside/things")
    with pytest.raises(IntegrityError, match="symbolic link"):
        store.verify("shelf", "one")
    text = store.path("things", "one") / "data/text.txt"
    text.unlink()
    text.symlink_to(outside / "data/text.txt")
    with pytest.raises(IntegrityError, match="neither a file nor a folder"):
        store.verify("things", "one")
    assert outside.is_dir()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "data/text.txt").write_bytes(b"jello"), "bytes have changed"),
        (lambda f: (f / "data/text.txt").write_bytes(b"hell"), "4 bytes; 5 were written"),
        (lambda f: (f / "data/text.txt").unlink(), "is missing"),
        (lambda f: (f / "data/more.txt").write_bytes(b""), "not in the manifest"),
        (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes()[:-1]), "not what was written"),
        (lambda f: (f / MANIFEST).write_bytes((f / MANIFEST).read_bytes() + b"\n"), "not what was written"),
        (lambda f: (f / MANIFEST).write_bytes(b"[]\n"), "not what was written"),
        (lambda f: f.rename(f.with_name("two")) and f.with_name("two").rename(f), ""),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, damage: Any, words: str) -> None:
    store = stored(tmp_path)
    folder = store.path("things", "one")
    damage(folder)
    if not words:  # the control: a folder that was moved away and back is whole
        store.verify("things", "one", deep=True)
        return
    with pytest.raises(IntegrityError, match=words) as caught:
        store.verify("things", "one", deep=True)
    assert str(folder) in caught.value.where


def test_an_artifact_under_another_name_is_not_the_one_asked_for(tmp_path: Path) -> None:
    store = stored(tmp_path)
    store.path("things", "one").rename(tmp_path / "things/two")
    with pytest.raises(IntegrityError, match="things/one"):
        store.verify("things", "two")


def test_a_newer_manifest_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "SCHEMA", "tilth.artifact.9")
    store = stored(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UsageError, match=r"tilth\.artifact\.9.*tilth\.artifact\.1"):
        store.verify("things", "one")


def test_a_check_without_hashes_would_miss_a_changed_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stored(tmp_path)
    text = store.path("things", "one") / "data/text.txt"
    stated = artifacts.file_sha256(text)
    text.write_bytes(b"jello")
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: stated)
    store.verify("things", "one", deep=True)


def leave_staged(root: str, then: str) -> list[str]:
    """Put without committing, then report what lies in staging (the call may be killed before)."""
    store = Store(root)
    store.put("things", then, "a", b"x" * 10)
    return sorted(path.name for path in (Path(root) / ".staging").iterdir())


def test_a_dead_writers_leftovers_are_swept_and_a_living_writers_are_not(tmp_path: Path) -> None:
    living = Store(tmp_path)
    living.put("things", "living", "a", b"x")
    with Forks() as forks:
        dead = forks.run("tests.curation.test_artifacts:leave_staged", root=str(tmp_path), then="dead")
    assert len(dead.value) == 4, "the writer and its lock, beside the living one's"
    assert Store(tmp_path).sweep() == 1
    assert len(list((tmp_path / ".staging").iterdir())) == 2
    living.commit("things", "living", {})
    assert Store(tmp_path).sweep() == 0
    assert Store(tmp_path).list("things") == ["living"]


def test_a_sweeper_that_ignores_locks_would_take_a_living_writers_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = Store(tmp_path)
    living.put("things", "living", "a", b"x")
    monkeypatch.setattr(artifacts.fcntl, "flock", lambda *_: None)
    assert Store(tmp_path).sweep() == 1
    with pytest.raises(FileNotFoundError):
        (living._area.path / "things/living/a").read_bytes()  # type: ignore[union-attr]


def write_short(root: str) -> bool:
    """Commit one artifact of three files and verify it."""
    store = Store(root)
    for name in ("a", "b", "c"):
        store.put("things", "one", name, b"x" * 1000)
    store.commit("things", "one", {})
    return bool(store.verify("things", "one", deep=True))


def test_a_short_write_is_carried_on(tmp_path: Path) -> None:
    with Forks() as forks:
        total = forks.run("tests.curation.test_artifacts:write_short", root=str(tmp_path / "none"))
        writes = [i for i, op in enumerate(total.ops, 1) if op["op"] == "write"]
        assert len(writes) == 4
        for at in writes:
            done = forks.run(
                "tests.curation.test_artifacts:write_short", Fault("short", at), root=str(tmp_path / f"{at}")
            )
            assert done.hit
            assert done.value is True


def test_an_export_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"old")

    def fails(sink: artifacts.Sink) -> None:
        sink.write(b"n" * 2_000_000)
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageFailed, match="the disk is full"):
        write_atomic(out, fails)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]
    write_atomic(out, b"new")
    assert out.read_bytes() == b"new"


def test_a_full_disk_is_named_with_path_and_bytes(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def full(sink: artifacts.Sink) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        StorageFailed, match=r"things/one: the disk is full \(12,345 bytes needed\)"
    ) as caught:
        store.put("things", "one", "a", full, expected=12_345)
    assert caught.value.exit_code == 8


def test_a_folder_is_verified_wherever_it_was_copied_to(tmp_path: Path) -> None:
    stored(tmp_path / "store").path("things", "one").rename(tmp_path / "elsewhere")
    assert verify_folder(tmp_path / "elsewhere")["name"] == "one"
    with pytest.raises(IntegrityError, match="no manifest"):
        verify_folder(tmp_path)
