"""A freight company's support desk, made up: inquiries, policies, an evaluation set, and the truth about all
their faults.

Every row and every fault comes from one seed: same seed, same bytes. Nothing is downloaded, and no person,
company or number is real: personal data is Faker's, telephone numbers lie in ranges that are reserved for
fiction. Nothing here knows how the product looks for a fault, and no rate is tuned to what it finds.
"""

from __future__ import annotations

import json
import random
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from shutil import copyfile
from typing import Any

from curation.errors import MissingExtra, UsageError
from curation.text import jaccard, shingles

_HERE = Path(__file__).parent
_WORDS = tomllib.loads((_HERE / "particulars.toml").read_text(encoding="utf-8"))

# What the desk is asked, with its share of the inquiries. Rare intents are rare on a real desk too.
SHARES = {
    "route_delay": 0.17,
    "customs_missing_document": 0.13,
    "billing_dispute": 0.12,
    "claim_damage": 0.10,
    "customs_duty_question": 0.09,
    "billing_copy_invoice": 0.08,
    "route_reroute_request": 0.08,
    "hazmat_classification": 0.06,
    "route_lost_container": 0.05,
    "claim_status": 0.04,
    "billing_payment_terms": 0.04,
    "claim_shortage": 0.025,
    "hazmat_packaging": 0.015,
}
INTENTS = tuple(SHARES)

RATES = {
    "draft": 0.70,  # rows whose source wrote a draft class
    "wrong_draft": 0.15,  # of those
    "thread": 0.10,  # cases with further mails
    "exact": 0.03,
    "near": 0.03,
    "hard_near": 0.01,
    "contradiction": 0.015,
    "boilerplate": 0.02,
    "leak_exact": 0.01,
    "leak_near": 0.005,
}
_TALK = {"asides": 0.6, "distractions": 0.6}  # how many mails also say something beside the point
_EVAL_ROWS = 200
_DISTINCT = 0.6  # inquiries of one template are further apart than this, unless the fault is planted


@dataclass(frozen=True)
class Truth:
    """What was planted, by record id (the rows' ``id``): what a perfect curator would find, and nothing else.

    ``exact`` and ``near`` are lists of ``{"id", "of", ...}``: the later row and the earlier one that it
    repeats; ``near`` holds the Jaccard index of the 5-word shingles as ``similarity``, of prompt and draft
    together. ``personal`` spans count Unicode code points of the prompt. ``malformed`` counts physical lines
    from 1.
    """

    seed: int
    rows: int
    gold: dict[str, str]
    exact: list[dict[str, Any]] = field(default_factory=list)
    near: list[dict[str, Any]] = field(default_factory=list)
    threads: dict[str, list[str]] = field(default_factory=dict)
    personal: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[dict[str, Any]] = field(default_factory=list)
    contradictions: list[dict[str, Any]] = field(default_factory=list)
    boilerplate: list[str] = field(default_factory=list)
    leaks: list[dict[str, Any]] = field(default_factory=list)
    malformed: list[dict[str, Any]] = field(default_factory=list)
    overlap: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=lambda: dict(RATES))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def generate(out_dir: str | Path, *, seed: int = 7, inquiries: int = 3000) -> Truth:
    """Write the demo's domain into ``out_dir`` and return the truth about it (also in ``truth.json``).

    ``inquiries.jsonl`` holds ``inquiries`` well-formed rows and, among them, malformed lines;
    ``inquiries-next.jsonl`` is the next month's export, a quarter of it already known; ``eval.jsonl`` an
    outside benchmark, some rows of which leak into the inquiries; ``policies/*.md`` what answers may rest on.
    Existing files of these names are replaced. Raises :class:`UsageError` for fewer than 200 inquiries,
    :class:`MissingExtra` without Faker.
    """
    if inquiries < 200:
        raise UsageError(
            f"{inquiries} inquiries are too few to plant every fault", next="Ask for 200 or more"
        )
    out = Path(out_dir)
    (out / "policies").mkdir(parents=True, exist_ok=True)
    desk = _Desk(seed)
    evaluation = [desk.fresh(f"EVAL-{i:04d}") for i in range(_EVAL_ROWS)]
    rows, truth = _month(desk, evaluation, seed, inquiries)
    coming = _next_month(desk, rows, truth, inquiries // 5)
    lines = _with_malformed(desk.random, [_line(row) for row in rows], truth)
    _write(out / "inquiries.jsonl", lines)
    _write(out / "inquiries-next.jsonl", [_line(row) for row in coming])
    _write(
        out / "eval.jsonl",
        [_line({k: row[k] for k in ("id", "prompt")} | {"completion": row["gold"]}) for row in evaluation],
    )
    for passage in sorted((_HERE / "policies").glob("*.md")):
        copyfile(passage, out / "policies" / passage.name)
    _write(out / "truth.json", [json.dumps(truth.as_dict(), ensure_ascii=False, indent=1).encode()])
    return truth


def templates() -> dict[str, list[str]]:
    """Intent -> its hand-written templates, from ``templates.txt``."""
    found: dict[str, list[str]] = {}
    lines = (_HERE / "templates.txt").read_text(encoding="utf-8").splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#"))
    for section in body.split("\n== ")[1:]:
        intent, _, text = section.partition("\n")
        found[intent.strip()] = [" ".join(p.split()) for p in text.split("\n\n") if p.strip()]
    return found


# One month --------------------------------------------------------------------------------------------------

Row = dict[str, Any]


def _month(desk: _Desk, evaluation: Sequence[Row], seed: int, n: int) -> tuple[list[Row], Truth]:
    """The well-formed rows of the first export in order of time, and the truth about them."""
    truth = Truth(seed=seed, rows=n, gold={})
    planted = {
        name: round(RATES[name] * n)
        for name in ("exact", "near", "hard_near", "contradiction", "boilerplate")
    }
    leaks = round(RATES["leak_exact"] * n), round(RATES["leak_near"] * n)
    ids = _ids("INQ")
    base = desk.cases(n - sum(planted.values()) - sum(leaks), ids)
    desk.drafts(base)
    desk.personal(base)
    sources = _sources(desk, base, planted)
    rows = list(base)
    rows += [desk.copy(next(sources), next(ids), truth) for _ in range(planted["exact"])]
    rows += [desk.rephrase(next(sources), next(ids), truth, 0.8, 1.0) for _ in range(planted["near"])]
    rows += [desk.rephrase(next(sources), next(ids), truth, 0.45, 0.8) for _ in range(planted["hard_near"])]
    drafted = (row for row in sources if row["completion"])
    rows += [desk.contradict(next(drafted), next(ids), truth) for _ in range(planted["contradiction"])]
    rows += [desk.boilerplate(next(ids), truth) for _ in range(planted["boilerplate"])]
    leaked = desk.random.sample(list(evaluation), sum(leaks))
    rows += [desk.leak(row, next(ids), truth, near=i >= leaks[0]) for i, row in enumerate(leaked)]
    rows.sort(key=lambda row: (row["time"], row["id"]))
    for row in rows:
        _note(row, truth)
    return [_public(row) for row in rows], truth


def _sources(desk: _Desk, base: Sequence[Row], planted: dict[str, int]) -> Iterator[Row]:
    """Rows to plant repetitions of, each once, so that no two repetitions have the same source."""
    wanted = planted["exact"] + planted["near"] + planted["hard_near"] + 3 * planted["contradiction"]
    return iter(desk.random.sample(list(base), wanted))


def _next_month(desk: _Desk, rows: Sequence[Row], truth: Truth, n: int) -> list[Row]:
    """Next month's export: a quarter are rows of this one, unchanged; the rest are new. Truth covers the new
    ones too.
    """
    again = desk.random.sample(list(rows), n // 4)
    desk.start += timedelta(days=31)
    new = desk.cases(n - len(again), _ids("NXT"))
    desk.drafts(new)
    desk.personal(new)
    new.sort(key=lambda row: (row["time"], row["id"]))
    for row in new:
        _note(row, truth)
    truth.overlap.extend(row["id"] for row in again)
    return [*again, *(_public(row) for row in new)]


def _ids(prefix: str) -> Iterator[str]:
    number = 0
    while True:
        number += 1
        yield f"{prefix}-{number:05d}"


def _note(row: Row, truth: Truth) -> None:
    """Write down what the finished row carries, whichever way it came to carry it."""
    if row["gold"] is not None:
        truth.gold[row["id"]] = row["gold"]
        if row["completion"] and row["completion"] != row["gold"]:
            truth.wrong.append({"id": row["id"], "draft": row["completion"], "gold": row["gold"]})
    truth.threads.setdefault(row["thread"], []).append(row["id"])
    for kind, value in row["_personal"]:
        for found in re.finditer(re.escape(value), row["prompt"]):
            span = {"start": found.start(), "end": found.end()}
            truth.personal.append(
                {"id": row["id"], "field": "prompt", "entity_type": kind, "text": value, **span}
            )


def _public(row: Row) -> Row:
    return {key: row[key] for key in ("id", "thread", "time", "prompt", "completion", "gold")}


class _Desk:
    """Everything random about the desk, drawn from one generator; and all texts so far, so that none repeats
    by chance.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.fake = _faker(seed)
        self.templates = templates()
        self.start = datetime(2026, 3, 2, 7, 30)
        self.seen: dict[tuple[str, int], list[set[str]]] = {}
        self.companies = [self.fake.company() for _ in range(60)]

    # Texts

    def case(self) -> dict[str, str]:
        """The particulars of one shipment: every slot of the templates."""
        pick, number = self.random.choice, self.random.randint
        un, dangerous = pick(list(_WORDS["dangerous"].items()))
        port = pick(_WORDS["ports"])
        letters = "".join(self.random.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=3))
        day = datetime(2026, 1, 1) + timedelta(days=number(0, 300))
        return {
            "goods": pick(_WORDS["goods"]),
            "port": port,
            "origin": pick(_WORDS["origins"]),
            "dest": pick(_WORDS["destinations"]),
            "vessel": pick(_WORDS["vessels"]),
            "container": f"{letters}U {number(100000, 999999)}-{number(0, 9)}",
            "bl": f"B/L {letters}{number(10000, 99999)}",
            "ref": pick(("shipment ", "ref. ", "")) + f"FR-{number(100000, 999999)}",
            "invoice": pick(("invoice ", "INV ", "invoice no. ")) + f"{number(20000, 99999)}",
            "amount": pick(
                (f"EUR {number(180, 48000):,}", f"{number(180, 48000)} euros", f"USD {number(200, 60000):,}")
            ),
            "date": pick((f"{day:%d %B}", f"{day:%d.%m.}", f"{day:%B} {day.day}")),
            "days": str(number(3, 60)),
            "pct": str(number(2, 39)),
            "qty": str(number(4, 960)),
            "packs": pick(_WORDS["packs"]),
            "company": pick(self.companies),
            "un": un,
            "dg": dangerous,
            "hs": pick(_WORDS["tariff_codes"]),
            "year": str(number(2009, 2024)),
            "po": str(number(10000, 99999)),
            "first": self.fake.first_name(),
        }

    def text(self, intent: str, case: dict[str, str]) -> str:
        """One mail about the case, unlike every other of its template: opener, template, an aside, closer, a
        voice.
        """
        number = self.random.randrange(len(self.templates[intent]))
        known = self.seen.setdefault((intent, number), [])
        for _ in range(50):
            text = self._compose(self.templates[intent][number], case)
            form = shingles(text)
            if all(jaccard(form, other) < _DISTINCT for other in known):
                known.append(form)
                return text
            case |= self.case()
        raise UsageError(f"template {number} of {intent} is used up", next="Ask for fewer inquiries")

    def _compose(self, template: str, case: dict[str, str]) -> str:
        pick = self.random.choice
        body = re.sub(r"\[([^\]]*)\]", lambda found: pick(found[1].split("|")), template)
        opener = "" if re.match(r"(?i)(hello|hi|dear|good|subject)\b", body) else pick(_WORDS["openers"])
        talk = [pick(_WORDS[kind]) for kind, share in _TALK.items() if self.random.random() < share]
        parts = [body, *talk] if self.random.random() < 0.6 else [*talk, body]
        parts = [opener, *parts, pick(_WORDS["closers"])]
        return self._voice(" ".join(filter(None, parts)).format(**case))

    def _voice(self, text: str) -> str:
        """Some write without capitals, some with a slip of the finger; most as they should."""
        draw = self.random.random()
        if draw < 0.12:
            return text.lower()
        if draw < 0.24:
            words = text.split(" ")
            place = self.random.choice(
                [i for i, word in enumerate(words) if word.isalpha() and len(word) > 4] or [0]
            )
            words[place] = words[place][:2] + words[place][3:]
            return " ".join(words)
        return text

    def intent(self) -> str:
        """One intent, by share."""
        return self.random.choices(INTENTS, list(SHARES.values()))[0]

    def when(self) -> str:
        """A moment of the month, in office hours."""
        moment = self.start + timedelta(days=self.random.randrange(28), minutes=self.random.randrange(660))
        return moment.isoformat(timespec="minutes")

    def later(self, time: str) -> str:
        """A moment within the nine days after another one."""
        moment = datetime.fromisoformat(time) + timedelta(minutes=self.random.randint(20, 12_000))
        return moment.isoformat(timespec="minutes")

    # Rows

    def row(self, key: str, thread: str, intent: str, case: dict[str, str]) -> Row:
        """A finished mail without draft or personal data."""
        prompt = self.text(intent, case)
        row = {
            "id": key,
            "thread": thread,
            "time": self.when(),
            "prompt": prompt,
            "completion": None,
            "gold": intent,
        }
        return row | {"_personal": []}

    def fresh(self, key: str, case: dict[str, str] | None = None) -> Row:
        """The first mail of a case."""
        return self.row(key, f"T-{key}", self.intent(), case or self.case())

    def cases(self, n: int, ids: Iterator[str]) -> list[Row]:
        """``n`` mails; some cases have two to four, which share thread, particulars and intent."""
        rows: list[Row] = []
        while len(rows) < n:
            case = self.case()
            rows.append(first := self.fresh(next(ids), case))
            more = self.random.randint(1, 3) if self.random.random() < RATES["thread"] else 0
            for _ in range(min(more, n - len(rows))):
                later = self.row(next(ids), first["thread"], first["gold"], case)
                rows.append(later | {"time": self.later(rows[-1]["time"])})
        return rows

    def drafts(self, rows: Sequence[Row]) -> None:
        """Let the source write a class on most rows, and the wrong one on some of those."""
        for row in rows:
            if self.random.random() < RATES["draft"]:
                wrong = self.random.random() < RATES["wrong_draft"]
                row["completion"] = (
                    self.random.choice(_WORDS["confused"][row["gold"]]) if wrong else row["gold"]
                )

    def personal(self, rows: Sequence[Row]) -> None:
        """Add personal data at the end of some mails."""
        for row in rows:
            for kind, rule in _WORDS["personal"].items():
                if self.random.random() < rule["share"]:
                    value = self._value(kind)
                    row["prompt"] += " " + self.random.choice(rule["phrases"]).format(value)
                    row["_personal"].append((kind, value))

    def _value(self, kind: str) -> str:
        fake = self.fake
        makers: dict[str, Callable[[], str]] = {
            "EMAIL_ADDRESS": fake.safe_email,
            "PHONE_NUMBER": lambda: fake.numerify(
                self.random.choice(("+44 20 7946 0###", "+1 212 555 01##", "(415) 555-01##"))
            ),
            "IBAN_CODE": fake.iban,
            "CREDIT_CARD": lambda: fake.credit_card_number(card_type="visa16"),
            "US_SSN": fake.ssn,
            "IP_ADDRESS": fake.ipv4_public,
            "PERSON": fake.name,
        }
        return makers[kind]()

    # Faults

    def copy(self, row: Row, key: str, truth: Truth) -> Row:
        """The same mail with another id: byte for byte, in capitals, or with other white space."""
        how = self.random.choice(("same", "same", "case", "space"))
        change: dict[str, Callable[[str], str]] = {
            "same": str,
            "case": str.upper,
            "space": lambda text: "  " + text.replace(" ", "  ", 3) + "\n",
        }
        twin = self._twin(row, key, change[how](row["prompt"]))
        twin["_personal"] = [
            (kind, change["case"](value) if how == "case" else value) for kind, value in row["_personal"]
        ]
        truth.exact.append({"id": key, "of": row["id"], "how": how})
        return twin

    def rephrase(self, row: Row, key: str, truth: Truth, low: float, high: float) -> Row:
        """The same mail with words changed until its similarity lies within ``[low, high)``."""
        twin = self._twin(row, key, row["prompt"])
        kept = {word for _, value in row["_personal"] for word in value.split()}
        for _ in range(200):
            twin["prompt"] = self._change_words(
                row["prompt"], kept, 1 if low >= 0.8 else self.random.randint(2, 5)
            )
            similarity = jaccard(shingles(_joined(row)), shingles(_joined(twin)))
            if low <= similarity < high:
                truth.near.append(
                    {"id": key, "of": row["id"], "similarity": round(similarity, 4), "hard": high <= 0.8}
                )
                return twin
        return self._append_words(row, twin, truth)

    def _append_words(self, row: Row, twin: Row, truth: Truth) -> Row:
        """A short mail cannot lose a word and stay similar: two more at its end keep it close."""
        twin["prompt"] = row["prompt"] + " Thanks again."
        similarity = jaccard(shingles(_joined(row)), shingles(_joined(twin)))
        truth.near.append(
            {"id": twin["id"], "of": row["id"], "similarity": round(similarity, 4), "hard": similarity < 0.8}
        )
        return twin

    def _change_words(self, text: str, kept: set[str], changes: int) -> str:
        words = text.split(" ")
        open_places = [i for i, word in enumerate(words) if word.isalpha() and word not in kept]
        for place in self.random.sample(open_places, min(changes, len(open_places))):
            word = words[place]
            words[place] = _WORDS["synonyms"].get(word.lower(), word + self.random.choice(("s", "e")))
        return " ".join(words)

    def contradict(self, row: Row, key: str, truth: Truth) -> Row:
        """The same mail, filed under another class."""
        twin = self._twin(row, key, row["prompt"])
        others = [c for c in (*_WORDS["confused"][row["gold"]], row["gold"]) if c != row["completion"]]
        twin["completion"] = self.random.choice(others)
        truth.contradictions.append(
            {"ids": [row["id"], key], "drafts": [row["completion"], twin["completion"]]}
        )
        return twin

    def boilerplate(self, key: str, truth: Truth) -> Row:
        """What machines write to machines: no intent, no draft."""
        prompt = self.random.choice(_WORDS["auto_replies"]).format(**self.case())
        truth.boilerplate.append(key)
        row = {
            "id": key,
            "thread": f"T-{key}",
            "time": self.when(),
            "prompt": prompt,
            "completion": None,
            "gold": None,
        }
        return row | {"_personal": []}

    def leak(self, row: Row, key: str, truth: Truth, *, near: bool) -> Row:
        """A row of the evaluation set among the inquiries, as it is or with a word changed."""
        twin = self._twin(row, key, self._change_words(row["prompt"], set(), 1) if near else row["prompt"])
        truth.leaks.append({"id": key, "eval": row["id"], "how": "near" if near else "exact"})
        return twin | {"completion": row["gold"]}

    def _twin(self, row: Row, key: str, prompt: str) -> Row:
        return row | {"id": key, "thread": f"T-{key}", "time": self.later(row["time"]), "prompt": prompt}


def _joined(row: Row) -> str:
    return "\n".join(filter(None, (row["prompt"], row["completion"])))


# Files ------------------------------------------------------------------------------------------------------


def _faker(seed: int) -> Any:
    try:
        from faker import Faker
    except ImportError as error:
        raise MissingExtra("demo", "faker") from error
    fake = Faker("en_US")
    fake.seed_instance(seed)
    return fake


_BROKEN: dict[str, Callable[[str], bytes]] = {
    "truncated JSON": lambda key: f'{{"id": "{key}", "prompt": "The truck is at the ga'.encode(),
    "not an object": lambda key: f'["{key}", "The truck is at the gate."]'.encode(),
    "no prompt": lambda key: f'{{"id": "{key}", "thread": "T-{key}"}}'.encode(),
    "empty prompt": lambda key: f'{{"id": "{key}", "prompt": "  "}}'.encode(),
    "prompt is an object": lambda key: f'{{"id": "{key}", "prompt": {{"text": "Hello"}}}}'.encode(),
    "not UTF-8": lambda key: f'{{"id": "{key}", "prompt": "Gr'.encode() + b"\xfc\xdfe aus K\xf6ln" + b'"}',
}


def _with_malformed(draw: random.Random, lines: list[bytes], truth: Truth) -> list[bytes]:
    """Put four lines of every broken kind among the others, and note their line numbers."""
    kinds = [kind for kind in _BROKEN for _ in range(4)]
    places = dict(zip(sorted(draw.sample(range(1, len(lines) + len(kinds)), len(kinds))), kinds, strict=True))
    good, mixed = iter(lines), []
    for number in range(1, len(lines) + len(kinds) + 1):
        mixed.append(_BROKEN[places[number]](f"BAD-{number:05d}") if number in places else next(good))
    truth.malformed.extend({"line": number, "kind": kind} for number, kind in places.items())
    return mixed


def _line(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def _write(path: Path, lines: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
