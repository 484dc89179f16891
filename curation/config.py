"""``tilth.toml`` as frozen rules. Every problem in the file is reported at once, with a suggestion where one helps.

The classes below are the file's sections, field by field; a default here is the default there. Secrets never stand in
the file: they come from the environment. Nothing here opens anything but the file itself.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from curation.errors import UsageError

FILE = "tilth.toml"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


def _one_of(*choices: str, default: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _between(low: float, high: float, default: Any) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class WorkspaceSection:
    """Where a workspace keeps its state. Paths are relative to the folder of ``tilth.toml``."""

    name: str = "workspace"
    ledger: str = "sqlite:///ledger.db"
    artifacts: str = "artifacts"
    languages: tuple[str, ...] = ("en",)


@dataclass(frozen=True)
class QuestionSection:
    """What people are asked. ``auto`` looks at the completions: few that repeat are classes, others are edited.

    ``criteria`` are what a rubric grades, each from 1 to 5.
    """

    kind: str = _one_of("auto", "edit", "accept", "class", "compare", "rubric", "spans", default="auto")
    classes: tuple[str, ...] = ()
    criteria: tuple[str, ...] = ()
    guideline: str = ""
    annotators_per_record: int = _between(1, 25, 1)


@dataclass(frozen=True)
class FunctionsSection:
    """Where labeling functions are found and how their votes become one probability."""

    modules: tuple[str, ...] = ("labeling_functions/",)
    label_model: str = _one_of(
        "auto", "majority", "weighted", "dawid-skene", "triplet", "snorkel", "blend", default="auto"
    )


@dataclass(frozen=True)
class DedupSection:
    """Near-duplicates: Jaccard index of the sets of ``shingle``-word shingles of the normalised ``fields``."""

    threshold: float = _between(0.5, 1.0, 0.8)
    shingle: int = _between(1, 50, 5)
    fields: tuple[str, ...] = ("prompt", "completion")


@dataclass(frozen=True)
class PiiSection:
    """Which detectors scan, and what happens to what they find. A listed layer that is missing quarantines.

    A layer is built in or a model as KIND:MODEL, a relative folder being one of the workspace.
    ``deny`` are terms that are always personal, ``allow`` values that never are, ``keep`` entity types that are
    found and stay.
    """

    layers: tuple[str, ...] = field(
        default=("patterns", "names"),
        metadata={"choices": ("patterns", "names"), "kinds": ("spacy", "transformers", "gliner")},
    )
    mode: str = _one_of("pseudonym", "mask", "drop", "keep", default="pseudonym")
    deny: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    keep: tuple[str, ...] = ("DATE_TIME", "TITLE", "AGE", "NRP")


@dataclass(frozen=True)
class EvaluationSection:
    """Rows reserved before functions or acquisition see anything, and how a model is measured on them."""

    test_share: float = _between(0.0, 0.5, 0.1)
    dev_share: float = _between(0.0, 0.5, 0.05)
    max_rows: int = _between(1, 1_000_000, 400)
    metrics: tuple[str, ...] = field(
        default=("auto",),
        metadata={"choices": ("auto", "exact_match", "accuracy", "token_f1", "rouge_l", "bleu")},
    )


@dataclass(frozen=True)
class TrainSection:
    """The base model and the recipe. 0 and an empty string mean: chosen for the method and the size.

    ``adapt_steps``: how long the bundled base practises on the workspace's own unlabelled text before the first round.
    ``tracking``: where runs are followed beside their JSON lines. ``mlflow_store`` is a folder, relative to that of
    ``tilth.toml``, or a server; Weights & Biases writes to the folder ``wandb`` alone unless ``wandb_server`` names one.
    Servers beyond this machine must be listed under ``[egress]``; tokens come from the environment.
    """

    base: str = "bundled"
    revision: str = ""
    method: str = _one_of("lora", "dora", "adalora", "qlora", "int8", "full", default="lora")
    rank: int = _between(1, 1024, 16)
    epochs: float = _between(0, 1000, 0)
    learning_rate: float = _between(0, 1, 0)
    batch: int = _between(0, 4096, 0)
    max_length: int = _between(16, 1_000_000, 512)
    adapt_steps: int = _between(0, 10_000_000, 100)
    tracking: tuple[str, ...] = field(
        default=("tensorboard",), metadata={"choices": ("tensorboard", "mlflow", "wandb")}
    )
    mlflow_store: str = "mlruns"
    wandb_server: str = ""
    seed: int = 0


@dataclass(frozen=True)
class AcquisitionSection:
    """Which records people are asked next. A share of every batch is drawn at random, so that savings can be shown.

    ``bald`` takes the records of which a ``committee`` of so many ``members`` disagrees: samples of the adapter at this
    rate of ``dropout``, or an ``ensemble``, for which the others are trained every round.
    """

    strategy: str = _one_of(
        "random", "nll", "least_confidence", "margin", "entropy", "bald", "hybrid", default="hybrid"
    )
    committee: str = _one_of("dropout", "ensemble", default="dropout")
    members: int = _between(2, 100, 8)
    dropout: float = _between(0.0, 0.9, 0.1)
    batch: int = _between(1, 1_000_000, 50)
    control_share: float = _between(0, 1, 0.2)
    blind_share: float = _between(0, 1, 0.1)
    seed: int = 0


@dataclass(frozen=True)
class GatesSection:
    """What must hold before a snapshot may be trained on."""

    pii: bool = True
    leakage: bool = True
    min_alpha: float = _between(0, 1, 0.0)
    approval: str = _one_of("gates", "curator", default="gates")


@dataclass(frozen=True)
class EgressSection:
    """Hosts that this workspace may speak to beyond the loopback. Nothing leaves the machine unless it is listed."""

    allow: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelStudioSection:
    """The annotation server. The token comes from ``LABEL_STUDIO_API_KEY``, never from this file."""

    url: str = ""


@dataclass(frozen=True)
class Config:
    """A whole ``tilth.toml`` and the folder it stands in."""

    root: Path
    workspace: WorkspaceSection = WorkspaceSection()
    question: dict[str, QuestionSection] = field(default_factory=lambda: {"reply": QuestionSection()})
    functions: FunctionsSection = FunctionsSection()
    dedup: DedupSection = DedupSection()
    pii: PiiSection = PiiSection()
    evaluation: EvaluationSection = EvaluationSection()
    train: TrainSection = TrainSection()
    acquisition: AcquisitionSection = AcquisitionSection()
    gates: GatesSection = GatesSection()
    label_studio: LabelStudioSection = LabelStudioSection()
    egress: EgressSection = EgressSection()

    @property
    def ledger_url(self) -> str:
        """The ledger's URL, with a relative SQLite path made absolute."""
        return absolute_url(self.workspace.ledger, self.root)

    @property
    def artifacts_path(self) -> Path:
        """The folder of the artifact store."""
        return self.root / self.workspace.artifacts

    @property
    def tracking_servers(self) -> dict[str, str]:
        """The servers that trainings are followed on, by tracker; empty where all of them write to this machine alone."""
        store = self.train.mlflow_store
        servers = {"mlflow": store if ":" in store else "", "wandb": self.train.wandb_server}
        return {name: url for name, url in servers.items() if name in self.train.tracking and url}

    @property
    def the_question(self) -> tuple[str, QuestionSection]:
        """The first question of the file: the one that the loop asks."""
        return next(iter(self.question.items()))


def absolute_url(url: str, root: Path) -> str:
    """A SQLite URL with its path made absolute below ``root``; any other URL as it is."""
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url.startswith(prefix + "/"):
        return url
    return f"{prefix}{root.resolve() / url[len(prefix) :]}"


def find_root(start: Path) -> Path:
    """The workspace that ``start`` is. Raises :class:`UsageError` where there is none."""
    if not (start / FILE).is_file():
        raise UsageError(
            f"no {FILE} here: this is not a workspace",
            where=str(start),
            next="Make one with `tilth init DIR`, or name one with --workspace DIR",
        )
    return start


def load(root: Path) -> Config:
    """Read and check ``root``/tilth.toml. Raises one :class:`UsageError` that lists every problem of the file."""
    path = find_root(root) / FILE
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"not valid TOML: {error}", where=str(path), next="Mend that line") from error
    return parse(raw, root)


def parse(raw: dict[str, Any], root: Path) -> Config:
    """Check the values of a ``tilth.toml`` and build the configuration; see :func:`load` for errors."""
    problems: list[str] = []
    sections = {f.name: f for f in fields(Config) if f.name != "root"}
    config = Config(root)
    for key, value in raw.items():
        if key not in sections:
            problems.append(f"[{key}] is no section{_suggest(key, sections)}")
        elif not isinstance(value, dict):
            problems.append(f"{key} must be a section: [{key}]")
        elif key == "question":
            config = replace(config, question=_questions(value, problems))
        else:
            config = replace(config, **{key: _section(type(getattr(config, key)), value, key, problems)})
    problems += _across(config)
    if problems:
        many = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise UsageError(f"{many}:{lines}\n", where=str(root / FILE), next="Mend the file and run again")
    return config


def _questions(raw: dict[str, Any], problems: list[str]) -> dict[str, QuestionSection]:
    found = {}
    for name, value in raw.items():
        where = f"question.{name}"
        if not _NAME.fullmatch(name):
            problems.append(f"[{where}]: a name is lower case letters, digits, '.', '_' or '-'")
        elif not isinstance(value, dict):
            problems.append(f"question must hold sections: [question.{name}]")
        else:
            found[name] = _section(QuestionSection, value, where, problems)
    return found or {"reply": QuestionSection()}


def _section(kind: type, raw: dict[str, Any], where: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    values = {}
    for key, value in raw.items():
        if key not in known:
            problems.append(f"[{where}] has no key {key!r}{_suggest(key, known)}")
            continue
        problem, parsed = _value(value, hints[key], dict(known[key].metadata))
        if problem:
            problems.append(f"[{where}] {key} {problem}, not {value!r}")
        else:
            values[key] = parsed
    return kind(**values)


def _value(value: Any, hint: Any, rules: dict[str, Any]) -> tuple[str, Any]:
    """The parsed value, or what it must be instead."""
    if isinstance(hint, types.GenericAlias):
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            return "must be a list of texts", None
        value = tuple(value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {str: "a text in quotes", int: "a whole number", float: "a number", bool: "true or false"}
        return f"must be {names[hint]}", None
    if "choices" in rules:
        kinds = rules.get("kinds", ())
        wrong = [
            v
            for v in (value if isinstance(value, tuple) else (value,))
            if v not in rules["choices"] and not (v.partition(":")[0] in kinds and v.partition(":")[2])
        ]
        if wrong:
            return (
                f"must be one of {', '.join([*rules['choices'], *(f'{kind}:MODEL' for kind in kinds)])}",
                None,
            )
    if "range" in rules and not rules["range"][0] <= value <= rules["range"][1]:
        return f"must lie between {rules['range'][0]} and {rules['range'][1]}", None
    return "", value


def _across(config: Config) -> list[str]:
    """Problems that show only when two values are seen together."""
    problems = []
    if config.evaluation.test_share + config.evaluation.dev_share >= 1:
        problems.append("[evaluation] test_share and dev_share leave nothing to train on")
    if not config.workspace.ledger.startswith(("sqlite:///", "postgresql+psycopg://")):
        problems.append("[workspace] ledger must start with sqlite:/// or postgresql+psycopg://")
    if set(config.dedup.fields) - {"prompt", "completion"}:
        problems.append("[dedup] fields may hold prompt and completion")
    for name, question in config.question.items():
        if question.kind != "class" and question.classes:
            problems.append(f"[question.{name}] has classes, so its kind must be 'class'")
        if (question.kind == "rubric") != bool(question.criteria):
            problems.append(f"[question.{name}] a rubric has criteria, and nothing else has any")
    return problems


def _suggest(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"


def settings(config: Config) -> dict[str, Any]:
    """The configuration as plain values, for digests and for showing. Paths are left out: they name no rule."""

    def plain(value: Any) -> Any:
        if is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value) if f.name != "root"}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


TEMPLATE = """\
[workspace]
name = "{name}"
ledger = "sqlite:///ledger.db"      # or postgresql+psycopg://user@host/database
artifacts = "artifacts"             # a folder; snapshots and adapters live here
languages = ["en"]                  # text in others is held as unscanned

[question.reply]                    # what people are asked
kind = "auto"                       # auto | edit | accept | class | compare | rubric | spans; auto looks at your completions
guideline = ""                      # a Markdown file that annotators see beside each task
annotators_per_record = 1

[functions]
modules = ["labeling_functions/"]   # folders or files with labeling functions
label_model = "auto"                # auto | majority | weighted | dawid-skene | triplet | snorkel | blend

[dedup]
threshold = 0.8                     # Jaccard of 5-word shingles
fields = ["prompt", "completion"]

[pii]
layers = ["patterns", "names"]      # also spacy:NAME, transformers:FOLDER; one that is missing quarantines the row
mode = "pseudonym"                  # pseudonym | mask | drop | keep
deny = []                           # terms that are always replaced: code names, clients
allow = []                          # values that never are: your own company, your hotline
keep = ["DATE_TIME", "TITLE", "AGE", "NRP"]  # found, reported, left as they are

[evaluation]
test_share = 0.1                    # reserved before functions or acquisition see anything
dev_share = 0.05
max_rows = 400                      # at most this many test rows
metrics = ["auto"]                  # auto | exact_match | accuracy | token_f1 | rouge_l | bleu

[train]
base = "bundled"                    # the small base in the package, a directory, or a hub name
method = "lora"                     # lora | dora | adalora | qlora | int8 | full
rank = 16
tracking = ["tensorboard"]          # tensorboard | mlflow | wandb, beside JSON lines; servers need [egress]

[acquisition]
strategy = "hybrid"                 # hybrid | nll | least_confidence | margin | entropy | bald | random
batch = 50                          # records per round
control_share = 0.2                 # drawn at random, to measure what the strategy saves
blind_share = 0.1                   # shown without a suggestion, to measure anchoring

[gates]
pii = true
leakage = true
min_alpha = 0.0                     # Krippendorff's alpha between people; 0 asks for none
approval = "gates"                  # gates | curator

[label_studio]
url = ""                            # http://127.0.0.1:8080; the token comes from LABEL_STUDIO_API_KEY

[egress]
allow = []                          # hosts beyond this machine that Tilth may speak to
"""
