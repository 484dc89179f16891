"""Models from outside as layers: real ones, made here and saved to disk, and what happens without them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from curation import config, health, pii
from curation.errors import UsageError
from curation.pii import labels, models, outside
from curation.pii.models import SpacyLayer, Token, TransformersLayer, joined
from curation.pii.patterns import Deadline
from curation.pii.spans import Span, Unscanned
from curation.records import VIEW, table, user_message

KEY = b"a key for tests, 32 bytes long.."
NAMED = {"rosalind": "B-PER", "unwin": "I-PER", "lisbon": "B-LOC", "badger": "B-TEAM"}
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "B-TEAM"]


# --- the models ---------------------------------------------------------------------------------------------------


def pipeline(folder: Path, patterns: list[dict[str, Any]], language: str = "en") -> Path:
    import spacy

    made = spacy.blank(language)
    made.add_pipe("entity_ruler").add_patterns(patterns)
    made.to_disk(folder)
    return folder


PATTERNS: list[dict[str, Any]] = [
    {"label": "PERSON", "pattern": "Rosalind Unwin"},
    {"label": "GPE", "pattern": "Lisbon"},
    {"label": "MONEY", "pattern": "five pounds"},
    {"label": "BADGE", "pattern": "badge seven"},
]


def classifier(folder: Path, *, tags: list[str] = TAGS, places: int = 64) -> Path:
    """A BERT of one layer whose head reads the embedding of a word alone, and so marks the words of ``NAMED``; the words
    are cut into pieces, the rest of a word saying nothing."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    pieces = [*NAMED, *(c for c in "abcdefghijklmnopqrstuvwxyz.,!🚚é")]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces, *(f"##{p}" for p in "abcdefghijklmnopqrstuvwxyz")]
    ids = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=places,
    ).save_pretrained(folder)  # fmt: skip
    size = 16
    shape = BertConfig(
        vocab_size=len(words), hidden_size=size, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=places, id2label=dict(enumerate(tags)), label2id={t: i for i, t in enumerate(tags)},
    )  # fmt: skip
    torch.manual_seed(0)
    made = BertForTokenClassification(shape)
    with torch.no_grad():
        bert = made.bert
        for table_ in (bert.embeddings.position_embeddings, bert.embeddings.token_type_embeddings):
            table_.weight.zero_()
        for name, weight in bert.encoder.named_parameters():
            if "LayerNorm" not in name:
                weight.zero_()
        bert.embeddings.word_embeddings.weight.zero_()
        made.classifier.weight.zero_()
        made.classifier.bias.zero_()
        made.classifier.bias[0] = 8.0
        for number, (word, tag) in enumerate(NAMED.items()):
            bert.embeddings.word_embeddings.weight[ids[word], number] = 10.0
            if tag in tags:
                made.classifier.weight[tags.index(tag), number] = 10.0
    made.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def spacy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline(tmp_path_factory.mktemp("spacy") / "pipe", PATTERNS)


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("bert") / "model")


def find(layer: models.ModelLayer, text: str) -> list[tuple[str, str]]:
    return [(s.entity_type, text[s.start : s.end]) for s in layer.find(text, "en", Deadline(60))]


def scrubber(layer: str) -> pii.Scrubber:
    return pii.Scrubber(pii.ScrubRule(layers=(layer,), mode="mask"), KEY)


# --- spaCy --------------------------------------------------------------------------------------------------------


def test_a_pipeline_finds_its_entities_as_our_types_at_code_points(spacy_folder: Path) -> None:
    layer = models.load(f"spacy:{spacy_folder}", 0.4)
    text = "🚚 Rosalind Unwin of Lisbon lost five pounds and badge seven"
    assert find(layer, text) == [
        ("PERSON", "Rosalind Unwin"),
        ("LOCATION", "Lisbon"),
        ("BADGE", "badge seven"),
    ]


def test_a_row_is_scrubbed_by_a_pipeline_and_stays_so_at_a_second_scan(spacy_folder: Path) -> None:
    made = pii.Scrubber(pii.ScrubRule(layers=("patterns", f"spacy:{spacy_folder}")), KEY)
    first = made.scrub(["I am Rosalind Unwin of Lisbon, r.unwin@acme.com"])
    assert not any(word in first.texts[0] for word in ("Rosalind", "Unwin", "Lisbon", "unwin@"))
    assert not made.scrub(first.texts).found()


def test_a_pipeline_answers_for_its_language_alone(spacy_folder: Path, tmp_path: Path) -> None:
    layer = models.load(f"spacy:{spacy_folder}", 0.4)
    with pytest.raises(Unscanned, match="reads 'en', not 'de'"):
        layer.find("Rosalind Unwin", "de", Deadline(60))
    every = models.load(f"spacy:{pipeline(tmp_path / 'xx', PATTERNS, 'xx')}", 0.4)
    assert every.find("Rosalind Unwin", "de", Deadline(60)) != []


def test_a_pipeline_that_marks_no_entities_is_refused(tmp_path: Path) -> None:
    import spacy

    made = spacy.blank("en")
    made.add_pipe("sentencizer")
    made.to_disk(tmp_path / "pipe")
    with pytest.raises(UsageError, match="no component that marks entities"):
        models.load(f"spacy:{tmp_path / 'pipe'}", 0.4)


# --- token classifiers --------------------------------------------------------------------------------------------


def test_a_classifier_finds_whole_words_as_our_types_at_code_points(bert_folder: Path) -> None:
    layer = models.load(f"transformers:{bert_folder}", 0.4)
    text = "🚚 é Rosalind  Unwin, lisbon! badgers unwinding"
    assert find(layer, text) == [
        ("PERSON", "Rosalind  Unwin"),
        ("LOCATION", "lisbon"),
        ("TEAM", "badgers"),
        ("PERSON", "unwinding"),
    ]
    assert all(0.4 <= span.score <= 1 for span in layer.find(text, "en", Deadline(60)))


def test_spans_below_the_threshold_are_left_out() -> None:
    found = [(0, 3, "PER", 0.41), (4, 7, "PER", 0.39)]
    assert models.spans_of("ann bob", found, 0.4) == [Span(0, 3, "PERSON", 0.41)]


@pytest.mark.parametrize("gap", range(35, 75))
def test_a_name_is_found_whole_wherever_the_windows_meet(bert_folder: Path, gap: int) -> None:
    text = "a " * gap + "rosalind unwin " + "a " * 50
    assert find(models_loaded(bert_folder), text) == [("PERSON", "rosalind unwin")]


@cache
def models_loaded(folder: Path) -> TransformersLayer:
    layer = models.load(f"transformers:{folder}", 0.4)
    assert isinstance(layer, TransformersLayer)
    return layer


def test_windows_hold_every_token_of_a_long_text_once(bert_folder: Path) -> None:
    layer = models_loaded(bert_folder)
    text = "lisbon ab, " * 300
    read = layer._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    tokens = layer.tokens(text, Deadline(60))
    assert [(t.start, t.end) for t in tokens] == read
    assert find(layer, text) == [("LOCATION", "lisbon")] * 300


def test_without_an_overlap_that_is_reckoned_with_tokens_would_be_lost(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = models.load(f"transformers:{bert_folder}", 0.4)
    monkeypatch.setattr(layer, "_room", layer._room - 8)  # type: ignore[attr-defined]
    assert len(find(layer, "lisbon ab, " * 300)) < 300


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-PER"], [(0, 2), (3, 4)]),
        (["B-PER", "B-PER"], [(0, 1), (1, 2)]),
        (["PER", "PER", "LOC"], [(0, 2), (2, 3)]),
        (["S-PER", "B-PER", "E-PER"], [(0, 1), (1, 3)]),
        (["U-PER", "U-PER"], [(0, 1), (1, 2)]),
        (["I-PER", "I-LOC"], [(0, 1), (1, 2)]),
        (["O", "O"], []),
        ([], []),
    ],
)
def test_tags_are_read_in_every_scheme(tags: list[str], expected: list[tuple[int, int]]) -> None:
    tokens = [Token(i, i + 1, tag, 1.0, False) for i, tag in enumerate(tags)]
    assert [(start, end) for start, end, *_ in joined(tokens)] == expected


def test_the_rest_of_a_word_goes_with_its_beginning() -> None:
    tokens = [
        Token(0, 2, "B-PER", 0.8, False),
        Token(2, 4, "O", 0.9, True),
        Token(5, 6, "O", 0.9, False),
        Token(6, 8, "B-PER", 0.9, True),
    ]
    assert list(joined(tokens)) == [(0, 4, "PER", 0.8)]


def test_what_was_replaced_is_nobodys_name() -> None:
    text = "\ufffc\ufffc Unwin \ufffc"
    assert models.spans_of(text, [(0, len(text), "PER", 0.9)], 0.4) == [Span(3, 8, "PERSON", 0.9)]
    assert models.spans_of("\ufffc\ufffc .", [(0, 4, "PER", 0.9)], 0.4) == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda at: (at / "model.safetensors").rename(at / "pytorch_model.bin"), r"holds no \*.safetensors"),
        (lambda at: (at / "model.safetensors").write_bytes(b"x" * 100), "cannot be loaded"),
        (lambda at: (at / "config.json").write_text("{}"), "cannot be loaded"),
        (lambda at: (at / "tokenizer.json").unlink(), "cannot be loaded"),
        (lambda at: shutil.rmtree(at), "no such folder"),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_refused(
    bert_folder: Path, tmp_path: Path, spoil: Any, words: str
) -> None:
    copy = Path(shutil.copytree(bert_folder, tmp_path / "copy"))
    spoil(copy)
    with pytest.raises(UsageError, match=words) as caught:
        models.load(f"transformers:{copy}", 0.4)
    assert "layer 'transformers:" in str(caught.value)
    assert caught.value.next


def test_a_classifier_that_cannot_say_none_is_refused(tmp_path: Path) -> None:
    folder = classifier(tmp_path / "model", tags=["LABEL_0", "LABEL_1", "B-PER", "I-PER", "B-LOC"])
    with pytest.raises(UsageError, match='no label is "O"'):
        models.load(f"transformers:{folder}", 0.4)


def test_a_model_without_a_trained_head_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(bert_folder, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    kept = {name: w.clone() for name, w in weights.items() if not name.startswith("classifier")}
    save_file(kept, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="no token classifier was saved"):
        models.load(f"transformers:{copy}", 0.4)


# --- closed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("spacy:no_such_pipeline", "spacy download no_such_pipeline"),
        ("spacy:os", "no such package or folder"),
        ("transformers:/no/such/folder", "no such folder"),
        ("gliner:/no/such/folder", "pip install gliner"),
    ],
)
def test_a_model_that_is_missing_quarantines_every_row_and_says_what_to_do(layer: str, words: str) -> None:
    made = scrubber(layer)
    rows = table([{"record": "r", "messages": user_message("hello"), "lang": "en"}], VIEW)
    decisions, aliases = pii.scrub_view(rows, made)
    (reason,) = decisions["reason"].to_pylist()
    assert reason.startswith(f"unscanned: layer '{layer}': ")
    assert words in reason
    assert aliases == []


def test_a_package_that_is_missing_is_named(spacy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    (told,) = scrubber(f"spacy:{spacy_folder}").missing
    assert "the package spacy is not installed" in told
    assert "pip install 'tilth[pii]'" in told


def held(layer: str, monkeypatch: pytest.MonkeyPatch, fail: Any) -> list[Any]:
    """Three records, of which the model fails on the second."""
    kind = SpacyLayer if layer.startswith("spacy") else TransformersLayer
    real = kind.find

    def find(self: Any, text: str, language: str, deadline: Deadline) -> list[Span]:
        if "Unwin" in text:
            fail(deadline)
        return real(self, text, language, deadline)

    monkeypatch.setattr(kind, "find", find)
    units = [pii.Unit([text]) for text in ("I see Lisbon.", "I am Rosalind Unwin.", "nobody")]
    return scrubber(layer).scrub_all(units)


def raising(_: Deadline) -> None:
    raise RuntimeError("Rosalind Unwin")


def dawdling(deadline: Deadline) -> None:
    deadline._end = 0


@pytest.mark.parametrize("kind", ["spacy", "transformers"])
@pytest.mark.parametrize(
    ("fail", "words"), [(raising, "failed with RuntimeError"), (dawdling, "longer than")]
)
def test_a_model_that_fails_or_dawdles_holds_back_its_row_alone(
    kind: str, fail: Any, words: str, spacy_folder: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = spacy_folder if kind == "spacy" else bert_folder
    first, second, third = held(f"{kind}:{folder}", monkeypatch, fail)
    assert first.texts[0] == "I see <LOCATION_1>."
    assert isinstance(second, Unscanned)
    assert words in str(second)
    assert "Rosalind" not in str(second)
    assert third.texts == ("nobody",)


def test_scores_that_are_no_numbers_are_no_answer(bert_folder: Path) -> None:
    import torch

    layer = models.load(f"transformers:{bert_folder}", 0.4)
    with torch.no_grad():
        layer._model.classifier.bias[0] = float("nan")  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="no numbers"):
        layer.find("rosalind", "en", Deadline(60))


def test_models_get_their_own_time_and_patterns_none_of_it() -> None:
    assert pii.ScrubRule().time_limit == 2.0
    assert pii.ScrubRule(layers=("names", "spacy:a", "transformers:b")).time_limit == 62.0


# --- the rule, the configuration, the commands --------------------------------------------------------------------


def test_another_model_is_another_rule_and_another_place_is_not(spacy_folder: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return pii.ScrubRule(layers=(f"spacy:{folder}",)).digest()

    copy = Path(shutil.copytree(spacy_folder, tmp_path / "copy"))
    before = digest(copy)
    assert before == digest(spacy_folder)
    rules = copy / "entity_ruler" / "patterns.jsonl"
    rules.write_text(rules.read_text().replace("Lisbon", "Madrid"))
    assert digest(copy) != before
    assert digest(tmp_path / "none") not in (before, digest(copy))


def test_the_digest_covers_what_runs_the_model(spacy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = pii.ScrubRule(layers=(f"spacy:{spacy_folder}",))
    before = rule.digest()
    monkeypatch.setattr(outside, "_version", lambda package: "another")
    assert rule.digest() != before


def test_the_configuration_takes_models_and_refuses_what_is_none(tmp_path: Path) -> None:
    made = config.parse({"pii": {"layers": ["patterns", "spacy:here"]}}, tmp_path)
    assert made.pii.layers == ("patterns", "spacy:here")
    for wrong in ("spacy:", "flair:x", "faces"):
        with pytest.raises(UsageError, match="spacy:MODEL"):
            config.parse({"pii": {"layers": [wrong]}}, tmp_path)


def test_every_kind_of_the_configuration_is_one_that_is_known() -> None:
    (field,) = [f for f in config.PiiSection.__dataclass_fields__.values() if f.name == "layers"]
    assert set(field.metadata["kinds"]) == set(outside.PACKAGES) == set(models._LOADERS)
    assert set(field.metadata["choices"]) == set(pii.LAYERS)


def test_a_folder_is_one_of_the_workspace_and_a_package_stays_a_package(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    told = pii.located(("names", "spacy:pipe", "spacy:en_core_web_sm", "transformers:ner"), tmp_path)
    assert told == ("names", f"spacy:{tmp_path}/pipe", "spacy:en_core_web_sm", f"transformers:{tmp_path}/ner")


def test_doctor_says_of_each_layer_whether_it_is_active(spacy_folder: Path, tmp_path: Path) -> None:
    listed = ["patterns", "names", f"spacy:{spacy_folder}", "transformers:gone"]
    made = config.parse({"pii": {"layers": listed}}, tmp_path)
    found = {check.name: check for check in health._pii(made)}
    assert [found[f"pii layer {name}"].state for name in listed] == ["good", "good", "note", "bad"]
    told = found[f"pii layer spacy:{spacy_folder}"].detail
    assert "active" in told
    assert "finds BADGE, LOCATION, PERSON; no personal data: MONEY" in told
    assert "under their own name: BADGE" in told
    assert "not active" in found["pii layer transformers:gone"].detail
    assert "no such folder" in found["pii layer transformers:gone"].detail


def test_labels_without_a_type_are_named_before_a_scan(spacy_folder: Path) -> None:
    (note,) = scrubber(f"spacy:{spacy_folder}").scanner.notes
    assert note.endswith("BADGE")


def test_no_label_stands_for_two_types_or_for_none_as_well() -> None:
    every = [label for names in labels.TYPES.values() for label in names]
    assert len(every) == len(set(every))
    assert not set(every) & labels.IMPERSONAL
    assert all(labels._name(label) == label for label in every)


def test_the_command_scrubs_with_a_model_named_on_its_line(spacy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"id": 1, "prompt": "I am Rosalind Unwin of Lisbon."}) + "\n"
    )
    shutil.copytree(spacy_folder, tmp_path / "pipe")
    done = subprocess.run(
        [sys.executable, "-m", "apps.cli", "scrub", "rows.jsonl", "--out", "clean.jsonl", "--mode", "mask",
         "--layers", "patterns,spacy:pipe"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
    )  # fmt: skip
    row = json.loads((tmp_path / "clean.jsonl").read_text())
    assert row["prompt"] == "I am <PERSON_1> of <LOCATION_1>."
    assert "BADGE" in done.stderr


def test_no_library_is_imported_for_a_layer_that_is_not_listed() -> None:
    code = (
        "import sys; from curation import pii; pii.Scanner(pii.ScrubRule(layers=('names',)));"
        "print([m for m in ('spacy', 'transformers', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
