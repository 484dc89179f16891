"""Real text, labelled where it can be known and left open where it cannot: what made-up sentences lack.

Most of what a names model must learn from real text is what is *no* name. A word in small letters in a text that uses
capitals is none; a capitalised one is, where a title, a first name or the ending of a firm says so; whatever else is
capitalised stays open (``None``) and takes no part in the loss. The shared data beside the project is read where it is
there; the sets that the model is scored on are not.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from curation.pii import words
from training.names.lexicon import TITLES
from training.names.sentences import Values

Tagged = tuple[str, list[str | None]]
"""A text, and the label of each of its tokens: an entity type, ``O``, or None where nobody knows."""

_LONGEST = 70  # tokens of one piece
_PREPOSITIONS = frozenset({"in", "at", "near", "from", "to", "of", "around", "outside", "leaving", "reached"})
_SINCE = frozenset({"in", "since", "from", "until", "by", "of", "before", "after", "during"})
_FIRMS = frozenset(
    """Inc Ltd LLC PLC Corp Corporation GmbH Company University College Institute Bank Airlines Hospital Foundation Group
    Council Committee Ministry Department Association Society Agency Party Club Museum Holdings Press Church""".split()
)
_MONTHS = frozenset("January February April June July August September October November December".split())
_DAYS = frozenset("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
_TITLES = frozenset(t.rstrip(".") for t in TITLES if t[0].isupper())
_ENDS = frozenset('.!?:;"“”‘\n-–—*•')


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of a few sentences."""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = " ".join(paragraph.split()) if len(paragraph) > 400 else paragraph.strip()
        while paragraph:
            if len(paragraph) < 420:
                yield paragraph
                break
            cut = paragraph.rfind(". ", 60, 400) + 1 or paragraph.rfind(" ", 60, 400)
            if cut <= 0:
                break
            yield paragraph[:cut]
            paragraph = paragraph[cut:].strip()


def tagged(text: str, lexicon: Mapping[int, int]) -> Tagged:
    """A piece of real text with what can be known of its tokens."""
    found = words.tokens(text)
    told = [lexicon.get(words.key(word), 0) for word in found.words]
    mixed = words.case_of(text) == words.MIXED
    return text, (_cased if mixed else _caseless)(found.words, told)


def _caseless(tokens: Sequence[str], told: Sequence[int]) -> list[str | None]:
    """In a text without capitals a word is known to be no name only where it is common, or common and no name."""
    return [
        "O" if not word[0].isalnum() or (word.isdigit() and len(word) < 3) or _is_plain(entry, 3, 6) else None
        for word, entry in zip(tokens, told, strict=True)
    ]


def _is_plain(entry: int, unnamed: int, named: int) -> bool:
    return words.common(entry) >= (named if entry & 31 else unnamed)


def _cased(tokens: Sequence[str], told: Sequence[int]) -> list[str | None]:
    labels: list[str | None] = ["O"] * len(tokens)
    at = 0
    while at < len(tokens):
        word = tokens[at]
        if word.isdigit():
            labels[at] = _number(tokens, at)
        if not word[0].isupper():
            at += 1
            continue
        end = at + 1
        while end < len(tokens) and tokens[end][0].isupper():
            end += 1
        initial = at == 0 or tokens[at - 1] in _ENDS
        labels[at:end] = _run(tokens, told, at, end, initial)
        at = end
    for place in range(1, len(tokens) - 1):  # a full stop after a title belongs to it
        if tokens[place] == "." and labels[place - 1] == "TITLE" and tokens[place - 1] in _TITLES:
            labels[place] = "TITLE"
    return labels


def _number(tokens: Sequence[str], at: int) -> str | None:
    number, before = tokens[at], tokens[at - 1] if at else ""
    after = tokens[at + 1] if at + 1 < len(tokens) else ""
    if len(number) == 4 and number[:2] in ("18", "19", "20") and before in _SINCE:
        return "DATE_TIME"
    if after == "years" and at + 2 < len(tokens) and tokens[at + 2] == "old":
        return "AGE"
    return "O" if len(number) < 4 and after.islower() else None


def _run(tokens: Sequence[str], told: Sequence[int], start: int, end: int, initial: bool) -> list[str | None]:
    """Labels for a run of capitalised tokens."""
    if tokens[start] in _TITLES and end - start == 1 and start + 1 < len(tokens) and tokens[start + 1] == ".":
        return ["TITLE"]
    if tokens[start] in _TITLES and end - start > 1:
        return ["TITLE", *["PERSON"] * (end - start - 1)]
    after_title = start > 1 and tokens[start - 1] == "." and tokens[start - 2] in _TITLES
    if after_title:
        return ["PERSON"] * (end - start)
    if initial and _is_plain(told[start], 3, 5):
        rest = _run(tokens, told, start + 1, end, False) if end - start > 1 else []
        return ["O", *rest]
    first, size = told[start], end - start
    names = [entry & 31 for entry in told[start:end]]
    if tokens[start] == "I" or (size == 1 and words.common(first) >= 6):
        return ["O"] if size == 1 else ["O", *_run(tokens, told, start + 1, end, False)]
    if tokens[end - 1] in _FIRMS and size > 1:
        return ["ORGANIZATION"] * size
    if all(flags & words.COUNTRY for flags in names):
        return ["LOCATION"] * size
    if size == 1 and names[0] & words.PEOPLE:  # German, Jordan and Christian are first names too
        return [None if names[0] & words.FIRST else "NRP"]
    if size == 1 and (tokens[start] in _MONTHS or tokens[start] in _DAYS):
        return ["DATE_TIME"]
    if size in (2, 3) and names[0] & words.FIRST and names[-1] & words.LAST and words.common(first) < 3:
        return ["PERSON"] * size
    if size == 1 and names[0] & words.FIRST and not names[0] & words.PLACE and words.common(first) < 2:
        return ["PERSON"]
    if size == 1 and names[0] == words.PLACE and not initial and tokens[start - 1] in _PREPOSITIONS:
        return ["LOCATION"]
    return [None] * size


# --- the shared data ----------------------------------------------------------------------------------------


def real_texts(data: Path) -> Iterator[str]:
    """Texts of the shared data that nothing is scored on: novels, news, dialogues, questions, notices."""
    for name in ("text-eltec-eng/novels.txt.gz", "text-peps/peps.txt.gz"):
        with gzip.open(data / name, "rt", encoding="utf-8") as file:
            yield from file.read().split("<|document|>")
    for path in sorted((data / "dedup-mccormick-articles").glob("articles_2500.train")):
        yield from (
            line.split(" ", 1)[-1] for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
        )
    for path in sorted((data / "pref-hh-rlhf").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            yield from (json.loads(line)["chosen"].replace("\n\n", "\n") for line in file)
    for name in ("adversarial_qa_dbert_based_on", "cosmos_qa_description_context_question_text", "ropes_prompt_beginning",
                 "dbpedia_14_given_a_choice_of_categories_", "paws_labeled_final_Meaning"):  # fmt: skip
        with (data / "instr-p3-permissive" / f"{name}.jsonl").open(encoding="utf-8") as file:
            yield from (json.loads(line)["prompt"] for line in file)
    with (data / "instr-gsm8k" / "train.jsonl").open(encoding="utf-8") as file:
        yield from (json.loads(line)["question"] for line in file)
    with (data / "intent-banking77" / "train.csv").open(encoding="utf-8") as file:
        yield from (row["text"] for row in csv.DictReader(file))
    with (data / "ws-lfr-sms" / "train.csv").open(encoding="utf-8") as file:
        yield from (next(iter(row.values())) or "" for row in csv.DictReader(file))
    spoken = json.loads((data / "intent-clinc150" / "data_full.json").read_text(encoding="utf-8"))
    yield from (text for text, _ in spoken["train"])


_SLOTS = {"name": "PERSON", "phone_number": "PHONE_NUMBER", "card_number": "CREDIT_CARD"}


def support_chats(data: Path, lexicon: Mapping[int, int]) -> Iterator[Tagged]:
    """The finance turns of MultiDoGO (airline is scored) with their names, telephone and card numbers.

    Its gold misses names, so a word without a slot is known to be none only where it is common.
    """
    for split in ("train", "dev"):
        with (data / "support-multidogo" / "finance" / f"{split}.tsv").open(encoding="utf-8") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                said, slots = (row.get("utterance") or "").split(), (row.get("slot-labels") or "").split()
                if said and len(said) == len(slots):
                    yield _from_slots(said, slots, lexicon)


def _from_slots(said: Sequence[str], slots: Sequence[str], lexicon: Mapping[int, int]) -> Tagged:
    text = " ".join(said)
    labels: list[str | None] = []
    for word, slot in zip(said, slots, strict=True):
        for token in words.TOKEN.findall(word):
            kind = _SLOTS.get(slot)
            if kind == "CREDIT_CARD" and len(token) < 12:
                kind = None
            plain = slot == "O" and (
                not token[0].isalnum() or _is_plain(lexicon.get(words.key(token), 0), 3, 5)
            )
            labels.append("O" if plain else kind)
    found = words.tokens(text)
    return (text, labels) if len(found.words) == len(labels) else (text, [None] * len(found.words))


def biographies(data: Path, lexicon: Mapping[int, int]) -> Iterator[Tagged]:
    """Wikipedia's first sentences in small letters, with the name and nationality that their infobox gives."""
    path = data / "instr-p3-permissive" / "wiki_bio_who.jsonl"
    with path.open(encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            name = re.search(r"^- (?:name|full ?name): (.+)$", row["prompt"], re.MULTILINE)
            people = re.search(r"^- nationality: (\w+)$", row["prompt"], re.MULTILINE)
            if name:
                known = {w: "PERSON" for w in words.TOKEN.findall(name[1]) if w.isalpha() and len(w) > 1}
                known |= {people[1]: "NRP"} if people else {}
                yield from (_known(piece, known, lexicon) for piece in pieces(row["completion"][:1200]))


def _known(text: str, known: Mapping[str, str], lexicon: Mapping[int, int]) -> Tagged:
    text, labels = tagged(text, lexicon)
    given = (known.get(word) for word in words.tokens(text).words)
    return text, [said or label for said, label in zip(given, labels, strict=True)]


def _renamed(row: Tagged, values: Values) -> Tagged:
    """A piece with other people, places and firms in it: what stands around a name is real, and the name is any name."""
    text, labels = row
    found = words.tokens(text)
    out: list[str] = []
    fresh: list[str | None] = []
    at = i = 0
    while i < len(labels):
        end = i + 1
        kind = labels[i]
        while end < len(labels) and labels[end] == kind:
            end += 1
        if kind in _SLOT_OF:
            slots = _SLOT_OF[kind]
            new = getattr(values, values.pick(slots if end - i > 1 else slots[-1:]))()
            out += [text[at : found.starts[i]], new]
            fresh += [kind] * len(words.TOKEN.findall(new))
            at = found.ends[end - 1]
        else:
            fresh += labels[i:end]
        i = end
    made = "".join([*out, text[at:]])
    return (made, fresh) if len(words.tokens(made).words) == len(fresh) else row


_SLOT_OF = {
    "PERSON": ("name", "first"),
    "LOCATION": ("city", "country"),
    "ORGANIZATION": ("org", "org"),
    "NRP": ("nrp", "nrp"),
}


def silver(data: Path, lexicon: Mapping[int, int], count: int, seed: int) -> list[Tagged]:
    """Up to ``count`` pieces of real text with partial labels, drawn by ``seed``; some with their case taken off."""
    draw = random.Random(seed)
    drawn = [
        p
        for text in real_texts(data)
        for p in pieces(text)
        if draw.random() < (0.12 if len(text) > 20_000 else 1)
    ]
    draw.shuffle(drawn)
    values = Values(seed)
    made = [tagged(piece, lexicon) for piece in drawn[:count]]
    made = [_renamed(row, values) if draw.random() < 0.5 else row for row in made]
    made = [_recased(row, draw) for row in made if len(row[1]) <= _LONGEST * 2]
    extra = [*support_chats(data, lexicon), *biographies(data, lexicon)]
    return made + [
        row for row in extra if any(label not in (None, "O") for label in row[1]) or draw.random() < 0.3
    ]


def _recased(row: Tagged, draw: random.Random) -> Tagged:
    """One piece in eight in small letters, one in sixteen in capitals; what was known of it stays known."""
    text, labels = row
    roll = draw.random()
    changed = text.lower() if roll < 0.125 else text.upper() if roll < 0.1875 else text
    return (
        (changed, labels)
        if len(changed) == len(text) and len(words.tokens(changed).words) == len(labels)
        else row
    )
