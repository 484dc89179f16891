"""The nouns as Arrow schemas, and the digests that name them.

Everything that a stage takes or gives is a table of one of these schemas. Nothing here reads a file or knows a rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

Message = Mapping[str, str]

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
MESSAGES = pa.list_(MESSAGE)

# Who stands behind a completion. The first three are a source's own completion, by how far the source is trusted.
SOURCE_TRUST = ("candidate", "reference", "gold")
AUTHOR_KINDS = (*SOURCE_TRUST, "person", "curator", "function", "model", "consensus")
JUDGING = ("accept", "compare", "rubric", "spans")
"""The kinds of questions whose Labels are opinions about an answer: verdicts, grades and marks, and no completions."""

VIEW = pa.schema(
    [
        ("record", pa.string()),
        ("label", pa.string()),  # the Label that the completion comes from; null where the record has none
        ("messages", MESSAGES),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("trust", pa.string()),
        ("lang", pa.string()),
        ("group", pa.string()),
        ("time", pa.string()),
        ("source", pa.string()),
    ]
)
"""One row per candidate example: a record and one of its completions (null where it has none)."""

DECISIONS = pa.schema(
    [
        ("record", pa.string()),
        ("label", pa.string()),
        ("action", pa.string()),
        ("reason", pa.string()),
        ("evidence", pa.string()),
        ("output", pa.string()),
    ]
)
"""What a stage did to a row that it did not simply keep; ``evidence`` is JSON, ``output`` the rewritten body."""

ACTIONS = ("keep", "drop", "rewrite", "hold", "quarantine")

VOTES = pa.schema([("record", pa.string()), ("function", pa.string()), ("vote", pa.string())])
"""One opinion of one labeling function; a null vote abstains."""

PROBABILITIES = pa.schema(
    [
        ("record", pa.string()),
        ("label", pa.string()),
        ("classes", pa.list_(pa.string())),
        ("proba", pa.list_(pa.float64())),
        ("weight", pa.float64()),
    ]
)
"""One distribution over the classes per record; ``label`` is null and ``weight`` 0 where nobody had an opinion."""

SCORES = pa.schema(
    [
        ("record", pa.string()),
        ("view", pa.string()),
        ("nll", pa.float64()),
        ("confidence", pa.float64()),
        ("margin", pa.float64()),
        ("entropy", pa.float64()),
        ("disagreement", pa.float64()),
        ("completion", pa.string()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
"""What an adapter made of a view: nats per token of its greedy completion, probability of its best class, the
difference to the second best, the entropy over all classes in nats, the mutual information of class and model in nats
(where several were asked), the completion itself, and a mean-pooled hidden state."""

EXAMPLES = pa.schema(
    [
        ("record", pa.string()),
        ("messages", MESSAGES),
        ("prompt", pa.string()),
        ("completion", pa.string()),
        ("split", pa.string()),
        ("weight", pa.float64()),
        ("labels", pa.list_(pa.string())),
        ("authors", pa.list_(pa.string())),
        ("author_kinds", pa.list_(pa.string())),
        ("functions", pa.list_(pa.string())),
        ("arm", pa.string()),
        ("round", pa.int32()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("cluster", pa.string()),
    ]
)
"""What a snapshot holds. The name of the snapshot covers messages, completion, split and weight; the rest is lineage."""

SPLITS = ("train", "validation", "test")


def digest(data: bytes | str) -> str:
    """The 128-bit BLAKE2b digest that names payloads, records, labels and rules: 32 hexadecimal characters."""
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


def canonical_json(value: Any) -> bytes:
    """One spelling per value: sorted keys, no white space, UTF-8. The input of every digest of a structure.

    Raises ``TypeError`` for what JSON cannot hold.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)


def record_id(source: str, *, key: str | None = None, payload: str = "", occurrence: int = 0) -> str:
    """The identity of a Record: source and ``key``; without a key, payload digest and occurrence number.

    The occurrence counts earlier rows of the same file with the same content, so neither the order of the rows nor
    the name of the file matters, and a second import of the same rows finds the same records.
    """
    what = f"id:{key}" if key is not None else f"text:{payload}#{occurrence}"
    return digest(f"{source}\0{what}")


def user_message(text: str) -> list[dict[str, str]]:
    """The messages of a plain prompt."""
    return [{"role": "user", "content": text}]


def prompt_text(messages: Sequence[Message]) -> str:
    """The prompt as one text: the content of a single user message, else one ``role: content`` line per message.

    >>> prompt_text(user_message("Where is my parcel?"))
    'Where is my parcel?'
    """
    if len(messages) == 1 and messages[0]["role"] == "user":
        return messages[0]["content"]
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)


def table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of ``schema``; a column that a row lacks is null. No rows give an empty table."""
    rows = list(rows)
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def decision(
    record: str,
    action: str,
    reason: str,
    *,
    label: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """One row of :data:`DECISIONS`."""
    text = canonical_json(evidence or {}).decode()
    return {
        "record": record,
        "label": label,
        "action": action,
        "reason": reason,
        "evidence": text,
        "output": output,
    }
