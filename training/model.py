"""Base models: found, checked, loaded.

Weights are read from safetensors alone, from this machine alone, and never with code that came beside them. What is
missing is named, with the way to get it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch

from curation.errors import IntegrityError, MissingExtra, UsageError
from curation.records import canonical_json, digest
from training import registry, template
from training.examples import check_tokenizer

if TYPE_CHECKING:
    pass

Progress = Callable[[dict[str, Any]], None]
"""Called now and then with what a long run has reached: ``step``, ``steps``, ``loss``, ``seconds``."""

BASE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "*.safetensors",
    "*.safetensors.index.json",
)
"""What of a base is read, and what its digest covers."""

BUNDLED = "bundled"
"""The name of the base that comes with the package. A folder of that name is given as ``./bundled``."""

_BUNDLED_FOLDER = Path(__file__).with_name("base")

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Base:
    """A base model on this machine: what it was asked for as, where it is, and the digest of its files."""

    ref: str
    path: Path
    revision: str
    digest: str


# ------------------------------------------------------------------------------------------ finding it


def resolve_base(ref: str | Path, revision: str | None = None) -> Base:
    """Find a base: :data:`BUNDLED`, a directory, or the name of a hub model that was downloaded before.

    Nothing is downloaded. The revision of a hub model is its commit; that of a directory is the digest of its files.
    Raises ``UsageError`` naming what is missing and how to get it, ``IntegrityError`` where the bundled base is not the
    one that was shipped, or not the one that ``revision`` names.
    """
    if str(ref) == BUNDLED:
        return _bundled(revision)
    path = Path(ref)
    if path.is_dir():
        _check_base_files(path)
        name = base_digest(path)
        return Base(str(ref), path, revision or name, name)
    if not _HUB_NAME.fullmatch(str(ref)):
        raise UsageError(
            "there is no such directory, and this is not the name of a model", where=str(ref), next=_get(ref)
        )
    path = _cached(str(ref), revision)
    _check_base_files(path)
    return Base(str(ref), path, path.name, base_digest(path))


def _bundled(revision: str | None, folder: Path = _BUNDLED_FOLDER) -> Base:
    """The base in the package, every file compared with its manifest: small enough to be hashed each time."""
    registry.verify(folder)
    name = base_digest(folder)
    if revision not in (None, name):
        raise IntegrityError(
            f"this release ships another base ({name[:12]} instead of {str(revision)[:12]})",
            where=BUNDLED,
            next="Install the release that it was trained with, or train again",
        )
    return Base(BUNDLED, folder, name, name)


def _get(ref: str | Path, revision: str | None = None) -> str:
    pin = f" --revision {revision}" if revision else ""
    return (
        f"Give a directory that holds config.json, tokenizer.json and model.safetensors; or, on a machine that may "
        f"reach the hub: hf download {ref}{pin}"
    )


def _cached(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(BASE_FILES))
        )
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UsageError(
            "this base model is not on this machine, and nothing is downloaded here",
            where=f"{name}@{revision}" if revision else name,
            next=_get(name, revision),
        ) from error


def _check_base_files(path: Path) -> None:
    for need in ("config.json", "tokenizer_config.json"):
        if not (path / need).is_file():
            raise UsageError(f"the base has no {need}", where=str(path), next=_get(path))
    if not any(path.glob("*.safetensors")):
        pickles = [p.name for p in sorted(path.iterdir()) if p.suffix in registry.PICKLES]
        why = f"; {pickles[0]} is a pickle, which is never loaded" if pickles else ""
        raise UsageError(f"the base has no .safetensors file{why}", where=str(path), next=_get(path))
    config = read_json(path / "config.json")
    if "auto_map" in config:
        raise IntegrityError(
            "config.json asks for code that came with the weights (auto_map), which is never run",
            where=str(path),
            next="Use a base whose architecture the transformers library knows",
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ``IntegrityError`` where it is none."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (orjson.JSONDecodeError, ValueError, TypeError) as error:
        raise IntegrityError(f"this is not a JSON object: {error}", where=str(path)) from error


def base_digest(path: Path) -> str:
    """The digest of a base: of the SHA-256 of each of its :data:`BASE_FILES`, by name."""
    found = sorted({p for pattern in BASE_FILES for p in path.glob(pattern)})
    return digest(canonical_json({p.name: _sha256(p, *_stamp(p)) for p in found}))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, changed: int, size: int) -> str:
    """Hashing gigabytes for every command would hurt; an unchanged time and size vouch within one process."""
    return str(registry.file_digest(path)["sha256"])


# --------------------------------------------------------------------------------------------- loading


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_base(
    ref: str | Path | Base,
    *,
    revision: str | None = None,
    method: str = "lora",
    device: torch.device | str | None = None,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Any, Any]:
    """The base model and its tokenizer, ready to be trained by ``method`` or to answer.

    ``dtype`` is what weights are held in. Without it they are float32 on a CPU and bfloat16 on a GPU, except where
    ``method`` trains them all (``full``, ``adapt``: small updates would be lost in rounding). ``bits`` 4 or 8 quantises
    them with bitsandbytes. The tokenizer pads with a token that is not its end of sequence. Raises ``UsageError`` where
    the base is not on this machine, ``IntegrityError`` where its files are damaged.
    """
    from transformers import AutoModelForCausalLM

    quiet()
    base = ref if isinstance(ref, Base) else resolve_base(ref, revision)
    where = torch.device(device) if device is not None else best_device()
    small = where.type == "cuda" and method not in ("full", "adapt")
    options: dict[str, Any] = {"dtype": dtype or (torch.bfloat16 if small else torch.float32)}
    if bits is not None:
        options["quantization_config"] = _quantization(bits, options["dtype"])
        options["device_map"] = {"": where}
    model = _read(AutoModelForCausalLM, base, use_safetensors=True, **options)
    tokenizer = load_tokenizer(base)
    model.config.pad_token_id = tokenizer.pad_token_id
    if where.type == "cpu":
        _keep_layout(model)
    return (model if bits is not None else model.to(where)), tokenizer


def load_tokenizer(base: Base) -> Any:
    """The base's own tokenizer; where it has no padding of its own, another token that is not the end pads.

    Raises ``IntegrityError`` for a chat template that does not end or fills the memory.
    """
    from transformers import AutoTokenizer

    tokenizer = _read(AutoTokenizer, base)
    if isinstance(tokenizer.chat_template, str):
        template.try_out(tokenizer.chat_template)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.pad_token = _padding(tokenizer)
    tokenizer.padding_side = "right"
    check_tokenizer(tokenizer)
    return tokenizer


def _padding(tokenizer: Any) -> str:
    """A stand-in for padding. Attention is masked there and labels are ignored, so any token but the end will do."""
    spare = [tokenizer.unk_token, *tokenizer.all_special_tokens, *tokenizer.convert_ids_to_tokens([0, 1])]
    return next(token for token in spare if token is not None and token != tokenizer.eos_token)


def _read(kind: Any, base: Base, **options: Any) -> Any:
    from safetensors import SafetensorError

    try:
        return kind.from_pretrained(str(base.path), local_files_only=True, trust_remote_code=False, **options)
    except SafetensorError as error:
        raise IntegrityError(
            f"the weights are damaged: {error}", where=str(base.path), next="Get the base again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UsageError(
            f"the base cannot be loaded: {str(error).splitlines()[0]}", where=base.ref, next=_get(base.ref)
        ) from error


def _quantization(bits: int, dtype: torch.dtype) -> Any:
    if bits not in (4, 8):
        raise UsageError(f"weights of {bits} bits are not offered", next="Choose 4 or 8")
    try:
        import bitsandbytes  # noqa: F401
        from transformers import BitsAndBytesConfig
    except ImportError:
        raise MissingExtra("train", "bitsandbytes") from None
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _keep_layout(model: Any) -> None:
    """Keep bitsandbytes from laying 4-bit weights out anew at the first measurement.

    On CPUs with bfloat16 instructions it does so in evaluation mode, for widths that 32 divides alone (others fail), and
    training goes on after a measurement.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def quiet() -> None:
    """Keep the libraries below from drawing progress bars and from talking on stdout."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of the layers below says that memory ran out, on the GPU or on the CPU."""
    said = str(error).lower()
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def context_length(model: Any) -> int:
    """The longest sequence, in tokens, that the model's positions allow; 4,096 where it does not say."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 4096)
