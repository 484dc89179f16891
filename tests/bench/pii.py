"""How fast the pattern layer scans beside Presidio's own engine, and how its spans differ, in one run.

    python -m tests.bench.pii [--rows 2000] [--repeat 3] [--synth FILE]

Prints texts per second of CPU time on one core for both, for the names layer, and for scrubbing with both layers to its
end (aliases written, the result scanned again), on generated sentences and, where it is there, on presidio-research's
synthetic set (evaluation only), with every difference in what the patterns find counted by type.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from curation.pii.names import NamesLayer
from curation.pii.patterns import Deadline, PatternLayer, registered
from curation.pii.phones import enough_digits
from curation.pii.rule import THRESHOLD, ScrubRule
from curation.pii.scrub import Scrubber, Unit
from curation.pii.spans import Span

SYNTH = Path("pii-presidio-synth-v2") / "synth_dataset_v2.json"

PLAIN = (
    "Where is my parcel? It was due yesterday and nobody called.",
    "Thanks, that worked. You can close the ticket now.",
    "I would like to change the delivery address for all open orders, please.",
    "Our driver could not reach you. We will try again tomorrow between nine and twelve.",
    "The pallet arrived with two boxes missing, see the note on the delivery slip.",
    "Could you explain why the invoice is higher than the quote? The weight did not change.",
    "Hello! The order has 12 items, 3 of them damaged.",
    "It rained on the loading dock for 45 minutes, so everything is late by an hour.",
)
TEMPLATES = (
    "You can reach me at {email} or by phone at {phone}.",
    "My card {card} was charged twice, please refund one.",
    "Transfer the money to bank account {iban} before {date}.",
    "My social security number is {ssn}, do you need anything else?",
    "The server {ip} (mac {mac}) stopped answering.",
    "See {url} for the tracking page of order {order}.",
    "Account number {account} with your bank, driver license {license}.",
    "Call {phone} and ask for extension 12.",
    "My NHS number is {nhs}.",
    "The wallet {crypto} is the one I use for bitcoin.",
    "Passport {passport} of the United States, issued {date}.",
    "Reference {uuid} in your log.",
    "Order {order} shipped on {date}, weight 12.5 kg, 3 pallets.",
    "Write to {email}, {email} or {email}.",
)


def luhn_check(body: str) -> str:
    """The digit that makes ``body`` a valid card number."""
    total = sum(sum(divmod(int(d) * (2 - i % 2), 10)) for i, d in enumerate(reversed(body)))
    return str(-total % 10)


class Values:
    """Made-up values that pass the checks of their kind; the same seed gives the same ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def digits(self, count: int) -> str:
        return "".join(self.random.choices("0123456789", k=count))

    def email(self) -> str:
        name = self.random.choice(("jane", "omar", "li.wei", "t.novak", "sales+eu"))
        host = self.random.choice(("acme", "north-sea", "mail"))
        return f"{name}{self.digits(2)}@{host}.{self.random.choice(('com', 'co.uk', 'org', 'de'))}"

    def phone(self) -> str:
        area, line = self.random.choice(("212", "415", "312", "617")), self.digits(4)
        shapes = (
            "({a}) 555-{x}",
            "{a}-736-{x}",
            "+1 {a} 736 {x}",
            "{a}736{x}",
            "+44 20 7946 {x}",
            "+49 30 90{x}12",
        )
        return self.random.choice(shapes).format(a=area, x=line)

    def card(self) -> str:
        body = self.random.choice(("4", "51", "6011"))
        body += self.digits(15 - len(body))
        number = body + luhn_check(body)
        return self.random.choice(
            (
                number,
                " ".join(number[i : i + 4] for i in range(0, 16, 4)),
                "-".join(number[i : i + 4] for i in range(0, 16, 4)),
            )
        )

    def iban(self) -> str:
        bban = "37040044" + self.digits(10)
        check = 98 - int(f"{bban}131400") % 97
        number = f"DE{check:02d}{bban}"
        return self.random.choice((number, " ".join(number[i : i + 4] for i in range(0, len(number), 4))))

    def ssn(self) -> str:
        return (
            f"{self.random.randint(101, 665)}-{self.random.randint(10, 98)}-{self.random.randint(1001, 9998)}"
        )

    def ip(self) -> str:
        if self.random.random() < 0.3:
            return ":".join(f"{self.random.randrange(1, 65535):x}" for _ in range(8))
        return ".".join(str(self.random.randint(1, 254)) for _ in range(4))

    def mac(self) -> str:
        return ":".join(f"{self.random.randrange(256):02x}" for _ in range(6))

    def url(self) -> str:
        return self.random.choice(
            ("https://www.acme.com/track/", "http://north-sea.org/t?id=", "acme.co.uk/")
        ) + self.digits(5)

    def order(self) -> str:
        return self.random.choice(("", "PO", "A-")) + self.digits(self.random.randint(4, 11))

    def date(self) -> str:
        day, month, year = (
            self.random.randint(1, 28),
            self.random.randint(1, 12),
            self.random.randint(1950, 2030),
        )
        return self.random.choice(
            (f"{month:02d}/{day:02d}/{year}", f"{year}-{month:02d}-{day:02d}", f"{day}.{month}.{year}")
        )

    def account(self) -> str:
        return self.digits(self.random.randint(8, 17))

    def license(self) -> str:
        return self.random.choice("ABCH") + self.digits(self.random.randint(5, 8))

    def passport(self) -> str:
        return self.digits(9)

    def nhs(self) -> str:
        while True:
            body = self.digits(9)
            check = 11 - sum(int(d) * (10 - i) for i, d in enumerate(body)) % 11
            if check < 11 and check != 10:
                return f"{body[:3]} {body[3:6]} {body[6:]}{check % 11}"

    def crypto(self) -> str:
        return self.random.choice(
            ("16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")
        )

    def uuid(self) -> str:
        hexa = f"{self.random.getrandbits(128):032x}"
        return f"{hexa[:8]}-{hexa[8:12]}-4{hexa[13:16]}-a{hexa[17:20]}-{hexa[20:]}"

    def fill(self, template: str) -> tuple[str, list[tuple[str, str]]]:
        """A template with values in it, and the (kind, value) pairs in order."""
        text, used = template, []
        while "{" in text:
            kind = text[text.index("{") + 1 : text.index("}")]
            value = getattr(self, kind)()
            used.append((kind, value))
            text = text.replace(f"{{{kind}}}", value, 1)
        return text, used


def sentences(count: int, seed: int = 7, share: float = 0.5) -> list[str]:
    """``count`` support messages of one to four sentences; each sentence holds values with probability
    ``share``."""
    values = Values(seed)
    pick = values.random
    return [
        " ".join(
            values.fill(pick.choice(TEMPLATES))[0] if pick.random() < share else pick.choice(PLAIN)
            for _ in range(pick.randint(1, 4))
        )
        for _ in range(count)
    ]


def reference_engine(*, surface_lemmas: bool = True) -> Any:
    """Presidio's AnalyzerEngine with a blank spaCy pipeline, every default recogniser that needs no model, no
    network.

    A blank pipeline has empty lemmas, and then no context word ever counts; ``surface_lemmas`` takes words as
    they are written, so that context works as it does with a model.
    """
    import spacy
    import tldextract
    from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp = {"en": spacy.blank("en")}

        def _doc_to_nlp_artifact(self, doc: Any, language: str) -> Any:
            if surface_lemmas:
                for token in doc:
                    token.lemma_ = token.text
            return super()._doc_to_nlp_artifact(doc, language)

    registry = RecognizerRegistry(registered("en"), supported_languages=["en"])
    return AnalyzerEngine(registry=registry, nlp_engine=Blank(), supported_languages=["en"])


def by_reference(engine: Any, text: str) -> list[Span]:
    """What the engine finds, without phone numbers of fewer than seven digits, which this project does not
    look for."""
    found = engine.analyze(text, "en", score_threshold=THRESHOLD)
    spans = (Span(r.start, r.end, r.entity_type, r.score) for r in found)
    return sorted(s for s in spans if s.entity_type != "PHONE_NUMBER" or enough_digits(text[s.start : s.end]))


def timed(work: Callable[[str], object], texts: Sequence[str]) -> float:
    """Texts per second of CPU time."""
    for text in texts[:50]:
        work(text)
    start = time.process_time()
    for text in texts:
        work(text)
    return len(texts) / (time.process_time() - start)


def timed_together(texts: Sequence[str], block: int = 64) -> float:
    """Texts per second of CPU time that are scrubbed in blocks, as ``tilth scrub`` does, by a scrubber that knows no
    alias; the names layer has seen the words before, as most words of a large file."""
    scrubber = Scrubber(ScrubRule(layers=("patterns", "names"), timeout=60.0), os.urandom(32))
    units = [Unit([text]) for text in texts]
    scrubber.scrub_all(units[:50])
    start = time.process_time()
    for at in range(0, len(units), block):
        scrubber.scrub_all(units[at : at + block])
    return len(texts) / (time.process_time() - start)


def compare(name: str, texts: Sequence[str], repeat: int) -> Iterator[str]:
    """The lines of the report on one set of texts; in every round all take their turn, since the machine may change."""
    plain, engine = reference_engine(surface_lemmas=False), reference_engine()
    raw = PatternLayer(["en"], threshold=THRESHOLD, mended=False)
    layer = PatternLayer(["en"], threshold=THRESHOLD)

    names = NamesLayer()

    def ours(text: str) -> list[Span]:
        return layer.find(text, "en", Deadline(60))

    works: dict[str, Callable[[], float]] = {
        "AnalyzerEngine, blank": lambda: timed(lambda t: plain.analyze(t, "en"), texts),
        "AnalyzerEngine, context": lambda: timed(
            lambda t: engine.analyze(t, "en", score_threshold=THRESHOLD), texts
        ),
        "pattern layer": lambda: timed(ours, texts),
        "names layer": lambda: timed(lambda t: names.find(t, "en", Deadline(60)), texts),
        "scrubbing, both layers": lambda: timed_together(texts),
    }
    rounds = [{label: work() for label, work in works.items()} for _ in range(repeat)]
    yield f"{name}: {len(texts):,} texts of {sum(map(len, texts)) / len(texts):.0f} characters"
    for label in works:
        rate = median(told[label] for told in rounds)
        ratios = sorted(told[label] / told["AnalyzerEngine, blank"] for told in rounds)
        yield f"  {label:<26}{rate:>9,.0f} texts/s   x{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"
    missing, extra = Counter[str](), Counter[str]()
    mended = 0
    for text in texts:
        theirs, here = set(by_reference(engine, text)), set(raw.find(text, "en", Deadline(60)))
        missing.update(s.entity_type for s in theirs - here)
        extra.update(s.entity_type for s in here - theirs)
        mended += set(ours(text)) != here
    yield f"  spans only the engine finds: {dict(missing)}; only the layer finds: {dict(extra)}"
    yield f"  texts that the listed corrections change: {mended}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pii")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument(
        "--repeat", type=int, default=3, help="rounds; medians are printed, with their spread"
    )
    data = Path(os.environ.get("TILTH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    parser.add_argument("--synth", type=Path, default=data / SYNTH)
    options = parser.parse_args(arguments)
    sets = {
        "generated, half the sentences with values": sentences(options.rows),
        "generated, one sentence in ten with values": sentences(options.rows, share=0.1),
    }
    if options.synth.exists():
        rows = json.loads(options.synth.read_text(encoding="utf-8"))
        sets["presidio-research synth v2"] = [row["full_text"] for row in rows]
    for name, texts in sets.items():
        for line in compare(name, texts, options.repeat):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
