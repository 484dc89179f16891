"""Labeling functions for a freight company's support desk: what does this mail want?

Each says one thing that an experienced clerk knows, and keeps silent about the rest. They read the last
message only, know nothing of any particular customer, and never look at a draft or at gold.
"""

from __future__ import annotations

import csv
import functools
import re
from pathlib import Path

from curation.text import normalise
from curation.voting import Row, labeling_function

INTENTS = (
    "billing_copy_invoice",
    "billing_dispute",
    "billing_payment_terms",
    "claim_damage",
    "claim_shortage",
    "claim_status",
    "customs_duty_question",
    "customs_missing_document",
    "hazmat_classification",
    "hazmat_packaging",
    "route_delay",
    "route_lost_container",
    "route_reroute_request",
)

DOCUMENTS = re.compile(
    r"certificate of origin|packing list|commercial invoice|power of attorney"
    r"|phytosanitary|documents? incomplete"
)
LACK = re.compile(
    r"missing|forgotten|not attached|did not arrive|not in the file|lacking|on hold|still need|reject"
)
BREAKAGE = re.compile(
    r"\b(crushed|broken?|wet|soaked|torn|leaked|ruined|spoil\w*|dented|damaged?|upside down|forklift marks)\b"
)
MONEY_TERMS = re.compile(
    r"\binstal?ments?\b|days net|credit limit|letters? of credit|due on receipt|bank detail"
)
PACKAGING = re.compile(
    r"\b(overpack|placards?|jerricans?|drums?|diamonds|inner lining|un mark|fibreboard|labels)\b"
)
CLASSIFYING = re.compile(
    r"packing group|proper shipping name|which class|subsidiary risk|safety data sheet"
    r"|segregation|dangerous goods|hazard class"
)
ELSEWHERE = re.compile(
    r"redirect|divert|turned? around|change the destination|new (one|address) is|instead of"
    r"|discharged somewhere|by air"
)
LOST = re.compile(
    r"disappeared|vanished between|no record|not been seen|where .* is\b|never (discharged|scanned|reached)"
    r"|open a trace|wrong container"
)
OBJECTION = re.compile(
    r"wrong|twice|credit note|reject this|object|cancel|correct|nobody ever mentioned|difference back"
)
FEWER = re.compile(
    r"short delivery|only part of|less than ordered|\d+ .{0,40}(are|is) missing|does not agree|found fewer"
    r"|not all here|tickets .* differ|were gone"
)
UNDER_WAY = re.compile(
    r"(state|news) (of|about) our claim|decision|settlement|insurer (answered|asks|wishes)|for the claim"
    r"|when will it be paid"
)
UN_NUMBER = re.compile(r"\bun\s?(\d{4})\b")


def text(row: Row) -> str:
    """What the customer wrote last, normalised."""
    return normalise(row.messages[-1]["content"] if row.messages else row.prompt)


@functools.cache
def substances() -> frozenset[str]:
    """The UN numbers that the desk meets."""
    with open(Path(__file__).parent / "un_numbers.csv", encoding="utf-8", newline="") as file:
        return frozenset(line["un"] for line in csv.DictReader(file))


def names_substance(mail: str) -> bool:
    """Whether the mail gives a UN number that the desk knows."""
    return any(number in substances() for number in UN_NUMBER.findall(mail))


@labeling_function(classes=["customs_missing_document"])
def document_is_lacking(row: Row) -> str | None:
    """A customs paper and a word of lack in one mail."""
    mail = text(row)
    return "customs_missing_document" if DOCUMENTS.search(mail) and LACK.search(mail) else None


@labeling_function(classes=["customs_missing_document"])
def asks_which_document(row: Row) -> str | None:
    """Asks which paper, form or scan is wanted."""
    asks = r"(which|what) (paper|document|form)|blank form|is a scan enough|papers?\b.*\bstorage"
    return "customs_missing_document" if re.search(asks, text(row)) else None


@labeling_function(classes=["customs_duty_question"])
def asks_about_duty(row: Row) -> str | None:
    """Duty, tariff or VAT, and a question mark."""
    mail = text(row)
    return "customs_duty_question" if re.search(r"\b(duty|tariff|vat|anti-dumping)\b.*\?", mail) else None


@labeling_function(classes=["customs_duty_question"])
def tariff_code(row: Row) -> str | None:
    """A tariff code, a carnet or a declared value."""
    found = re.search(r"\bhs (code )?\d{4}\.\d{2}|\bcarnet\b|temporary admission|commercial value", text(row))
    return "customs_duty_question" if found else None


@labeling_function(classes=["hazmat_classification", "hazmat_packaging"], resources=["un_numbers.csv"])
def known_substance(row: Row) -> str | None:
    """A UN number from the list: packaging where packaging is spoken of, else classification."""
    mail = text(row)
    if not names_substance(mail):
        return None
    return "hazmat_packaging" if PACKAGING.search(mail) else "hazmat_classification"


@labeling_function(classes=["hazmat_classification"])
def classification_words(row: Row) -> str | None:
    """Speaks the language of section 14."""
    return "hazmat_classification" if CLASSIFYING.search(text(row)) else None


@labeling_function(classes=["hazmat_packaging"])
def marks_and_drums(row: Row) -> str | None:
    """Two or more words of packaging, beside a UN number or batteries."""
    mail = text(row)
    words = set(PACKAGING.findall(mail))
    regulated = UN_NUMBER.search(mail) or "lithium" in mail
    return "hazmat_packaging" if regulated and len(words) >= 2 else None


@labeling_function(classes=["route_delay"])
def late_or_waiting(row: Row) -> str | None:
    """Late, delayed, overdue, rolled, at anchor, or a date that moved."""
    late = r"\b(late|delay\w*|overdue|rolled|at anchor|hold-up|push back|transit time|schedule|not show up)\b"
    return "route_delay" if re.search(late + r"|estimated arrival|arrival date", text(row)) else None


@labeling_function(classes=["route_delay"])
def when_does_it_come(row: Row) -> str | None:
    """Asks when something arrives."""
    asks = r"when (will|does) (it|she|the)\b.*(come|arrive)|still coming|will the .* be in|by how many"
    return "route_delay" if re.search(asks, text(row)) else None


@labeling_function(classes=["route_reroute_request"])
def other_destination(row: Row) -> str | None:
    """Wants it brought elsewhere."""
    return "route_reroute_request" if ELSEWHERE.search(text(row)) else None


@labeling_function(classes=["route_lost_container"])
def nobody_knows_where(row: Row) -> str | None:
    """Nobody knows where the box is."""
    return "route_lost_container" if LOST.search(text(row)) else None


@labeling_function(classes=["billing_dispute"])
def objects_to_charge(row: Row) -> str | None:
    """An invoice or charge, and an objection."""
    mail = text(row)
    bill = re.search(r"invoice|\binv \d|charge|surcharge|fee|billed|storage|demurrage", mail)
    return "billing_dispute" if bill and OBJECTION.search(mail) else None


@labeling_function(classes=["billing_copy_invoice"])
def wants_a_copy(row: Row) -> str | None:
    """Asks for a copy, duplicate or reissue."""
    wants = r"\b(copy of|another copy|duplicate|resend|reissued|print .* again|need invoice|statement of)\b"
    return "billing_copy_invoice" if re.search(wants, text(row)) else None


@labeling_function(classes=["billing_payment_terms"])
def terms_of_payment(row: Row) -> str | None:
    """Instalments, credit, days net, bank details."""
    return "billing_payment_terms" if MONEY_TERMS.search(text(row)) else None


@labeling_function(classes=["claim_damage", "claim_status"])
def something_broke(row: Row) -> str | None:
    """Breakage; the state of a claim where a claim is already under way."""
    mail = text(row)
    if not BREAKAGE.search(mail):
        return None
    return (
        "claim_status"
        if re.search(r"documents for the claim|our claim|claims department", mail)
        else "claim_damage"
    )


@labeling_function(classes=["claim_shortage"])
def count_does_not_agree(row: Row) -> str | None:
    """Fewer pieces than on paper."""
    return "claim_shortage" if FEWER.search(text(row)) else None


@labeling_function(classes=["claim_status"])
def claim_under_way(row: Row) -> str | None:
    """Asks about a claim that was made before."""
    return "claim_status" if UNDER_WAY.search(text(row)) else None
