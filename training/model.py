"""Base models and adapters: found, checked, loaded; and a tiny base, made here, where no other is to be had.

Weights are read from safetensors alone, from this machine alone, and never with code that came beside them. An adapter
is loaded only after its manifest was verified and onto the very base that the manifest names. What is missing is named,
with the way to get it.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import torch
from torch.nn import functional

from curation.errors import IntegrityError, MissingExtra, TilthError, UsageError
from curation.records import canonical_json, digest
from training import registry
from training.examples import SEPARATOR, check_tokenizer

if TYPE_CHECKING:
    from training.train import Recipe

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


@dataclass(frozen=True)
class Loaded:
    """A model ready to answer: ``name`` is the digest of its manifest, or of its files where it has none."""

    model: Any
    tokenizer: Any
    name: str
    max_length: int


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
    config = _json(path / "config.json")
    if "auto_map" in config:
        raise IntegrityError(
            "config.json asks for code that came with the weights (auto_map), which is never run",
            where=str(path),
            next="Use a base whose architecture the transformers library knows",
        )


def _json(path: Path) -> dict[str, Any]:
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
    """The base's own tokenizer; where it has no padding of its own, another token that is not the end pads."""
    from transformers import AutoTokenizer

    tokenizer = _read(AutoTokenizer, base)
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


# --------------------------------------------------------------------------------------------- adapters


def attach(model: Any, recipe: Recipe, tokens: Sequence[int] = (), steps: int = 100) -> Any:
    """The model with a fresh adapter of the recipe on it; only the adapter is trainable.

    LoRA: Hu et al. 2021 (arXiv 2106.09685), on every linear layer but the head, as Dettmers et al. 2023 (arXiv
    2305.14314) found necessary. The initial values come from torch's global generator. The embeddings of ``tokens``
    (ids) are trained along, in the head too where the two are tied. ``steps`` is how many updates are coming: AdaLoRA
    spreads its reallocation over them, from one and a half times the rank down to the rank on average.
    """
    from peft import AdaLoraConfig, LoraConfig, TaskType, get_peft_model

    shared: dict[str, Any] = {
        "lora_alpha": recipe.alpha,
        "lora_dropout": recipe.dropout,
        "target_modules": recipe.target if recipe.target == "all-linear" else recipe.target.split(","),
        "task_type": TaskType.CAUSAL_LM,
        "bias": "none",
    }
    if recipe.method == "adalora":
        schedule: dict[str, Any] = _reallocation(recipe.rank, steps)
        return get_peft_model(model, AdaLoraConfig(**shared, **schedule))
    config = LoraConfig(
        r=recipe.rank,
        use_dora=recipe.method == "dora",
        trainable_token_indices={_embedding_name(model): list(tokens)} if tokens else None,
        ensure_weight_tying=bool(tokens) and bool(model.config.tie_word_embeddings),
        **shared,
    )
    return get_peft_model(model, config)


def _reallocation(rank: int, steps: int) -> dict[str, Any]:
    """AdaLoRA's schedule: a tenth of the updates at full rank, then reallocation, the last third at the final ranks."""
    return {
        "init_r": math.ceil(1.5 * rank),
        "target_r": rank,
        "tinit": steps // 10,
        "tfinal": steps // 3,
        "deltaT": max(1, steps // 100),
        "total_step": steps,
    }


def resume(model: Any, folder: Path, base: Base) -> Any:
    """The base with the adapter of ``folder`` on it, trainable again: its weights go on from where they were.

    Raises ``UsageError`` where the folder holds no adapter, ``IntegrityError`` where it was changed or belongs to
    another base.
    """
    from peft import PeftModel

    manifest = registry.verify(folder)
    if manifest["kind"] != "adapter":
        raise UsageError("this is no adapter", where=str(folder), next="Pass it as --base instead")
    _check_adapter_config(folder, manifest)
    _check_base(base, manifest)
    return PeftModel.from_pretrained(
        model, str(folder), is_trainable=True, local_files_only=True, use_safetensors=True
    )


def _embedding_name(model: Any) -> str:
    embedding = model.get_input_embeddings()
    return next(name.rpartition(".")[2] for name, module in model.named_modules() if module is embedding)


def load_adapter(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    bits: int | None = None,
) -> Loaded:
    """Load what :func:`training.train.train` wrote, after verifying all of it.

    Every file must have the SHA-256 that the manifest gives, nothing may lie beside them, and the base must have the
    digest that the manifest names; ``base`` says where it is now, if it was moved. Raises ``IntegrityError`` where any
    of that fails, ``UsageError`` where the folder or the base is missing.
    """
    manifest = registry.verify(folder)
    if manifest["kind"] != "adapter":
        return _load_whole(Path(folder), manifest["digest"], device, bits)
    loaded = load_unmerged(folder, base=base, device=device, bits=bits)
    # Merging saves two small products per layer, but rounds; only float32 has the digits to spare.
    if bits is None and next(loaded.model.parameters()).dtype == torch.float32:
        loaded = replace(loaded, model=loaded.model.merge_and_unload().eval())
    return loaded


def load_unmerged(
    folder: str | Path,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> Loaded:
    """:func:`load_adapter` of an adapter, with the adapter beside the base's weights rather than in them."""
    folder = Path(folder)
    manifest = registry.verify(folder)
    _check_adapter_config(folder, manifest)
    found = resolve_base(base or manifest["base"]["ref"], _pinned(manifest, base))
    _check_base(found, manifest)
    model, tokenizer = load_base(found, device=device, bits=bits, dtype=dtype)
    return Loaded(_join(model, folder), tokenizer, manifest["digest"], context_length(model))


def _check_base(found: Base, manifest: dict[str, Any]) -> None:
    if found.digest != manifest["base"]["digest"]:
        raise IntegrityError(
            f"the base is not the one that the adapter was trained on "
            f"({found.digest[:12]} instead of {manifest['base']['digest'][:12]})",
            where=str(found.path),
            next="Give the original base, or train again on this one",
        )


def _pinned(manifest: dict[str, Any], moved: str | Path | None) -> str | None:
    ref = manifest["base"]["ref"]
    return None if moved or Path(ref).is_dir() else manifest["base"]["revision"]


def _join(model: Any, folder: Path) -> Any:
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        joined = PeftModel.from_pretrained(
            model, str(folder), is_trainable=False, local_files_only=True, use_safetensors=True
        )
    except SafetensorError as error:
        raise IntegrityError(f"the weights are damaged: {error}", where=str(folder)) from error
    return joined.eval()


def _check_adapter_config(folder: Path, manifest: dict[str, Any]) -> None:
    if not (folder / "adapter_model.safetensors").is_file():
        raise IntegrityError("the adapter has no adapter_model.safetensors", where=str(folder))
    config = _json(folder / "adapter_config.json")
    ref = manifest["base"]["ref"]
    if config.get("base_model_name_or_path") != ref:
        raise IntegrityError(
            f"adapter_config.json names another base ({config.get('base_model_name_or_path')!r}) than the "
            f"manifest ({ref!r})",
            where=str(folder),
        )
    if config.get("peft_type") not in ("LORA", "ADALORA") or config.get("auto_mapping"):
        raise IntegrityError(
            f"adapter_config.json asks for {config.get('peft_type')!r} with its own mapping; only LORA and ADALORA "
            "are loaded",
            where=str(folder),
        )


def _load_whole(folder: Path, name: str, device: Any, bits: int | None) -> Loaded:
    model, tokenizer = load_base(folder, device=device, bits=bits)
    return Loaded(model.eval(), tokenizer, name, context_length(model))


def open_model(ref: str | Path | Loaded, *, device: torch.device | str | None = None) -> Loaded:
    """Whatever can answer: something already loaded, an adapter, a trained model, or a base as it is."""
    if isinstance(ref, Loaded):
        return ref
    if (Path(ref) / registry.MANIFEST).is_file() or (Path(ref) / "adapter_config.json").is_file():
        return load_adapter(ref, device=device)
    base = resolve_base(ref)
    return _load_whole(base.path, base.digest, device, None)


# -------------------------------------------------------------------------------------------- tiny base

PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"


@dataclass(frozen=True)
class TinyRule:
    """The shape and schedule of a tiny base: 0.9 million parameters with the defaults.

    ``batch_tokens`` is the size of one step, padding included; ``window`` the longest document, in tokens.
    ``reading`` is how much a token of the text counts beside one of the exercise's answer; ``copies`` the share of
    exercises whose answer is the text itself.
    """

    vocab: int = 2048
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    context: int = 1024
    batch_tokens: int = 2048
    window: int = 256
    lr: float = 2e-3
    reading: float = 0.2
    copies: float = 0.25
    seed: int = 0


def make_tiny_base(
    texts: Sequence[str],
    out: str | Path,
    *,
    seconds: float = 60,
    steps: int | None = None,
    seed: int = 0,
    rule: TinyRule | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn a byte-level vocabulary and a tiny Llama from ``texts`` alone, and save both as a base directory.

    For work without any model at hand. Besides reading each text, the model practises answering: it names the text's
    rarer words, or repeats it (:func:`exercise`). That needs nobody's labels and teaches what a minute of reading does
    not, to look back at the prompt; without it an adapter learns next to nothing from a few hundred labels.

    ``steps`` bounds the training exactly, and the same texts, steps and seed then give the same bytes on the same
    machine; without it, ``seconds`` of wall-clock time do. Gives the manifest. Raises ``UsageError`` where the texts hold
    no words.
    """
    rule = rule or TinyRule(seed=seed)
    texts = [t.strip() for t in texts if t.strip()]
    if not texts:
        raise UsageError("there is no text to make a base from", next="Give at least a few hundred texts")
    quiet()
    begun = time.time()
    with registry.partial(Path(out)) as folder:
        lesson = Lesson.of(texts, rule)
        with torch.random.fork_rng():
            torch.manual_seed(rule.seed)
            model = _tiny_llama(rule, lesson.tokenizer)
            metrics = _pretrain(model, lesson, steps, seconds, progress)
        model.half().save_pretrained(folder)
        lesson.tokenizer.save_pretrained(folder)
        content = {"kind": "base", "recipe": asdict(rule), "metrics": metrics, "texts": _texts_digest(texts)}
        return registry.seal(folder, content, {"started": begun, "seconds": time.time() - begun})


def _texts_digest(texts: Sequence[str]) -> str:
    return digest("\n".join(digest(t) for t in texts))


def train_tokenizer(texts: Sequence[str], vocab: int) -> Any:
    """A byte-level BPE vocabulary of at most ``vocab`` tokens, with padding, beginning and end of its own.

    Any text can be encoded, since every byte is a token. The beginning is put before each text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    learner = trainers.BpeTrainer(
        vocab_size=vocab,
        min_frequency=2,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, learner)
    begin = bpe.token_to_id(BOS)
    bpe.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, begin)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def _tiny_llama(rule: TinyRule, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=rule.hidden,
        intermediate_size=rule.hidden * 3,
        num_hidden_layers=rule.layers,
        num_attention_heads=rule.heads,
        num_key_value_heads=rule.heads,
        max_position_embeddings=rule.context,
        tie_word_embeddings=True,
        initializer_range=0.02,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Lesson:
    """Texts made ready for practice: their ids, their words, and how rare each word is."""

    rule: TinyRule
    tokenizer: Any
    texts: list[str]
    prompts: list[list[int]]
    words: list[list[str]]
    rarity: dict[str, float]

    @staticmethod
    def of(texts: list[str], rule: TinyRule) -> Lesson:
        """Learn the vocabulary and the words' rarity; one exercise per text joins what the vocabulary is learned from."""
        words = [list(dict.fromkeys(_WORD.findall(t.lower()))) for t in texts]
        rarity = word_rarity(words)
        rng = np.random.default_rng(rule.seed)
        answers = [exercise(w, rarity, rng) for w in words]
        tokenizer = train_tokenizer([*texts, *answers], rule.vocab)
        prompts = tokenizer([t + SEPARATOR for t in texts], split_special_tokens=True)["input_ids"]
        return Lesson(rule, tokenizer, texts, prompts, words, rarity)

    def batches(self) -> Iterator[list[tuple[list[int], int]]]:
        """Endless batches of (ids, where the answer begins), each of documents of about the same length."""
        rng = np.random.default_rng(self.rule.seed)
        while True:
            order = rng.permutation(len(self.texts)).tolist()
            for start in range(0, len(order), _POOLED):
                made = sorted(self._documents(order[start : start + _POOLED], rng), key=lambda d: len(d[0]))
                groups = list(self._cut(made))
                yield from (groups[i] for i in rng.permutation(len(groups)))

    def _documents(self, chosen: Sequence[int], rng: np.random.Generator) -> list[tuple[list[int], int]]:
        answers = [
            self.texts[i] if rng.random() < self.rule.copies else exercise(self.words[i], self.rarity, rng)
            for i in chosen
        ]
        ids = self.tokenizer(answers, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        end, window = self.tokenizer.eos_token_id, self.rule.window
        pairs = zip((self.prompts[i] for i in chosen), ids, strict=True)
        return [([*p, *a, end][:window], min(len(p), window)) for p, a in pairs]

    def _cut(self, made: list[tuple[list[int], int]]) -> Iterator[list[tuple[list[int], int]]]:
        group: list[tuple[list[int], int]] = []
        for one in made:
            if group and (len(group) + 1) * len(one[0]) > self.rule.batch_tokens:
                yield group
                group = []
            group.append(one)
        if group:
            yield group


_WORD = re.compile(r"[^\W_]+")
_POOLED = 2048  # texts that are sorted by length together
_JOINERS = ("_", "_", " ")
_MOST_WORDS = 4


def word_rarity(words: Sequence[Sequence[str]]) -> dict[str, float]:
    """How telling a word is: the square of its inverse document frequency; next to nothing for a word seen twice or less.

    >>> word_rarity([["a", "b"], ["a", "b"], ["a", "b"], ["a"]])["a"]
    0.001
    """
    seen = Counter(word for row in words for word in row)
    return {w: math.log(len(words) / n) ** 2 * (n > 2) + 1e-3 for w, n in seen.items()}


def exercise(words: Sequence[str], rarity: Mapping[str, float], rng: np.random.Generator) -> str:
    """One to four of a text's different words, the rarer the likelier, in their order: ``card_arrival``.

    Short names made of the words that matter are what class labels look like. A text without words gives ``none``.
    """
    if not words:
        return "none"
    odds = np.array([rarity[word] for word in words])
    count = min(len(words), 1 + int(rng.integers(_MOST_WORDS)))
    chosen = sorted(rng.choice(len(words), count, replace=False, p=odds / odds.sum()))
    return _JOINERS[int(rng.integers(len(_JOINERS)))].join(words[i] for i in chosen)


def _pretrain(
    model: Any, lesson: Lesson, steps: int | None, seconds: float, progress: Progress | None
) -> dict[str, Any]:
    """Next-token training with AdamW, a short warm-up and a cosine to a tenth; gives steps, tokens and loss."""
    rule, device = lesson.rule, best_device()
    model.to(device).train()
    optimizer = torch.optim.AdamW(_groups(model), lr=rule.lr, betas=(0.9, 0.95), fused=True)
    batches = lesson.batches()
    begun, step, tokens, recent = time.monotonic(), 0, 0, 0.0
    while (done := _share_done(step, steps, time.monotonic() - begun, seconds)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rule.lr * _pace(done, step)
        batch = next(batches)
        loss = _practice_loss(model, batch, rule.reading, device)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + sum(len(ids) for ids, _ in batch)
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if not math.isfinite(recent):
            raise TilthError(f"the loss became {recent} at step {step}", next="Lower the learning rate")
        if progress and step % 10 == 0:
            progress({"step": step, "steps": steps, "loss": recent, "seconds": time.monotonic() - begun})
    model.cpu().eval()
    return {"steps": step, "tokens": tokens, "loss": recent}


def _groups(model: Any) -> list[dict[str, Any]]:
    """Matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]


def _practice_loss(
    model: Any, batch: Sequence[tuple[list[int], int]], reading: float, device: torch.device
) -> torch.Tensor:
    """The weighted mean NLL over next tokens: ``reading`` for those of the text, 1 for those of the answer."""
    width = max(len(ids) for ids, _ in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    weight = torch.zeros(len(batch), width)
    for i, (row, start) in enumerate(batch):
        ids[i, : len(row)] = torch.tensor(row)
        weight[i, 1:start] = reading
        weight[i, start : len(row)] = 1.0
    ids, weight = ids.to(device), weight[:, 1:].to(device)
    # Padding stands on the right, where causal attention never looks from a real token, so it needs no mask.
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    counted = weight > 0
    nll = functional.cross_entropy(
        model.lm_head(states[counted]).float(), ids[:, 1:][counted], reduction="none"
    )
    return (nll * weight[counted]).sum() / weight[counted].sum()


def _share_done(step: int, steps: int | None, spent: float, seconds: float) -> float:
    return step / steps if steps is not None else spent / seconds


def _pace(done: float, step: int) -> float:
    return min(1.0, (step + 1) / 30) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
