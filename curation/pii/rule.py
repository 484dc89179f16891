"""What is scanned for and what happens to it: the rule, its digest, and which entity types are replaced.

A rule never holds the pseudonym key, and its digest changes whenever a scan could find something else.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path

from curation.errors import MissingExtra, UsageError
from curation.pii import outside
from curation.records import canonical_json, digest

MODES = ("pseudonym", "mask", "drop", "keep")

THRESHOLD = 0.4
"""Below this score a hit is noise. Presidio lifts a weak pattern to exactly 0.4 when one of its context
words stands near by, and gives a valid phone number 0.4, so this is the lowest threshold that asks every
hit for some proof: a checksum, a format that little else has, or a word such as "account" before a bare
number."""

KEPT_TYPES = ("DATE_TIME", "TITLE", "AGE", "NRP")
"""Found but not replaced unless a rule says so: a date, a form of address, an age or a nationality alone names nobody,
and answers depend on them ("delivered on 05/03", "an Italian restaurant"). Everything else the detectors find is
replaced: it reaches, pays, places or identifies one person, account or device."""

# Bumped when this package changes what it finds or writes without a change of any field of the rule.
_VERSION = 5
_PACKAGES = ("presidio-analyzer", "phonenumbers", "tldextract", "regex")


@dataclass(frozen=True)
class ScrubRule:
    """How personal data is found and replaced.

    ``layers`` are the detectors, in order: ``patterns`` and ``names`` are built in, ``spacy:NAME`` and
    ``transformers:FOLDER`` are models from outside, and a row is quarantined if any listed one is missing.
    ``mode``: ``pseudonym`` (a keyed alias of the same shape), ``mask`` (``<EMAIL_ADDRESS_1>``, numbered per
    record), ``drop`` (the row goes), ``keep`` (spans are reported, text stays). Text in a language outside
    ``languages`` is quarantined. ``timeout`` is in seconds per text, and ``model_timeout`` is what every model
    from outside adds to it. ``deny`` are terms that are always found (whole words, any case), ``allow`` values
    that never are. ``window`` and ``overlap``, in characters, bound one pass over a long text; longer than
    ``longest`` is quarantined. Raises :class:`UsageError`.
    """

    layers: tuple[str, ...] = ("patterns",)
    mode: str = "pseudonym"
    languages: tuple[str, ...] = ("en",)
    timeout: float = 2.0
    model_timeout: float = 30.0
    deny: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    kept: tuple[str, ...] = KEPT_TYPES
    threshold: float = THRESHOLD
    window: int = 20_000
    overlap: int = 2_000
    longest: int = 1_000_000

    def __post_init__(self) -> None:
        problems = [words for words, wrong in self._checks() if wrong]
        if problems:
            raise UsageError("; ".join(problems), where="[pii]", next="Correct the section in tilth.toml")

    def _checks(self) -> list[tuple[str, bool]]:
        return [
            (f"mode is {self.mode!r}, not one of {', '.join(MODES)}", self.mode not in MODES),
            ("layers is empty: nothing would be scanned", not self.layers),
            ("languages is empty: nothing would be scanned", not self.languages),
            ("timeout is not above 0", self.timeout <= 0),
            ("model_timeout is below 0", self.model_timeout < 0),
            ("threshold is not between 0 and 1", not 0 <= self.threshold <= 1),
            ("overlap is not below half of window", not 0 < 2 * self.overlap < self.window),
            ("deny or allow holds an empty term", "" in self.deny or "" in self.allow),
        ]

    @property
    def time_limit(self) -> float:
        """Seconds for one text through all layers."""
        return self.timeout + self.model_timeout * sum(
            outside.split(name) is not None for name in self.layers
        )

    def digest(self) -> str:
        """The rule's name; see :func:`rule_digest`."""
        return rule_digest(self)


def rule_digest(rule: ScrubRule) -> str:
    """Digest of the rule, of the versions of what it scans with, of Presidio's list of recognisers, and of the models
    from outside: their files, wherever they lie.

    Cheap: nothing heavy is imported, and files are read again only when they changed. Raises
    :class:`MissingExtra` without Presidio, because a digest that stood for "not scanned" could be mistaken for
    a scan.
    """
    layers = [outside.identity(name) if outside.split(name) else name for name in rule.layers]
    parts = {"rule": asdict(rule) | {"layers": layers}, "version": _VERSION, **_installed()}
    if "names" in rule.layers:
        parts["names"] = _model()
    return digest(canonical_json(parts))


@lru_cache(maxsize=1)
def _model() -> str:
    """The digest of the names model's weights; empty where the file is missing, and then nothing is scanned."""
    path = Path(__file__).parent / "names.safetensors"
    return digest(path.read_bytes()) if path.is_file() else ""


@lru_cache(maxsize=1)
def _installed() -> dict[str, str]:
    spec = util.find_spec("presidio_analyzer")
    if spec is None or spec.origin is None:
        raise MissingExtra("pii", "presidio-analyzer")
    recognisers = Path(spec.origin).parent / "conf" / "default_recognizers.yaml"
    versions = {package: metadata.version(package) for package in _PACKAGES}
    return {**versions, "recognisers": digest(recognisers.read_bytes())}
