"""Aliases: the same under one key everywhere, another under another, never a real value."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.errors import ConflictError, UsageError
from curation.pii.aliases import MAKERS, Alias, Aliaser, AliasIndex, canonical, collisions
from tests.bench.pii import luhn_check

KEY = b"a key for tests, 32 bytes long.."
VALUES = {
    "EMAIL_ADDRESS": "jane.doe@acme.com",
    "PHONE_NUMBER": "+44 20 7946 0958",
    "CREDIT_CARD": "4111 1111 1111 1111",
    "IBAN_CODE": "GB82 WEST 1234 5698 7654 32",
    "IP_ADDRESS": "8.8.8.8",
    "MAC_ADDRESS": "00:1A:2B:3C:4D:5E",
    "URL": "https://www.acme.com/track/1",
    "US_SSN": "536-90-4399",
    "US_ITIN": "911-70-1234",
    "US_PASSPORT": "912803456",
    "US_DRIVER_LICENSE": "H12345678",
    "US_BANK_NUMBER": "945456787654",
    "UK_NHS": "943 476 5919",
    "MEDICAL_LICENSE": "BB1388568",
    "CRYPTO": "16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ",
    "UUID": "6f1c2b9e-7d3a-4c55-9a10-3f2b7c8d9e0f",
    "TERM": "Project Bluebird",
    "PERSON": "Rosalind Unwin",
    "LOCATION": "Upper Slaughter",
    "ORGANIZATION": "Unwin Freight Ltd",
    "STREET_ADDRESS": "12 Mill Lane, Upper Slaughter",
    "ZIP_CODE": "62704",
    "AGE": "thirty-four",
    "TITLE": "Dr.",
    "NRP": "Italian",
    "ENCODED": "amFuZS5kb2VAYWNtZS5jb20=",
}


@pytest.mark.parametrize("kind", sorted(VALUES))
def test_a_value_has_one_alias_that_is_not_itself(kind: str) -> None:
    first = Aliaser(KEY)
    alias = first.alias(kind, VALUES[kind])
    assert alias == first.alias(kind, VALUES[kind]) == Aliaser(KEY).alias(kind, VALUES[kind])
    assert canonical(kind, alias) != canonical(kind, VALUES[kind])


def test_every_maker_is_tried_here() -> None:
    assert set(MAKERS) - {"DATE_TIME"} <= set(VALUES)


def test_a_person_is_one_person_by_any_part_of_the_name_and_in_any_case() -> None:
    aliases = Aliaser(KEY)
    first, last = aliases.alias("PERSON", "Rosalind Unwin").split(" ")
    assert first != last
    assert aliases.alias("PERSON", "ROSALIND") == first
    assert aliases.alias("PERSON", "R. Unwin") == aliases.alias("PERSON", "unwin Jr.") == last
    assert aliases.alias("PERSON", "Unwin, Rosalind") == f"{last} {first}"
    assert aliases.alias("PERSON", "R.U.")


def test_the_form_of_an_organisation_is_kept() -> None:
    assert Aliaser(KEY).alias("ORGANIZATION", "Unwin Freight Ltd").endswith(" Ltd")


def test_an_alias_is_never_what_somebody_is_called() -> None:
    free = Aliaser(KEY).alias("PERSON", "Rosalind")
    taken = Aliaser(KEY, is_name=lambda word: word == free).alias("PERSON", "Rosalind")
    assert taken != free


def test_the_ways_to_write_a_value_share_its_alias() -> None:
    aliases = Aliaser(KEY)
    phones = ("+1 (415) 555-2671", "415.555.2671", "4155552671")
    assert len({aliases.alias("PHONE_NUMBER", phone) for phone in phones}) == 1
    assert aliases.alias("EMAIL_ADDRESS", "Jane@Acme.com") == aliases.alias("EMAIL_ADDRESS", "jane@acme.COM")
    assert aliases.alias("CREDIT_CARD", "4111-1111-1111-1111") == aliases.alias(
        "CREDIT_CARD", "4111111111111111"
    )
    assert len(aliases.new()) == 3


def test_another_key_gives_other_aliases_and_hashes() -> None:
    old, new = Aliaser(KEY), Aliaser(os.urandom(32))
    for kind, value in VALUES.items():
        assert old.alias(kind, value) != new.alias(kind, value)
        assert old.hash(kind, value) != new.hash(kind, value)


def test_the_registered_rows_hold_neither_key_nor_value() -> None:
    aliases = Aliaser(KEY)
    for kind, value in VALUES.items():
        aliases.alias(kind, value)
    written = repr(aliases.new())
    assert KEY.decode() not in written
    assert all(value not in written for value in VALUES.values())
    assert aliases.new() == []


def test_a_short_key_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than 16"):
        Aliaser(b"short")


def test_processes_agree_on_aliases() -> None:
    script = (
        "import sys; from curation.pii.aliases import Aliaser\n"
        f"a = Aliaser({KEY!r})\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    print(a.alias(*line.split('|', 1)))"
    )
    lines = [f"{kind}|{value}" for kind, value in VALUES.items()]
    root = Path(__file__).parents[2]
    done = [
        subprocess.run(
            [sys.executable, "-c", script],
            input="\n".join(order),
            capture_output=True,
            text=True,
            check=True,
            cwd=root,
        ).stdout.splitlines()
        for order in (lines, lines[::-1])
    ]
    assert done[0] == done[1][::-1]
    assert len(set(done[0])) == len(VALUES)


def test_two_values_with_one_alias_get_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAKERS, "EMAIL_ADDRESS", lambda value, draw: f"user-{draw.below(2)}@example.invalid")
    aliases = Aliaser(KEY)
    made = {aliases.alias("EMAIL_ADDRESS", f"{name}@acme.com") for name in ("ann", "bob")}
    assert made == {"user-0@example.invalid", "user-1@example.invalid"}


def test_short_numbers_grow_when_their_aliases_run_out() -> None:
    aliases = Aliaser(KEY)
    made = {aliases.alias("US_DRIVER_LICENSE", f"A{number}") for number in range(10)}
    more = {aliases.alias("US_BANK_NUMBER", f"{number:03d}") for number in range(1000)}
    assert len(made) == 10
    assert len(more) == 1000


def test_known_aliases_are_kept() -> None:
    before = Aliaser(KEY)
    alias = before.alias("EMAIL_ADDRESS", "jane@acme.com")
    after = Aliaser(KEY, before.new())
    assert after.alias("EMAIL_ADDRESS", "jane@acme.com") == alias
    assert after.new() == []


def test_one_alias_for_two_values_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match="two values"):
        Aliaser(KEY, [Alias("URL", "a" * 32, "x.invalid"), Alias("URL", "b" * 32, "x.invalid")])


@given(st.from_regex(r"[3-6][0-9]{12,17}", fullmatch=True))
def test_a_fake_card_never_passes_the_checksum(number: str) -> None:
    digits = Aliaser(KEY).alias("CREDIT_CARD", number).replace(" ", "")
    assert digits.startswith("0000")
    assert len(digits) == len(number)
    assert luhn_check(digits[:-1]) != digits[-1]


def test_fake_numbers_come_from_ranges_nobody_has() -> None:
    import phonenumbers

    aliases = Aliaser(KEY)
    for n in range(200):
        phone = aliases.alias("PHONE_NUMBER", f"+49 30 9{n:06d}")
        assert not phonenumbers.is_valid_number(phonenumbers.parse(phone, "US")) if phone[0] != "+" else True
        assert aliases.alias("PHONE_NUMBER", f"+49 30 9{n:06d}").startswith("+999 ")
        american = phonenumbers.parse(aliases.alias("PHONE_NUMBER", f"415736{n:04d}"), "US")
        assert not phonenumbers.is_valid_number(american)
        assert ipaddress.ip_address(aliases.alias("IP_ADDRESS", f"10.1.2.{n}")).is_reserved
        assert ipaddress.ip_address(aliases.alias("IP_ADDRESS", f"2a00::{n:x}")) in ipaddress.ip_network(
            "2001:db8::/32"
        )
        area, group, _ = aliases.alias("US_SSN", f"536-90-{1000 + n}").split("-")
        assert area[0] == "9"
        assert 10 <= int(group) < 50
        iban = aliases.alias("IBAN_CODE", f"DE{n:020d}")
        assert iban[:4] == "XX00"
        assert len(iban) == 22


def test_an_index_finds_whole_aliases_only() -> None:
    index = AliasIndex(["user-12@example.invalid", "+999 123 4567", "XX001234"])
    text = "(user-12@example.invalid) +999 123 4567, XX0012345 and aXX001234 XX001234."
    assert [text[a:b] for a, b in index.find(text)] == [
        "user-12@example.invalid",
        "+999 123 4567",
        "XX001234",
    ]
    assert AliasIndex().find(text) == []


def test_collisions_name_shared_aliases_and_those_in_the_source() -> None:
    rows = [
        Alias("URL", "a" * 32, "x.invalid"),
        Alias("URL", "b" * 32, "x.invalid"),
        Alias("TERM", "c" * 32, "term-1"),
    ]
    found = collisions(rows, ["nothing", "see term-1!"])
    assert [(c.alias, c.text) for c in found] == [("x.invalid", None), ("term-1", 1)]
    assert collisions(rows[1:], ["nothing"]) == []
    assert collisions([]) == []
