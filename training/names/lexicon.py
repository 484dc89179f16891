"""Lists of names to make text of: Faker's locales, the place names that phonenumbers brings along, and a few by hand.

One name in twelve is held out by its hash (:func:`is_held_out`): no training text and no lexicon holds it, so that
tests can measure how the model does on names that it never saw.
"""

from __future__ import annotations

import importlib
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zlib import crc32

_LATIN = re.compile(r"[A-Za-zÀ-ɏḀ-ỿ][A-Za-zÀ-ɏḀ-ỿ.'’\- ]*")

PEOPLES = tuple(
    """American British English Scottish Welsh Irish French German Spanish Italian Portuguese Dutch Belgian Swiss
    Austrian Danish Swedish Norwegian Finnish Icelandic Polish Czech Slovak Hungarian Romanian Bulgarian Greek Turkish
    Russian Ukrainian Belarusian Latvian Lithuanian Estonian Serbian Croatian Slovenian Bosnian Albanian Macedonian
    Moldovan Georgian Armenian Azerbaijani Kazakh Uzbek Turkmen Kyrgyz Tajik Afghan Pakistani Indian Bangladeshi Nepali
    Nepalese Bhutanese Burmese Thai Cambodian Laotian Vietnamese Malaysian Indonesian Filipino Singaporean Chinese
    Taiwanese Japanese Korean Mongolian Australian Canadian Mexican Guatemalan Honduran Nicaraguan Panamanian Cuban
    Jamaican Haitian Dominican Colombian Venezuelan Ecuadorian Peruvian Bolivian Chilean Argentine Argentinian Brazilian
    Uruguayan Paraguayan Egyptian Libyan Tunisian Algerian Moroccan Sudanese Ethiopian Eritrean Somali Kenyan Ugandan
    Tanzanian Rwandan Congolese Nigerian Ghanaian Senegalese Malian Ivorian Cameroonian Angolan Zambian Zimbabwean
    Mozambican Namibian African Asian European Israeli Palestinian Lebanese Syrian Jordanian Iraqi Iranian Saudi Yemeni
    Omani Qatari Kuwaiti Emirati Maltese Cypriot Luxembourgish Bavarian Catalan Basque Kurdish Persian Arab Hispanic
    Latino Caucasian Texan Californian Christian Catholic Protestant Orthodox Jewish Muslim Hindu Buddhist Sikh Mormon
    Lutheran Methodist Baptist Anglican Sunni Shiite Republican Democrat Democratic Conservative Marxist Communist
    Socialist Liberal""".split()
)

COMPANIES = tuple(
    """Microsoft|Google|Apple|Amazon|Facebook|Meta|Netflix|IBM|Intel|Oracle|SAP|Siemens|Samsung|Sony|Toyota|Honda|Nissan|
    Volkswagen|BMW|Daimler|Ford|General Motors|General Electric|Boeing|Airbus|Lufthansa|Delta Air Lines|British Airways|
    Ryanair|Emirates|Shell|BP|ExxonMobil|Chevron|TotalEnergies|Walmart|Tesco|Carrefour|Aldi|Lidl|Ikea|Target|Costco|
    Starbucks|McDonald's|Burger King|Pizza Hut|KFC|Coca-Cola|PepsiCo|Nestlé|Unilever|Procter & Gamble|Johnson & Johnson|
    Pfizer|Novartis|Roche|Bayer|Merck|AstraZeneca|Moderna|HSBC|Barclays|Lloyds|Santander|Deutsche Bank|UBS|JPMorgan Chase|
    Goldman Sachs|Morgan Stanley|Citibank|Bank of America|Wells Fargo|Visa|Mastercard|American Express|PayPal|Stripe|
    Deloitte|KPMG|PwC|Ernst & Young|McKinsey|Accenture|Vodafone|Verizon|AT&T|T-Mobile|Orange|Telefónica|BT|Nokia|Ericsson|
    Huawei|Xiaomi|Lenovo|Dell|HP|Cisco|Nvidia|AMD|Tesla|Uber|Lyft|Airbnb|Spotify|Twitter|TikTok|WhatsApp|YouTube|LinkedIn|
    Reddit|Adobe|Salesforce|Dropbox|Slack|Zoom|GitHub|FedEx|UPS|DHL|Royal Mail|Maersk|BBC|CNN|Reuters|Bloomberg|
    The New York Times|The Guardian|Le Monde|Der Spiegel|Harvard|Oxford|Cambridge|MIT|Stanford|Yale|NASA|FBI|CIA|NHS|NATO|
    UNESCO|UNICEF|World Health Organization|European Union|European Commission|United Nations|World Bank|Red Cross|
    Amnesty International|Greenpeace|Oxfam|Real Madrid|Manchester United|Arsenal|Chelsea|Juventus|Bayern Munich|
    New York Yankees|Chicago Bulls|Los Angeles Lakers|Labour Party|Conservative Party|Supreme Court|Congress|Senate|
    Parliament|Interpol|FIFA|UEFA|NBA|NFL""".replace("\n", "").split("|")
)

TITLES = (
    *(
        "Mr.",
        "Mr",
        "Mrs.",
        "Mrs",
        "Ms.",
        "Ms",
        "Miss",
        "Dr.",
        "Dr",
        "Prof.",
        "Professor",
        "Doctor",
        "Sir",
        "Lady",
        "Lord",
    ),
    *(
        "Madam",
        "Mx.",
        "Rev.",
        "Captain",
        "Capt.",
        "Sgt.",
        "Herr",
        "Frau",
        "Monsieur",
        "Madame",
        "Señor",
        "Señora",
        "Hon.",
    ),
)

_MODULES = "ar_AA az_AZ cs_CZ da_DK de_AT de_CH de_DE en_GB en_IE en_IN en_KE en_NG en_NZ en_PK en_TH en_US es_AR es_CA es_CL\
 es_CO es_ES es_MX et_EE fi_FI fr_BE fr_CA fr_CH fr_DZ fr_FR ga_IE ha_NG hr_HR hu_HU id_ID ig_NG is_IS it_IT lt_LT lv_LV\
 nl_BE nl_NL no_NO pl_PL pt_BR pt_PT ro_RO sk_SK sl_SI sv_SE tr_TR tw_GH uz_UZ vi_VN yo_NG zu_ZA ja_JP zh_CN zh_TW ko_KR".split()

# Families of names that Faker has in their own scripts only, written in Latin letters.
_ASIAN_FIRST = tuple(
    """Wei Li Jing Min Hui Yan Xin Yu Ling Mei Hao Jie Chen Xiaoming Xiaoli Jun Lei Tao Qiang Yong Hiroshi Yuki Haruto
    Sakura Kenji Takashi Naoko Yoko Akira Ren Aiko Satoshi Keiko Daisuke Ayumi Min-jun Ji-woo Seo-yeon Hye-jin Sung-ho
    Jae-hyun Soo-jin Ji-hoon Eun-ji Dong-hyun Ivan Dmitri Sergei Vladimir Oleg Olga Svetlana Natasha Ekaterina Anastasia
    Mikhail Nikolai Andrei Alexei Yuri Boris Tatiana Irina Lyudmila Oksana Mykola Taras Bogdan Georgios Dimitris Kostas
    Eleni Katerina Yannis Nikos Spyros Avi Yael Moshe Shlomo Rivka Noam Eitan Ahmed Mohamed Muhammad Mohammed Ali Hassan
    Hussein Fatima Aisha Khalid Omar Yusuf Ibrahim Layla Zainab Abdullah Mustafa Mahmoud Nour Samira Reza Parisa Shirin
    Arash Behnam Nasrin""".split()
)
_ASIAN_LAST = tuple(
    """Wang Li Zhang Liu Chen Yang Huang Zhao Wu Zhou Xu Sun Ma Zhu Hu Guo He Lin Gao Luo Zheng Liang Xie Tang Deng Feng
    Sato Suzuki Takahashi Tanaka Watanabe Ito Yamamoto Nakamura Kobayashi Kato Yoshida Yamada Kim Lee Park Choi Jung Kang
    Cho Yoon Jang Lim Ivanov Petrov Sidorov Smirnov Kuznetsov Popov Volkov Sokolov Lebedev Kozlov Novikov Morozov Ivanova
    Petrova Smirnova Kuznetsova Shevchenko Kovalenko Bondarenko Papadopoulos Georgiou Nikolaidis Pappas Cohen Levi
    Mizrahi Peretz Friedman Katz Al-Farsi El-Sayed Haddad Khoury Nasser Mansour Hosseini Ahmadi Karimi Rezaei Moradi
    Tehrani""".split()
)


def is_held_out(name: str) -> bool:
    """Whether a name is kept for tests: about one in twelve."""
    return crc32(b"held out" + name.lower().encode()) % 12 == 0


@dataclass(frozen=True)
class Lists:
    """Names by kind, sorted, without duplicates; ``of`` groups first and last names by the locale they are of."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    of: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    cities: tuple[str, ...]
    countries: tuple[str, ...]
    states: tuple[str, ...]


@lru_cache(maxsize=2)
def lists(held_out: bool = False) -> Lists:
    """Every list; with ``held_out`` only the names that are kept for tests."""
    of = []
    for locale in _MODULES:
        first, last = _people(locale)
        pair = tuple(tuple(n for n in sorted(names) if is_held_out(n) == held_out) for names in (first, last))
        if len(pair[0]) > 3 and len(pair[1]) > 3:
            of.append(pair)
    romanised = [
        tuple(n for n in names if is_held_out(n) == held_out) for names in (_ASIAN_FIRST, _ASIAN_LAST)
    ]
    of += [(romanised[0], romanised[1])] * 3
    return Lists(
        first=tuple(sorted({n for first, _ in of for n in first})),
        last=tuple(sorted({n for _, last in of for n in last})),
        of=tuple(of),  # type: ignore[arg-type]
        cities=tuple(n for n in _cities() if is_held_out(n) == held_out),
        countries=tuple(n for n in _countries() if held_out or not is_held_out(n)),
        states=_states(),
    )


def _people(locale: str) -> tuple[set[str], set[str]]:
    provider = importlib.import_module(f"faker.providers.person.{locale}").Provider
    found: tuple[set[str], set[str]] = (set(), set())
    for base in provider.__mro__:
        if not base.__module__.startswith(f"faker.providers.person.{locale}"):
            continue
        for name, value in vars(base).items():
            which = 0 if name.startswith("first_") else 1 if name.startswith("last_") else None
            if which is not None and not callable(value) and not isinstance(value, property):
                found[which].update(_latin(value))
    return found


def _latin(value: object) -> Iterator[str]:
    for item in value if isinstance(value, Iterable) and not isinstance(value, str) else ():
        parts = item if isinstance(item, tuple) else (item,)
        for part in parts:
            if isinstance(part, str) and len(part) > 1 and _LATIN.fullmatch(part):
                yield part.strip()


def _cities() -> list[str]:
    from faker.providers.geo import Provider
    from phonenumbers.geodata import GEOCODE_DATA

    places = {entry[2] for entry in Provider.land_coords}
    for number, spoken in GEOCODE_DATA.items():
        english = spoken.get("en", "")
        # "Warren, IL", "Kurayoshi, Tottori", "Areal - RJ": the town comes first.
        town = re.split(r", | - |/|\(", english)[0].strip()
        if 2 < len(town) < 26 and _LATIN.fullmatch(town) and town[0].isupper() and str(number)[0] != "8":
            places.add(town)
    return sorted(places)


def _countries() -> list[str]:
    from faker.providers.address.en import Provider

    short = {c for c in Provider.countries if "(" not in c and "," not in c and len(c) < 30}
    return sorted(short | {"USA", "UK", "U.S.", "US", "UAE", "England", "Scotland", "Wales", "Russia", "South Korea", "Iran",
                           "the Netherlands", "Vietnam", "Europe", "Asia", "Africa", "Czech Republic", "Syria", "Taiwan",
                           "the United States", "Great Britain", "America", "Bolivia", "Venezuela", "Tanzania"})  # fmt: skip


def _states() -> tuple[str, ...]:
    from faker.providers.address.en_US import Provider

    provinces = "Ontario Quebec Alberta Victoria Queensland Bavaria Saxony Kent Surrey Yorkshire Essex Cornwall Devon\
 Kerala Punjab Gujarat Maharashtra Tuscany Provence Normandy Andalusia Catalonia Lombardy Jalisco Bahia".split()
    return (*Provider.states, *Provider.states_abbr, *provinces)


def vocabulary() -> dict[str, int]:
    """Every word of the lists with its flags (:mod:`curation.pii.words`), lower case; held-out names are missing."""
    from curation.pii import words

    known = lists()
    flags: dict[str, int] = {}
    kinds = (
        (known.first, words.FIRST),
        (known.last, words.LAST),
        (known.cities, words.PLACE),
        ((*known.countries, *(s for s in known.states if len(s) > 2)), words.COUNTRY),
        (PEOPLES, words.PEOPLE),
    )
    for names, flag in kinds:
        for name in names:
            for word in words.tokens(name).words:
                if len(word) > 1 and word[0].isalpha() and word[0].isupper():
                    flags[word.lower()] = flags.get(word.lower(), 0) | flag
    return flags


def frequencies(texts: Iterable[str]) -> dict[str, int]:
    """How often each word stands in lower case in real text."""
    from curation.pii import words

    counts: dict[str, int] = {}
    for text in texts:
        for word in words.TOKEN.findall(text):
            if word[0].islower():
                counts[word] = counts.get(word, 0) + 1
    return counts


def rank(count: int) -> int:
    """How common a word with so many occurrences is: 0 (under 3) to 7."""
    return 0 if count < 3 else min(7, 1 + len(f"{count // 3:b}") // 2)


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """The names in an order of their own."""
    found = list(names)
    random.Random(seed).shuffle(found)
    return found


TEMPLATES = Path(__file__).parent / "templates.txt"
