"""How the labels of each evaluation set and of the scrubber are compared: one table, fixed before anything was scored.

Places are one class: sets differ in whether a street, a town and a post code are one span or three. Everything that
names a host or page is one class. Titles, ages, dates and peoples are compared as what they are.
"""

from __future__ import annotations

COMMON = {
    "STREET_ADDRESS": "LOCATION",
    "GPE": "LOCATION",
    "LOCATION": "LOCATION",
    "ZIP_CODE": "LOCATION",
    "DOMAIN_NAME": "URL",
    "URL": "URL",
}
"""Labels of ``pii-presidio-synth-v2`` and of the scrubber to the class they are compared in; others stand for
themselves."""

STRUCTURED = frozenset(
    {"CREDIT_CARD", "DOMAIN_NAME", "EMAIL_ADDRESS", "IBAN_CODE", "IP_ADDRESS", "PHONE_NUMBER", "US_DRIVER_LICENSE", "US_SSN"}
)  # fmt: skip
"""The labels of ``pii-presidio-synth-v2`` with a form of their own, for which a scan must cover 0.99."""

MULTIDOGO = {"name": "PERSON"}
"""The slot of ``support-multidogo`` that is a name."""

RESTAURANT = {"first_name": "PERSON", "last_name": "PERSON"}
"""The slots of ``pii-restaurant8k`` that are names."""


def common(label: str) -> str:
    """The class in which a label is compared."""
    return COMMON.get(label, label)
