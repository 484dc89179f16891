"""Bases and adapters: found, checked, refused."""

from __future__ import annotations

import math
import random
import shutil
import socket
import struct
import sys
from pathlib import Path

import orjson
import pytest
import torch

from curation.errors import IntegrityError, MissingExtra, UsageError
from tests.training.conftest import rows, tiny_base
from training import memory, registry
from training.adapters import attach, load_adapter, open_model
from training.lessons import train_tokenizer
from training.model import load_base, load_tokenizer, resolve_base
from training.train import Recipe, train

QUICK = Recipe(rank=4, alpha=8, max_steps=2, max_length=64, lr=1e-3)


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("adapters") / "one"
    train(rows(16), QUICK, base, out, provenance={"snapshot": "s1"})
    return out


@pytest.fixture
def copied(adapter: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(adapter, tmp_path / "copy"))


@pytest.fixture
def moved_base(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "base"))


def reseal(folder: Path) -> None:
    """What somebody would do who tampers with a file and then forges the manifest along with it."""
    manifest = registry.read(folder)
    content = {k: v for k, v in manifest.items() if k not in ("digest", "run", "files", "format")}
    (folder / registry.MANIFEST).unlink()
    registry.seal(folder, content, manifest["run"])


def edit(path: Path, **changes: object) -> None:
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **changes}))


# ---------------------------------------------------------------------------------------------- bases


def test_the_same_texts_and_steps_make_the_same_base(tmp_path):
    texts = [row["prompt"] for row in rows(60)]
    one, two = (registry.read(tiny_base(texts, tmp_path / name, steps=4)) for name in "ab")
    assert one["metrics"]["steps"] == 4
    assert one["files"]["model.safetensors"] == two["files"]["model.safetensors"]
    assert one["files"]["tokenizer.json"] == two["files"]["tokenizer.json"]


def test_a_base_has_three_different_control_tokens_and_encodes_anything(tokenizer):
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    text = "Zürich 東京 \x00 🙂"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_base_is_loaded_in_full_precision_on_a_cpu(base):
    model, tokenizer = load_base(base, device="cpu")
    assert next(model.parameters()).dtype == torch.float32
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_base_is_quantised_where_that_is_asked(base, bits):
    model, _ = load_base(base, device="cpu", bits=bits)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {4: "Linear4bit", 8: "Linear8bitLt"}[bits] in kinds


def test_a_base_that_is_not_here_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(UsageError, match="hf download some-owner/some-model --revision abc"):
        resolve_base("some-owner/some-model", "abc")
    with pytest.raises(UsageError, match="no such directory"):
        resolve_base(tmp_path / "nowhere")


@pytest.mark.parametrize("gone", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_a_base_that_lacks_a_file_is_refused_by_its_name(moved_base, gone):
    (moved_base / gone).unlink()
    with pytest.raises(UsageError, match="safetensors" if "model" in gone else gone):
        resolve_base(moved_base)


def test_a_base_of_an_unknown_architecture_is_refused_in_words(moved_base):
    config = orjson.loads((moved_base / "config.json").read_bytes())
    (moved_base / "config.json").write_bytes(orjson.dumps({**config, "model_type": "unheard-of"}))
    with pytest.raises(UsageError, match="the base cannot be loaded: .*unheard-of"):
        load_base(moved_base, device="cpu")


def test_a_base_of_pickles_is_refused_by_name(moved_base):
    (moved_base / "model.safetensors").rename(moved_base / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is a pickle"):
        resolve_base(moved_base)


def test_a_base_that_brings_code_is_refused(moved_base):
    edit(moved_base / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (moved_base / "evil.py").write_text("raise SystemExit")
    with pytest.raises(IntegrityError, match="auto_map"):
        load_base(moved_base)


def crafted(kind: str, whole: bytes) -> bytes:
    size = struct.unpack("<Q", whole[:8])[0]
    header = orjson.loads(whole[8 : 8 + size])
    if kind == "huge header":
        return struct.pack("<Q", 1 << 62) + whole[8:]
    if kind == "trailing bytes":
        return whole + b"PK\x03\x04"
    if kind == "cut short":
        return whole[:-100]
    if kind == "not JSON":
        return whole[:8] + b"\xff" * size + whole[8 + size :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    if kind == "overlap":
        header[second]["data_offsets"] = header[first]["data_offsets"]
    else:  # out of bounds
        header[first]["data_offsets"] = [1 << 40, (1 << 40) + 16]
    body = orjson.dumps(header)
    return struct.pack("<Q", len(body)) + body + whole[8 + size :]


KINDS = ["huge header", "trailing bytes", "cut short", "not JSON", "overlap", "out of bounds"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crafted_weight_file_is_refused(moved_base, kind):
    path = moved_base / "model.safetensors"
    path.write_bytes(crafted(kind, path.read_bytes()))
    with pytest.raises(IntegrityError, match="damaged"):
        load_base(moved_base)


def test_fifty_mangled_headers_are_refused_or_harmless(moved_base):
    """A flipped bit in header or length: refused, or, where it only names a field that nobody reads, the same weights."""
    path = moved_base / "model.safetensors"
    whole = path.read_bytes()
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    rng, refused = random.Random(0), 0
    for _ in range(50):
        body = bytearray(whole)
        body[rng.randrange(size)] ^= 1 << rng.randrange(8)
        path.write_bytes(body)
        try:
            found = memory.weight_shapes(moved_base)
        except IntegrityError:
            refused += 1
        else:
            assert sum(map(math.prod, found.values())) * 2 <= len(whole)
    assert refused >= 30


def test_a_tokenizer_without_padding_of_its_own_gets_another_token_than_the_end(moved_base):
    config = orjson.loads((moved_base / "tokenizer_config.json").read_bytes())
    for change in ({"pad_token": None}, {"pad_token": config["eos_token"]}):
        edit(moved_base / "tokenizer_config.json", **change)
        loaded = load_tokenizer(resolve_base(moved_base))
        assert loaded.pad_token_id not in (None, loaded.eos_token_id)


def test_a_vocabulary_is_no_larger_than_asked():
    assert len(train_tokenizer([row["prompt"] for row in rows(50)], 300)) <= 300


# ------------------------------------------------------------------------------------------- adapters


def test_an_adapter_is_in_the_layout_that_peft_reads(adapter, base):
    from peft import PeftModel

    model, tokenizer = load_base(base, device="cpu")
    theirs = PeftModel.from_pretrained(model, str(adapter)).eval()
    ours = load_adapter(adapter, device="cpu")
    ids = torch.tensor([tokenizer("my card is blocked")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, ours.model(ids).logits, atol=1e-4)
    config = orjson.loads((adapter / "adapter_config.json").read_bytes())
    assert config["base_model_name_or_path"] == str(base)
    assert config["revision"] == resolve_base(base).digest
    # No token is added and no module trained whole: servers refuse such adapters, and their sizes fit no other base.
    assert not config.get("modules_to_save")
    shapes = memory.weight_shapes(adapter)
    assert all("lora_" in name or "token_adapter" in name for name in shapes), shapes


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_without_the_package_for_it_is_told_which_to_install(base, monkeypatch, bits):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"tilth\[train\]"):
        load_base(base, device="cpu", bits=bits)


def test_an_adapter_is_loaded_under_the_name_of_its_digest(adapter):
    assert load_adapter(adapter).name == registry.read(adapter)["digest"]
    assert open_model(adapter).name == registry.read(adapter)["digest"]


def test_a_base_answers_too(base):
    assert open_model(base).name == registry.read(base)["digest"]


def test_a_tampered_adapter_is_refused(copied):
    path = copied / "adapter_model.safetensors"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        load_adapter(copied)


def test_an_adapter_with_a_pickle_beside_it_is_refused_and_the_pickle_is_not_run(copied, tmp_path):
    marker = tmp_path / "ran"
    evil = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()
    for name in ("adapter_model.bin", "training_args.bin", "optimizer.pt"):
        (copied / name).write_bytes(evil)
        with pytest.raises(IntegrityError, match=name):
            load_adapter(copied)
        (copied / name).unlink()
    assert not marker.exists()
    import pickle

    pickle.loads(evil)  # the control: loaded, it would have run
    assert marker.exists()


def test_an_adapter_for_another_base_is_refused(copied, tmp_path):
    other = tmp_path / "other"
    tiny_base(["quite other words"] * 50, other, steps=1)
    with pytest.raises(IntegrityError, match="not the one that the adapter was trained on"):
        load_adapter(copied, base=other)


def test_a_base_that_was_moved_can_be_named(copied, moved_base):
    assert load_adapter(copied, base=moved_base).name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": "evil/model"}, "names another base"),
        ({"auto_mapping": {"parent_library": "evil"}}, "only LORA and ADALORA"),
        ({"peft_type": "PROMPT_TUNING"}, "only LORA and ADALORA"),
    ],
)
def test_an_adapter_config_that_reaches_elsewhere_is_refused_even_with_a_forged_manifest(
    copied, change, said
):
    edit(copied / "adapter_config.json", **change)
    reseal(copied)
    with pytest.raises(IntegrityError, match=said):
        load_adapter(copied)


def test_no_network_is_touched(base, adapter, tmp_path, monkeypatch):
    tried = []

    def refuse(self: socket.socket, address: object) -> None:
        tried.append(address)
        raise OSError("the network is cut")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    train(rows(8), QUICK, base, tmp_path / "out")
    load_adapter(tmp_path / "out")
    with pytest.raises(UsageError):
        resolve_base("some-owner/some-model")
    assert tried == []
    with pytest.raises(OSError, match="cut"):
        socket.create_connection(("127.0.0.1", 9))
    assert tried  # the control: a connection would have been seen


def test_remote_code_is_refused_whatever_the_environment_says(base, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = []
    for kind in (AutoModelForCausalLM, AutoTokenizer):
        real = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda *a, _real=real, **k: (
                asked.append((k["trust_remote_code"], k["local_files_only"])) or _real(*a, **k)
            ),
        )
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    load_base(base)
    assert asked == [(False, True), (False, True)]


def test_an_attached_adapter_is_all_that_learns(base):
    model, _ = load_base(base, device="cpu")
    joined = attach(model, QUICK)
    learning = [name for name, p in joined.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert {name.split(".")[-4] for name in learning} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
