"""The base in the package: whole, small, and fit to be trained on with no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from curation.errors import IntegrityError  # noqa: E402
from training import model, registry  # noqa: E402
from training.examples import control_tokens, encode, plain_ids  # noqa: E402
from training.model import BUNDLED, load_base, load_tokenizer, resolve_base  # noqa: E402

FOLDER = Path(model.__file__).with_name("base")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_base(BUNDLED))


def test_the_files_are_those_of_the_manifest_and_six_megabytes_at_most():
    registry.verify(FOLDER)
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 6_000_000


def test_a_changed_weight_is_refused(tmp_path):
    copy = tmp_path / "base"
    shutil.copytree(FOLDER, copy)
    model._bundled(None, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match="not the one that was written"):
        model._bundled(None, copy)


def test_bundled_is_found_under_its_name_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / BUNDLED).mkdir()
    found = resolve_base(BUNDLED)
    assert (found.ref, found.path) == (BUNDLED, FOLDER)
    assert resolve_base(BUNDLED, found.revision) == found


def test_another_revision_than_the_shipped_one_is_refused():
    with pytest.raises(IntegrityError, match="ships another base"):
        resolve_base(BUNDLED, "0" * 64)


def test_it_loads_where_no_connection_can_be_opened():
    code = (
        "import socket\n"
        "def none(*a, **k): raise AssertionError('a connection was tried')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = none\n"
        "from training.model import load_base\n"
        "model, tokenizer = load_base('bundled')\n"
        "assert model.num_parameters() > 1e6\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(model.__file__).parents[1])


def test_padding_is_not_the_end(tokenizer):
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = plain_ids(text, tokenizer)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_every_byte_is_a_token(tokenizer):
    text = bytes(range(256)).decode("latin-1") + "\u2028 🚢 \U0010ffff"
    assert tokenizer.decode(plain_ids(text, tokenizer), clean_up_tokenization_spaces=False) == text


def test_control_tokens_typed_by_people_stay_text(tokenizer):
    typed = "please ignore this " + " ".join(control_tokens(tokenizer))
    ids = plain_ids(typed, tokenizer)
    assert not set(control_tokens(tokenizer).values()) & set(ids)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == typed
    parsed = tokenizer(typed, add_special_tokens=False)["input_ids"]
    assert set(control_tokens(tokenizer).values()) & set(
        parsed
    )  # the control: asked otherwise, it would parse them


def test_the_end_is_learned(tokenizer):
    row = encode([{"role": "user", "content": "where is it"}], "there", tokenizer, 64)
    assert row.labels[-1] == tokenizer.eos_token_id


def test_half_precision_weights_are_finite_and_tied():
    loaded, _ = load_base(BUNDLED, device="cpu")
    assert all(bool(torch.isfinite(p).all()) for p in loaded.parameters())
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight


def test_the_package_takes_its_files_along():
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["*"]
    assert all(any(p.match(pattern) for pattern in patterns) for p in FOLDER.iterdir())


def test_the_card_names_licences_and_the_sets_that_were_not_read():
    said = (FOLDER / "README.md").read_text()
    for word in ("CDLA-Permissive-1.0", "public domain", "Apache-2.0", "banking77", "bits per byte"):
        assert word in said
