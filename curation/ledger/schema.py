"""The ledger's tables. Append-only: rows are added, never changed, with four named exceptions.

The exceptions are the body of an erased payload, the name of an erased author, and the two bookkeeping tables
``watermarks`` and ``leases``; their columns are marked ``chained=False``, because the audit chain covers what may
never change. Nothing here runs a statement.

Every table has ``seq``, its commit order without gaps, and ``tx``, the row of ``transactions`` that holds workspace,
actor, time and command for it. JSON is canonical text; flags are 0 or 1; digests are 32 hexadecimal characters.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, Integer, LargeBinary, MetaData, Table, Text

METADATA = MetaData()
SEQ = BigInteger().with_variant(Integer, "sqlite")  # INTEGER makes it SQLite's row id: no second index


def _text(name: str, *, unique: bool = False, null: bool = False, chained: bool = True) -> Column:
    return Column(name, Text, unique=unique, nullable=null, info={"chained": chained})


def _int(name: str, *, null: bool = False, chained: bool = True) -> Column:
    return Column(name, BigInteger, nullable=null, info={"chained": chained})


def _float(name: str) -> Column:
    return Column(name, Double, nullable=True)


def _table(name: str, *columns: Column | Index) -> Table:
    first = (
        Column("seq", SEQ, primary_key=True, autoincrement=False),
        Column("tx", BigInteger, nullable=False),
    )
    return Table(name, METADATA, *first, *columns)


# --- the store itself ----------------------------------------------------------------------------------------------
meta = Table("meta", METADATA, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))
migrations = Table(
    "migrations",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("applied", Text, nullable=False),
)
transactions = Table(
    "transactions",
    METADATA,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    _text("workspace"),
    _text("actor"),
    _text("time"),
    _text("command"),
    _text("content"),  # digest of every chained row that this transaction wrote
    _text("chain"),  # digest of the chain before, and of this row
)

# --- text, the one place where it can be erased -----------------------------------------------------------------------
payloads = _table(
    "payloads",
    _text("digest", unique=True),
    Column("body", LargeBinary, nullable=True, info={"chained": False}),
    _int("erased_tx", null=True, chained=False),
)
erasures = _table("erasures", _text("digest"), Index("erasures_digest", "digest"))

# --- what came in ---------------------------------------------------------------------------------------------------
ingests = _table(
    "ingests",
    _text("id", unique=True),
    _text("source"),
    _text("file_name"),
    _text("file_digest"),
    _text("format"),
    _text("rule"),
    _text("trust"),
)
ingest_batches = _table(
    "ingest_batches", _int("ingest"), _int("accepted"), _int("unchanged"), _int("conflicts")
)
ingest_ends = _table("ingest_ends", _int("ingest"), _int("accepted"), _int("unchanged"), _int("quarantined"))
ingest_undos = _table("ingest_undos", _int("ingest"), Index("ingest_undos_ingest", "ingest"))
records = _table(
    "records",
    _text("id", unique=True),
    _text("source"),
    _text("key", null=True),
    _text("payload"),
    _text("lang", null=True),
    _text("grp", null=True),
    _text("time_of", null=True),
    _text("tags", null=True),
    _int("occurrence"),
    _int("ingest"),
)
reasserted = _table(
    "reasserted",  # a later import held this row too; label_seq is null for the record itself
    _int("ingest"),
    _int("record_seq"),
    _int("label_seq", null=True),
    Index("reasserted_record", "record_seq", "ingest"),
)
quarantine = _table(
    "quarantine",
    _int("ingest"),
    _text("file"),
    _int("line"),
    _int("offset"),
    _text("reason"),
    _text("message"),
    _text("payload", null=True),
    Index("quarantine_ingest", "ingest"),
)
passages = _table(
    "passages",
    _text("id", unique=True),
    _text("document"),
    _text("version"),
    _text("heading"),
    _text("payload"),
    _int("ingest", null=True),
)

# --- opinions -------------------------------------------------------------------------------------------------------
authors = _table("authors", _text("id", unique=True), _text("name", null=True, chained=False), _text("kind"))
labels = _table(
    "labels",
    _text("id", unique=True),
    _int("record_seq"),
    _text("question", null=True),
    _int("question_version", null=True),
    _text("kind"),
    _text("author"),
    _text("payload"),
    _float("confidence"),
    _text("showing", null=True),
    _int("ingest", null=True),
    _text("extra", null=True),
    Index("labels_record", "record_seq"),
)
label_withdrawals = _table(
    "label_withdrawals",  # the latest row of a label says whether it is withdrawn
    _text("label"),
    _int("withdrawn"),
    _text("reason"),
    Index("label_withdrawals_label", "label"),
)
functions = _table(
    "functions", _text("digest", unique=True), _text("name"), _text("path"), _text("source"), _text("classes")
)
vote_runs = _table(
    "vote_runs",
    _text("id", unique=True),
    _text("artifact"),
    _text("rule"),
    _int("record_hi"),
    _text("functions"),
)
scores = _table(
    "scores",
    _text("id", unique=True),
    _text("adapter"),
    _text("artifact"),
    _text("view_rule"),
    _int("record_hi"),
)

# --- asking people --------------------------------------------------------------------------------------------------
questions = _table(
    "questions",
    _text("name"),
    _int("version"),
    _text("kind"),
    _text("classes"),
    _text("rubric"),
    _text("guideline", null=True),
    _text("mapping"),
    Index("questions_name", "name", "version", unique=True),
)
showings = _table(
    "showings",
    _text("id", unique=True),
    _int("record_seq"),
    _text("question"),
    _int("question_version"),
    _text("view_digest"),
    _text("suggestion", null=True),
    _text("suggestion_by", null=True),
    _text("passages"),
    _int("blind"),
    _text("selection", null=True),
    _text("annotator", null=True),
    _text("extra", null=True),
    Index("showings_record", "record_seq"),
)
tasks = _table("tasks", _text("id", unique=True), _text("showing"), _text("channel"), _text("remote"))
task_events = _table("task_events", _text("task"), _text("state"), Index("task_events_task", "task"))
reviews = _table(
    "reviews",
    _text("id", unique=True),
    _int("record_seq"),
    _int("version"),
    _text("action"),
    _text("label", null=True),
    _text("payload", null=True),
    _text("reason"),
    _text("author"),
    _text("key", unique=True),
    Index("reviews_version", "record_seq", "version", unique=True),
)

# --- what stages did ------------------------------------------------------------------------------------------------
decisions = _table(
    "decisions",
    _int("record_seq"),
    _text("label", null=True),
    _text("stage"),
    _text("rule"),
    _text("input", null=True),
    _text("action"),
    _text("reason"),
    _text("evidence"),
    _text("output", null=True),
    _text("run", null=True),
    Index("decisions_rule", "stage", "rule", "record_seq"),
    Index("decisions_record", "record_seq"),
)
coverage = _table(
    "coverage",
    _text("stage"),
    _text("rule"),
    _text("what"),
    _int("lo"),
    _int("hi"),
    Index("coverage_rule", "stage", "rule"),
)
aliases = _table(
    "aliases",
    _text("entity_type"),
    _text("hash"),
    _text("alias", unique=True),
    Index("aliases_entity", "entity_type", "hash", unique=True),
)

# --- the loop -------------------------------------------------------------------------------------------------------
selections = _table(
    "selections",
    _text("id", unique=True),
    _int("round"),
    _text("run"),
    _text("strategy"),
    _text("adapter", null=True),
)
selection_items = _table(
    "selection_items",
    _text("selection"),
    _int("position"),
    _int("record_seq"),
    _text("arm"),
    _text("reason"),
    _float("cost"),
    Index("selection_items_selection", "selection", "position", unique=True),
    Index("selection_items_record", "record_seq"),
)
eval_sets = _table("eval_sets", _text("digest", unique=True), _text("name"), _text("rule"))
eval_items = _table(
    "eval_items",
    _text("eval_set"),
    _int("record_seq"),
    _text("role"),
    Index("eval_items_record", "record_seq", unique=True),
)
splits = _table("splits", _int("record_seq"), _text("split"), Index("splits_record", "record_seq"))
snapshots = _table(
    "snapshots",
    _text("name", unique=True),
    _text("parent", unique=True),  # "" for the first: a parent with two children would be a fork
    _int("round", null=True),
    _int("rows"),
    _text("manifest_digest"),
)
approvals = _table("approvals", _text("snapshot"), _text("verdict"), _text("by"), _text("reason"))
adapters = _table(
    "adapters",
    _text("digest", unique=True),
    _text("snapshot", null=True),
    _text("base"),
    _text("recipe"),
    _text("metrics"),
    _text("path"),
    _text("arm", null=True),
)
steps = _table(
    "steps",
    _text("run"),
    _int("round"),
    _text("step"),
    _text("output"),
    Index("steps_key", "run", "round", "step", unique=True),
)
events = _table(
    "events", _text("kind"), _text("subject"), _text("detail"), Index("events_subject", "subject")
)

# --- bookkeeping, not history ---------------------------------------------------------------------------------------
watermarks = Table(
    "watermarks", METADATA, Column("name", Text, primary_key=True), Column("value", Text, nullable=False)
)
leases = Table(
    "leases",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires", Double, nullable=False),
)

TABLES: tuple[Table, ...] = tuple(METADATA.sorted_tables)
LOGGED: tuple[Table, ...] = tuple(t for t in TABLES if "tx" in t.c)
"""The tables whose rows a transaction writes, and the audit chain covers."""


def chained_columns(table: Table) -> list[str]:
    """The columns that may never change, in order, ``seq`` and ``tx`` first."""
    return [c.name for c in table.columns if c.info.get("chained", True)]
