"""A directory of weights exists once its manifest does, and is loaded only as it was written."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest

from curation.errors import ConflictError, IntegrityError, StorageFailed, UsageError
from training import registry


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    with registry.partial(tmp_path / "made") as folder:
        (folder / "weights.safetensors").write_bytes(b"12345")
        (folder / "deep").mkdir()
        (folder / "deep" / "config.json").write_text("{}")
        registry.seal(folder, {"kind": "adapter", "metrics": {"loss": 1.5}}, {"started": 1.0})
    return tmp_path / "made"


def edit(path: Path, **changes: object) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


def test_what_was_sealed_verifies(sealed):
    manifest = registry.verify(sealed)
    assert manifest["files"]["weights.safetensors"]["bytes"] == 5
    assert sorted(manifest["files"]) == ["deep/config.json", "weights.safetensors"]
    assert not list(sealed.parent.glob(".partial-*"))


def test_times_are_recorded_but_are_no_part_of_the_name(sealed):
    before = registry.read(sealed)
    assert registry.manifest_digest({**before, "run": {"started": 2.0}}) == before["digest"]
    assert registry.manifest_digest({**before, "metrics": {"loss": 1.4}}) != before["digest"]


def test_one_changed_byte_is_found_by_the_files_name(sealed):
    (sealed / "weights.safetensors").write_bytes(b"12346")
    with pytest.raises(
        IntegrityError, match=r"weights\.safetensors: the file is not the one that was written"
    ):
        registry.verify(sealed)


def test_a_missing_and_an_added_file_are_found(sealed):
    (sealed / "extra.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"extra\.json: the file is not in the manifest"):
        registry.verify(sealed)
    (sealed / "extra.json").unlink()
    (sealed / "weights.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"weights\.safetensors: the file is missing"):
        registry.verify(sealed)


def test_a_manifest_that_was_edited_is_refused(sealed):
    edit(sealed / registry.MANIFEST, metrics={"loss": 0.1})
    with pytest.raises(IntegrityError, match="the manifest was changed after training"):
        registry.verify(sealed)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"format": "tilth-weights/1"}'])
def test_a_manifest_that_is_none_is_refused(sealed, body):
    (sealed / registry.MANIFEST).write_bytes(body)
    with pytest.raises(IntegrityError, match="cannot be read"):
        registry.read(sealed)


def test_a_manifest_of_another_format_is_refused_by_name(sealed):
    manifest = orjson.loads((sealed / registry.MANIFEST).read_bytes()) | {"format": "tilth-weights/9"}
    manifest["digest"] = registry.manifest_digest(manifest)
    (sealed / registry.MANIFEST).write_bytes(orjson.dumps(manifest))
    with pytest.raises(IntegrityError, match="tilth-weights/9"):
        registry.read(sealed)


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "optimizer.pt", "rng_state.pth", "x.pkl", "training_args.BIN"]
)
def test_a_pickle_is_refused_by_name(sealed, name):
    (sealed / name).write_bytes(b"x")
    with pytest.raises(IntegrityError, match=f"{name}: this file may hold a pickle"):
        registry.verify(sealed)


def test_a_folder_without_a_manifest_is_not_an_adapter(tmp_path):
    with pytest.raises(UsageError, match="not a finished adapter"):
        registry.read(tmp_path)


def test_a_block_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), registry.partial(tmp_path / "made") as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_something_that_is_there_is_not_overwritten(sealed):
    with pytest.raises(ConflictError, match="something already"), registry.partial(sealed):
        pass
    registry.verify(sealed)


def test_what_a_killed_run_left_is_swept_and_a_living_ones_is_not(tmp_path):
    dead = tmp_path / ".partial-made-999999999"
    alive = tmp_path / f".partial-made-{os.getppid()}"
    dead.mkdir()
    alive.mkdir()
    with registry.partial(tmp_path / "made") as folder:
        (folder / "x").write_text("x")
    assert not dead.exists()
    assert alive.exists()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "write", full)
    with (
        pytest.raises(StorageFailed, match="the disk is full"),
        registry.partial(tmp_path / "made") as folder,
    ):
        registry.seal(folder, {"kind": "adapter"}, {})
    assert list(tmp_path.iterdir()) == []
