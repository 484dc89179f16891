"""Made-up sentences with the spans of what is personal in them: templates filled, joined, and then spoilt a little.

Case is changed (all small, all capital, every word capital), letters are mistyped outside spans, punctuation is lost:
people type like that. The same seed gives the same sentences.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from functools import lru_cache

from curation.pii.words import HIDDEN
from training.names import lexicon

Span = tuple[int, int, str]
Example = tuple[str, list[Span]]

_LOCALES = (
    *(
        "en_US",
        "en_US",
        "en_US",
        "en_GB",
        "en_GB",
        "en_CA",
        "en_AU",
        "en_IN",
        "en_NZ",
        "en_IE",
        "de_DE",
        "de_AT",
        "fr_FR",
    ),
    *(
        "es_ES",
        "es_MX",
        "nl_NL",
        "it_IT",
        "pt_BR",
        "pt_PT",
        "sv_SE",
        "pl_PL",
        "fi_FI",
        "no_NO",
        "da_DK",
        "cs_CZ",
        "hu_HU",
    ),
    *(
        "ro_RO",
        "hr_HR",
        "id_ID",
        "tr_TR",
        "vi_VN",
        "fr_CH",
        "de_CH",
        "sk_SK",
        "sl_SI",
        "et_EE",
        "lt_LT",
        "fr_CA",
        "nl_BE",
    ),
)
_POOL = 1500
_HELD_OUT_TEMPLATES = 9  # one template in nine is kept for tests

_ROLES = """software engineer|accountant|nurse|teacher|chief executive|finance director|head of sales|project manager|
    chemist|painter|footballer|singer|actress|politician|historian|lawyer|architect|novelist|physicist|data analyst|
    managing director|vice president|human resources manager|CEO|CTO|Marketing Manager|Senior Consultant|Sales Assistant|
    composer|journalist|economist|film director|cyclist|philosopher|surgeon|electrician|bus driver""".replace("\n", "").replace(
    "    ", ""
).split("|")  # fmt: skip
_MONTHS = "January February March April May June July August September October November December".split()
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
_STREETS = (
    """Street|Street|Road|Road|Avenue|Avenue|Lane|Drive|Court|Way|Close|Place|Square|Boulevard|Terrace|Crescent|
    Highway|St|St.|Rd|Rd.|Ave|Ave.|Blvd|Blvd.|Dr|Ln|Ct|Pkwy|Parkway|Circle|Trail|Grove|Gardens|Row|Hill|Mews|
    Park|Walk|Pike|Plaza""".replace("\n", "")
    .replace("    ", "")
    .split("|")
)
_STREET_NAMES = """Main|High|Church|Park|Oak|Maple|Elm|Cedar|Pine|Station|Mill|Victoria|King|Queen|Washington|Lincoln|
    Jefferson|Broad|Market|River|Lake|Hill|Spring|Bridge|School|North|South|West|East|Sunset|Forest|Green|
    Garden|Meadow|2nd|3rd|5th|42nd|First|Second|Third|Rose|Willow|Chestnut|Birch""".replace("\n", "").replace(
    "    ", ""
).split("|")  # fmt: skip
_BUSINESS = """Systems|Foods|Logistics|Motors|Energy|Airlines|Bank|Insurance|Consulting|Solutions|Partners|Holdings|Group|
    Industries|Technologies|Software|Media|Press|Records|Pharma|Healthcare|Capital|Investments|Properties|
    Construction|Plumbing|Bakery|Brewery|Freight|Shipping|Textiles|Chemicals|Electronics|Studios|Labs|Networks|Telecom|
    Steel|Engineering|Design|Realty|Travel|Hotels|Trading|Brothers|& Sons|& Co|Associates|Services""".replace(
    "\n", ""
).replace("    ", "").split("|")  # fmt: skip
_COINED = """Acme|Globex|Initech|Umbra|Vertex|Nimbus|Apex|Pinnacle|Summit|Horizon|Stellar|Quantum|Blue Sky|Red Rock|
    Green Valley|Northern|Southern|Western|Eastern|Pacific|Atlantic|Royal|National|First|United|Global|International|
    General|Golden|Silver|Crystal|Phoenix|Falcon|Eagle|Lion|Orion|Delta|Omega|Sigma|Alpha|Prime|Metro|Urban|Swift|Bright|
    Clear|Smart|Open|True|Core|Next|Inter|Trans|Euro|Tele""".replace("\n", "").replace("    ", "").split("|")  # fmt: skip
_LEGAL = ["Inc.", "Inc", "Ltd", "Ltd.", "LLC", "PLC", "Corp.", "Corporation", "GmbH", "AG", "S.A.", "BV", "Co.", "Limited", "Pty Ltd", "LLP", "SpA"]  # fmt: skip
_PARTICLES = [
    "van der",
    "de",
    "von",
    "van",
    "de la",
    "bin",
    "al",
    "di",
    "du",
    "da",
    "del",
    "ter",
    "El",
    "Le",
    "La",
    "St.",
]


class Values:
    """Fills slots. ``held_out`` takes names that nothing else is made of."""

    def __init__(self, seed: int, *, held_out: bool = False) -> None:
        self.random = random.Random(seed)
        self.lists = lexicon.lists(held_out)
        self.pools = _pools(held_out)

    def pick(self, options: Sequence[str]) -> str:
        return self.random.choice(options)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def digits(self, count: int) -> str:
        return "".join(self.random.choices(string.digits, k=count))

    # --- people

    def _one(self, which: int) -> str:
        # Half of the names by locale, so that small locales count; half from the long list.
        if self.chance(0.25):
            return self.pick((self.lists.first, self.lists.last)[which])
        return self.pick(self.random.choice(self.lists.of)[which])

    def first(self) -> str:
        return self._one(0)

    def last(self) -> str:
        name = self._one(1)
        roll = self.random.random()
        if roll < 0.04:
            return f"{name}-{self._one(1)}"
        if roll < 0.08 and " " not in name:
            return f"{self.pick(_PARTICLES)} {name}"
        if roll < 0.10 and name[0].isupper():
            return f"{self.pick(['O’', 'O' + chr(39), 'Mc', 'Mac', 'D' + chr(39)])}{name}"
        return name

    def name(self) -> str:
        pair = self.random.choice(self.lists.of)
        first, last = self.pick(pair[0]), self.pick(pair[1]) if self.chance(0.7) else self.last()
        roll = self.random.random()
        if roll < 0.60:
            return f"{first} {last}"
        if roll < 0.68:
            return f"{first} {self.pick(string.ascii_uppercase)}. {last}"
        if roll < 0.72:
            return f"{first[0]}. {last}"
        if roll < 0.74:
            return f"{first[0]}.{self.pick(string.ascii_uppercase)}. {last}"
        if roll < 0.75:
            return f"{first[0]}{self.pick(string.ascii_uppercase)} {last}"
        if roll < 0.82:
            return f"{first} {self.pick(pair[0])} {last}"
        if roll < 0.84:
            return f"{first} {last} {self.pick(['Jr.', 'Jr', 'Sr.', 'II', 'III', 'IV', 'PhD', 'MD'])}"
        return first if roll < 0.92 else f"{first} {last}"

    def lastfirst(self) -> str:
        return f"{self.last()}, {self.first()}" + (
            f" {self.pick(string.ascii_uppercase)}." if self.chance(0.3) else ""
        )

    def title(self) -> str:
        return self.pick(lexicon.TITLES)

    def age(self) -> str:
        years = self.random.randint(1, 99)
        words = _AGES.get(years)
        return words if words and self.chance(0.12) else str(years)

    def nrp(self) -> str:
        return self.pick(lexicon.PEOPLES)

    # --- places

    def city(self) -> str:
        roll = self.random.random()
        if roll < 0.4:
            return self.pick(_BIG)
        return self.pick(self.pools["city"]) if roll < 0.5 else self.pick(self.lists.cities)

    def country(self) -> str:
        return self.pick(_BIG_COUNTRIES) if self.chance(0.4) else self.pick(self.lists.countries)

    def state(self) -> str:
        return self.pick(self.lists.states)

    def zip(self) -> str:
        roll = self.random.random()
        if roll < 0.4:
            return self.digits(5)
        return f"{self.digits(5)}-{self.digits(4)}" if roll < 0.5 else self.pick(self.pools["zip"])

    def street(self) -> str:
        if self.chance(0.45):
            return self.pick(self.pools["street"])
        name = self.pick(_STREET_NAMES) if self.chance(0.5) else self.last()
        number = str(self.random.randint(1, self.pick_number()))
        unit = self.pick(["", "", "", "", f", Apt {self.digits(2)}", f" Apt. {self.digits(3)}", f", Suite {self.digits(3)}",
                          f" #{self.digits(2)}", f", Unit {self.digits(1)}", f", Flat {self.digits(1)}", ", 2nd floor"])  # fmt: skip
        letter = self.pick(["", "", "", "", "A", "b", "/2"])
        return f"{number}{letter} {name} {self.pick(_STREETS)}{unit}"

    def pick_number(self) -> int:
        return self.random.choice((30, 200, 9999))

    def address(self) -> str:
        roll = self.random.random()
        if roll < 0.5:
            found = self.pick(self.pools["address"])
            return found if self.chance(0.3) else found.replace("\n", self.pick([", ", ", ", " ", "\n"]))
        comma = self.pick([", ", ", ", " ", "\n"])
        ending = self.pick([f"{self.city()}{comma}{self.zip()}", f"{self.city()}, {self.pick(_ABBR)} {self.zip()}", self.city(),
                            f"{self.zip()} {self.city()}", f"{self.city()}, {self.country()}",
                            f"{self.city()} {self.pick(_ABBR)} {self.zip()}, USA"])  # fmt: skip
        return f"{self.street()}{comma}{ending}"

    # --- organisations

    def org(self) -> str:
        roll = self.random.random()
        if roll < 0.24:
            return self.pick(lexicon.COMPANIES).strip()
        if roll < 0.44:
            return self.pick(self.pools["org"])
        last, coined = self._one(1), self.pick(_COINED)
        business, legal = self.pick(_BUSINESS), self.pick(_LEGAL)
        made = (
            *(f"{last} {business}", f"{coined} {business}", f"{last} {legal}", f"{coined} {legal}", f"{coined} {business} {legal}"),
            *(f"{last}, {self._one(1)} and {self._one(1)}", f"{last} & {self._one(1)}", f"{last}-{self._one(1)}"),
            *(f"University of {self.city()}", f"{self.city()} University", f"{last} College", f"{self.city()} High School"),
            *(f"Bank of {self.country()}", f"{self.city()} City Council", f"{self.city()} General Hospital", f"{last} Foundation"),
            *(f"Ministry of {self.pick(['Finance', 'Health', 'Defence', 'Justice'])}", f"St. {self.first()}'s Hospital"),
            *("".join(self.random.choices(string.ascii_uppercase, k=self.random.randint(3, 4))), f"{last}'s", f"The {coined} {business}"),
            *(f"{self.city()} {self.pick(['United', 'City', 'FC', 'Rovers', 'Tigers', 'Eagles'])}", f"{coined}{self.pick(_COINED).lower().replace(' ', '')}"),
            *(f"Museum of {self.pick(['Modern Art', 'Natural History', 'Science'])}", f"Department of {self.pick(['Transport', 'Energy', 'Education'])}"),
        )  # fmt: skip
        return self.pick(made)

    # --- time and numbers

    def month(self) -> str:
        return self.pick(_MONTHS)

    def weekday(self) -> str:
        return self.pick(_DAYS)

    def year(self) -> str:
        return str(self.random.randint(1900, 2035))

    def time(self) -> str:
        hour, minute = self.random.randint(1, 12), self.random.randint(0, 59)
        return self.pick([f"{hour}:{minute:02d}", f"{hour}:{minute:02d} pm", f"{hour}am", f"{hour + 11}:{minute:02d}", f"{hour} pm", f"{hour} a.m.", f"{hour} o'clock"])  # fmt: skip

    def date(self) -> str:
        day, month, year = self.random.randint(1, 28), self.random.randint(1, 12), self.year()
        long, short, name = f"{day}{_ordinal(day)}", _MONTHS[month - 1][:3], _MONTHS[month - 1]
        return self.pick([
            *(f"{month:02d}/{day:02d}/{year}", f"{day}/{month}/{year[2:]}", f"{year}-{month:02d}-{day:02d}", f"{day}.{month}.{year}"),
            *(f"{name} {day}, {year}", f"{day} {name} {year}", f"{name} {long}", f"the {long} of {name}", f"{day} {short}", f"{short} {day}, {year}"),
            *(f"{name} {year}", year, name, f"{self.weekday()}, {name} {day}", self.weekday(), f"{day}-{short}-{year}", f"{long} {name} {year}"),
            *(f"{year}-{month:02d}-{day:02d} {self.random.randint(0, 23):02d}:{self.random.randint(0, 59):02d}", f"{name[:3]}. {day}", f"{year}s"),
        ])  # fmt: skip

    def expiry(self) -> str:
        return f"{self.random.randint(1, 12):02d}/{self.random.randint(22, 35)}"

    def phone(self) -> str:
        return self.pick(self.pools["phone"])

    def email(self) -> str:
        return self.pick(self.pools["email"])

    def card(self) -> str:
        number = self.pick(self.pools["card"])
        if self.chance(0.4):
            number = self.pick([" ", "-"]).join(number[i : i + 4] for i in range(0, len(number), 4))
        return number

    def ssn(self) -> str:
        return f"{self.random.randint(100, 899)}-{self.digits(2)}-{self.digits(4)}"

    def license(self) -> str:
        letter = self.pick(string.ascii_uppercase)
        return self.pick([f"{letter}{self.digits(7)}", f"{letter}{self.digits(8)}", self.digits(9), self.digits(8), f"{letter}{letter}{self.digits(6)}",
                          f"{letter}{self.digits(3)}-{self.digits(4)}-{self.digits(4)}", f"{letter}{self.digits(12)}", self.digits(7)])  # fmt: skip

    def ip(self) -> str:
        return ".".join(str(self.random.randint(1, 254)) for _ in range(4))

    def num(self) -> str:
        return str(self.random.choice((self.random.randint(1, 12), self.random.randint(1, 999))))

    def amount(self) -> str:
        number = f"{self.random.randint(1, 99_999):,}" + self.pick(["", ".00", f".{self.digits(2)}"])
        return self.pick(
            [
                f"${number}",
                f"€{number}",
                f"{number} EUR",
                f"£{number}",
                f"{number} dollars",
                f"USD {number}",
                f"{self.num()} million",
            ]
        )

    def order(self) -> str:
        made = (
            self.digits(self.random.randint(4, 10)),
            f"#{self.digits(5)}",
            f"{self.pick(['PO', 'A', 'INV', 'RMA', 'TX', 'ORD'])}-{self.digits(6)}",
        )
        return self.pick(made)

    def role(self) -> str:
        return self.pick(_ROLES)


def _ordinal(day: int) -> str:
    return {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(day, "th")


_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty")
_UNITS = ("", "-one", "-two", "-three", "-four", "-five", "-six", "-seven", "-eight", "-nine")
_AGES = {20 + 10 * t + u: tens + unit for t, tens in enumerate(_TENS) for u, unit in enumerate(_UNITS)} | dict(
    zip(range(3, 20), "three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split(), strict=True)
)  # fmt: skip
_ABBR = (
    "AL AK AZ AR CA CO CT DE FL GA HI IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA RI SC\
 SD TN TX UT VT VA WA WV WI WY DC".split()
)
_BIG = """London|New York|Paris|Berlin|Madrid|Rome|Moscow|Beijing|Shanghai|Tokyo|Delhi|New Delhi|Mumbai|Chicago|Boston|
    Los Angeles|San Francisco|Seattle|Houston|Dallas|Miami|Atlanta|Denver|Philadelphia|Washington|Toronto|Montreal|Vancouver|
    Sydney|Melbourne|Dublin|Edinburgh|Glasgow|Manchester|Liverpool|Birmingham|Leeds|Bristol|Oxford|Cambridge|Amsterdam|
    Rotterdam|Brussels|Vienna|Zurich|Geneva|Munich|Hamburg|Frankfurt|Cologne|Stockholm|Oslo|Copenhagen|Helsinki|Warsaw|Prague|
    Budapest|Athens|Istanbul|Lisbon|Barcelona|Milan|Naples|Kyiv|Bucharest|Cairo|Lagos|Nairobi|Cape Town|Johannesburg|Tehran|
    Baghdad|Dubai|Jerusalem|Tel Aviv|Karachi|Lahore|Dhaka|Bangkok|Jakarta|Manila|Singapore|Hong Kong|Seoul|Taipei|Hanoi|
    Mexico City|São Paulo|Rio de Janeiro|Buenos Aires|Bogotá|Lima|Santiago|Las Vegas|San Diego|Phoenix|Austin|Portland|
    Detroit|New Orleans|Chennai|Bangalore|Hyderabad|Kolkata|Auckland|Perth|Brisbane|Lyon|Marseille""".replace(
    "\n", ""
).replace("    ", "").split("|")  # fmt: skip
_BIG_COUNTRIES = "USA|US|UK|United States|the United States|England|Germany|France|Spain|Italy|India|China|Japan|Canada|\
Australia|Brazil|Mexico|Russia|Turkey|Poland|Ireland|Scotland|Netherlands|Sweden|Norway|Switzerland|Egypt|Nigeria|Kenya|\
South Africa|Israel|Iran|Iraq|Pakistan|Thailand|Vietnam|South Korea|Indonesia|Argentina|Greece|Portugal".split(
    "|"
)


@lru_cache(maxsize=2)
def _pools(held_out: bool) -> dict[str, tuple[str, ...]]:
    """What Faker's locales make of addresses, streets, towns, firms, telephone and card numbers."""
    from faker import Faker

    makers = {
        "address": "address", "street": "street_address", "city": "city", "zip": "postcode", "org": "company",
        "phone": "phone_number", "email": "email", "card": "credit_card_number",
    }  # fmt: skip
    pools: dict[str, list[str]] = {kind: [] for kind in makers}
    for number, locale in enumerate(_LOCALES):
        fake = Faker(locale)
        fake.seed_instance(1000 * number + held_out)
        for kind, method in makers.items():
            make = getattr(fake, method, None)
            if make is not None:
                count = _POOL // 10 if held_out else _POOL
                pools[kind] += [
                    " ".join(str(make()).split(" ")) for _ in range(count // (1 if kind in "address" else 3))
                ]
    return {kind: tuple(p for p in made if len(p) < 90) for kind, made in pools.items()}


LABELS = {
    "name": "PERSON", "first": "PERSON", "last": "PERSON", "lastfirst": "PERSON", "title": "TITLE",
    "city": "LOCATION", "country": "LOCATION", "state": "LOCATION", "org": "ORGANIZATION", "street": "STREET_ADDRESS",
    "address": "STREET_ADDRESS", "age": "AGE", "nrp": "NRP", "date": "DATE_TIME", "time": "DATE_TIME", "year": "DATE_TIME",
    "month": "DATE_TIME", "weekday": "DATE_TIME", "expiry": "DATE_TIME", "zip": "ZIP_CODE", "phone": "PHONE_NUMBER",
    "card": "CREDIT_CARD", "license": "US_DRIVER_LICENSE", "ssn": "US_SSN",
}  # fmt: skip
"""The entity type of each slot; slots without one are no personal data, or are left to the patterns."""

_SLOT = re.compile(r"\{(\w+)\}")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")


@lru_cache(maxsize=1)
def templates() -> tuple[tuple[str, str], ...]:
    """(domain, template) for every line of the file."""
    found, domain = [], ""
    for line in lexicon.TEMPLATES.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            domain = line[3:].strip()
        elif line and not line.startswith("#"):
            found.append((domain, line.replace("\\n", "\n")))
    return tuple(found)


def plain_words() -> list[str]:
    """The words of the templates without their slots, as if each stood in many texts: a word list where there is no
    real text to count."""
    return [" ".join(re.findall(r"[a-z]+", _SLOT.sub(" ", template))) for _, template in templates()] * 12


def expand(template: str, draw: random.Random) -> str:
    """A template with every ``[a|b]`` decided; innermost brackets first."""
    while match := _CHOICE.search(template):
        template = template[: match.start()] + draw.choice(match[1].split("|")) + template[match.end() :]
    return template


def fill(template: str, values: Values) -> Example:
    """A template with its slots filled, and the spans of the values."""
    template = expand(template, values.random)
    template = template.replace("{titlename}", "{title} {last}")
    if "{place}" in template:
        options = (
            "{city}",
            "{city}",
            "{country}",
            "{city}, {country}",
            "{city}, {state}",
            "{state}",
            "{city} in {country}",
        )
        while "{place}" in template:
            template = template.replace("{place}", values.pick(options), 1)
    text, spans, at = "", [], 0
    for match in _SLOT.finditer(template):
        text += template[at : match.start()]
        at = match.end()
        slot = match[1]
        value = getattr(values, slot)()
        if slot in LABELS:
            spans.append((len(text), len(text) + len(value), LABELS[slot]))
        text += value
    return text + template[at:], spans


def _shifted(spans: list[Span], by: int) -> list[Span]:
    return [(start + by, end + by, kind) for start, end, kind in spans]


_FIELDS = (
    ("name", "Name|Full name|Customer|Client|Contact|Guest|Patient|Employee|Applicant|Holder|Owner|Recipient|Sender|Signed|From|To|Manager"),
    ("first", "First name|First|Given name|Forename|Firstname|Nickname"),
    ("last", "Last name|Last|Surname|Family name|Lastname|Maiden name"),
    ("city", "City|Town|Place|Location|Destination|Origin|Birthplace|Place of birth|Branch"),
    ("country", "Country|Nation|Country of residence|Citizen of"),
    ("state", "State|Province|Region|County"),
    ("zip", "Zip|ZIP|Zip code|ZIP Code|Postcode|Postal code|Post code"),
    ("street", "Street|Address|Address line 1|Street address|Home"),
    ("address", "Address|Home address|Billing address|Shipping address|Ship to|Mailing address|Residence"),
    ("org", "Company|Employer|Organisation|Organization|Firm|Bank|School|Hospital|Insurer|Works at|Supplier|Vendor"),
    ("phone", "Phone|Tel|Tel.|Telephone|Mobile|Cell|Fax|Phone number|Contact|WhatsApp|Home phone|Work"),
    ("email", "Email|E-mail|Mail|Contact"),
    ("date", "Date|DOB|Date of birth|Born|Birthday|Due|Start|End|Arrival|Departure|Issued|Expires"),
    ("age", "Age|Age (years)|Years"),
    ("nrp", "Nationality|Citizenship|Religion|Language|Ethnicity"),
    ("title", "Title|Salutation|Prefix"),
    ("card", "Card|Card number|Credit card|Card no."),
    ("ssn", "SSN|Social security number|Social security no."),
    ("license", "Driver license|Driver's license|Licence no.|DL number|License"),
    ("ip", "IP|IP address|Host"), ("order", "Order|Reference|Case|Ticket|Invoice|Policy no.|Account|ID"),
    ("num", "Quantity|Items|Nights|Floor|Seats|Weight|Room"), ("amount", "Amount|Total|Price|Salary|Fee"),
    ("role", "Position|Role|Job title|Occupation|Profession"), ("time", "Time|At|Opens|Closes"),
)  # fmt: skip


def form(values: Values) -> Example:
    """A made-up form: some fields in any order, in one of the ways in which people and programs write them."""
    draw = values.random
    sign = draw.choice((": ", ": ", ":", " - ", "=", " ", "\t", ": \n"))
    end = draw.choice(("\n", "\n", ", ", "; ", " | ", " "))
    change = draw.choice((str, str, str.lower, str.upper))
    parts = []
    for slot, names in draw.sample(_FIELDS, draw.randint(2, 7)):
        text, spans = fill(f"{{{slot}}}", values)
        label = change(draw.choice(names.split("|"))) + sign
        parts.append((label + text, _shifted(spans, len(label))))
    return joined(parts, end)


def joined(parts: Sequence[Example], separator: str) -> Example:
    """Several examples as one text."""
    text, spans = "", []
    for number, (piece, found) in enumerate(parts):
        text += separator if number else ""
        spans += _shifted(found, len(text))
        text += piece
    return text, spans


def spoilt(example: Example, draw: random.Random) -> Example:
    """The example as people type: in another case, with slips outside the spans, without its last full stop."""
    text, spans = example
    roll = draw.random()
    change: Callable[[str], str] | None = None
    if roll < 0.20:
        change = str.lower
    elif roll < 0.28:
        change = str.upper
    elif roll < 0.31:
        change = str.title
    if change is not None:
        changed = (
            "".join(change(c) if len(change(c)) == 1 else c for c in text)
            if change is not str.title
            else text.title()
        )
        text = changed if len(changed) == len(text) else text
    elif roll < 0.40:  # only the names are written small
        for start, end, kind in spans:
            if kind in ("PERSON", "LOCATION", "ORGANIZATION") and len(text[start:end].lower()) == end - start:
                text = text[:start] + text[start:end].lower() + text[end:]
    if draw.random() < 0.12:
        text, spans = _mistyped(text, spans, draw)
    if draw.random() < 0.15 and text.endswith(".") and (not spans or spans[-1][1] < len(text)):
        text = text[:-1]
    return text, spans


def _mistyped(text: str, spans: list[Span], draw: random.Random) -> Example:
    """Two letters swapped, or one doubled or lost, outside the spans."""
    inside = {i for start, end, _ in spans for i in range(start, end)}
    free = [
        i
        for i in range(1, len(text) - 1)
        if i not in inside and i + 1 not in inside and text[i : i + 2].isalpha()
    ]
    if not free:
        return text, spans
    at = draw.choice(free)
    kind = draw.randrange(3)
    new = (text[at + 1] + text[at], text[at] * 2 + text[at + 1], text[at])[kind]
    grown = len(new) - 2
    moved = [(s + grown, e + grown, k) if s > at else (s, e, k) for s, e, k in spans]
    return text[:at] + new + text[at + 2 :], moved


def examples(count: int, seed: int, *, held_out: bool = False) -> list[Example]:
    """``count`` texts of one to four sentences of one domain. ``held_out``: templates and names kept for tests."""
    values = Values(seed, held_out=held_out)
    draw = values.random
    by_domain: dict[str, list[str]] = {}
    for number, (domain, template) in enumerate(templates()):
        if (number % _HELD_OUT_TEMPLATES == 4) == held_out:
            by_domain.setdefault(domain, []).append(template)
    domains = list(by_domain)
    weights = [len(by_domain[domain]) for domain in domains]
    made = []
    for _ in range(count):
        if draw.random() < 0.07:
            made.append(_hidden(spoilt(form(values), draw), draw))
            continue
        domain = draw.choices(domains, weights)[0]
        size = draw.choices((1, 2, 3, 4), (5, 3, 2, 1))[0]
        picks = [
            draw.choice(by_domain[domain if draw.random() < 0.8 else draw.choice(domains)])
            for _ in range(size)
        ]
        separator = draw.choice((" ", " ", "\n", " "))
        made.append(_hidden(spoilt(joined([fill(t, values) for t in picks], separator), draw), draw))
    return made


def _hidden(example: Example, draw: random.Random) -> Example:
    """Now and then a span hidden as the scrubber hides its aliases: something stands there, and it is done with."""
    text, spans = example
    if draw.random() < 0.9:
        return example
    gone = [span for span in spans if draw.random() < 0.5]
    for start, end, _ in gone:
        text = text[:start] + HIDDEN * (end - start) + text[end:]
    return text, [span for span in spans if span not in gone]
