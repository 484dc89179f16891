"""One table for the labels of models that somebody else made: which of our entity types each stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable

TYPES: dict[str, tuple[str, ...]] = {
    "PERSON": ("PER", "PERSON", "PERSONS", "PERSON_NAME", "NAME", "FULL_NAME", "FIRST_NAME", "FIRSTNAME", "GIVENNAME",
               "GIVEN_NAME", "MIDDLENAME", "LAST_NAME", "LASTNAME", "SURNAME", "PATIENT", "STAFF", "DOCTOR", "HCW",
               "PRS", "PERSNAME"),
    "ORGANIZATION": ("ORG", "ORGANIZATION", "ORGANISATION", "COMPANY", "COMPANYNAME", "COMPANY_NAME", "HOSP", "HOSPITAL",
                     "PATORG", "VENDOR"),
    "LOCATION": ("LOC", "LOCATION", "GPE", "FAC", "FACILITY", "CITY", "STATE", "COUNTRY", "COUNTY", "PLACE", "GPE_LOC",
                 "GPE_ORG", "GEO"),
    "STREET_ADDRESS": ("ADDRESS", "STREET", "STREET_ADDRESS", "STREETADDRESS", "BUILDINGNUM", "BUILDINGNUMBER",
                       "SECONDARYADDRESS"),
    "ZIP_CODE": ("ZIP", "ZIPCODE", "ZIP_CODE", "POSTCODE", "POSTAL_CODE"),
    "DATE_TIME": ("DATE", "TIME", "DATE_TIME", "DATETIME", "DATEOFBIRTH", "DATE_OF_BIRTH", "DOB"),
    "AGE": ("AGE",),
    "TITLE": ("TITLE", "PREFIX"),
    "NRP": ("NRP", "NORP", "NATIONALITY"),
    "EMAIL_ADDRESS": ("EMAIL", "EMAIL_ADDRESS", "EMAILADDRESS"),
    "PHONE_NUMBER": ("PHONE", "PHONE_NUMBER", "PHONENUMBER", "TELEPHONENUM", "PHONENUM", "FAX"),
    "URL": ("URL", "WEBSITE"),
    "IP_ADDRESS": ("IP", "IP_ADDRESS", "IPADDRESS", "IPV4", "IPV6"),
    "MAC_ADDRESS": ("MAC", "MAC_ADDRESS", "MACADDRESS"),
    "CREDIT_CARD": ("CREDIT_CARD", "CREDITCARD", "CREDITCARDNUMBER", "CREDIT_CARD_NUMBER"),
    "IBAN_CODE": ("IBAN", "IBAN_CODE"),
    "US_SSN": ("SSN", "US_SSN", "SOCIAL_SECURITY_NUMBER", "SOCIALNUM"),
    "US_DRIVER_LICENSE": ("DRIVER_LICENSE", "US_DRIVER_LICENSE", "DRIVERLICENSENUM"),
}  # fmt: skip
"""Our entity types and the labels that stand for them. The labels are those of OntoNotes 5 (PERSON, NORP, FAC, GPE...),
CoNLL-2003 (PER, ORG, LOC), the de-identification of clinical notes (PATIENT, STAFF, HOSP) and of common PII data."""

IMPERSONAL = frozenset(
    {"CARDINAL", "ORDINAL", "QUANTITY", "MONEY", "PERCENT", "LANGUAGE", "LAW", "PRODUCT", "EVENT", "WORK_OF_ART", "MISC"}
)  # fmt: skip
"""Labels of OntoNotes 5 and CoNLL-2003 that are no personal data: amounts, and names of works, events and products."""

TOLD_UNKNOWN = "labels that no type is known for, found and replaced under their own name"

_TYPE_OF = {label: kind for kind, labels in TYPES.items() for label in labels}
_OTHER = re.compile(r"[^A-Z]+")


def entity_type(label: str) -> str | None:
    """Our type for a label, in any case; None for one that is no personal data.

    A label that the table does not know is found under its own name, and so replaced rather than let pass.

    >>> entity_type("GPE"), entity_type("phone number"), entity_type("MONEY"), entity_type("badge-no2")
    ('LOCATION', 'PHONE_NUMBER', None, 'BADGE_NO')
    """
    name = _name(label)
    if name in IMPERSONAL:
        return None
    return _TYPE_OF.get(name) or _OTHER.sub("_", name).strip("_") or "OTHER"


def unknown(labels: Iterable[str]) -> list[str]:
    """The labels that the table does not know, sorted."""
    return sorted(label for label in labels if _name(label) not in _TYPE_OF.keys() | IMPERSONAL)


def _name(label: str) -> str:
    """A label as the table writes it."""
    return label.upper().replace(" ", "_").replace("-", "_")


def told(labels: Iterable[str]) -> str:
    """What a model with these labels finds, in words."""
    labels = list(labels)
    types = sorted({kind for label in labels if (kind := entity_type(label))})
    said = f"finds {', '.join(types) or 'nothing'}"
    if aside := sorted(label for label in labels if entity_type(label) is None):
        said += f"; no personal data: {', '.join(aside)}"
    if own := unknown(labels):
        said += f"; {TOLD_UNKNOWN}: {', '.join(own)}"
    return said
