"""Every file format that Tilth reads and writes: rows in, rows out, and bad rows with line, byte offset and
reason.

Nothing outside this package knows how a file is laid out; nothing inside it knows what a row is for.
"""

from curation.formats.again import Block, Repeatable, repeatable
from curation.formats.objects import field_text, read_objects, text_fields, text_of
from curation.formats.passages import Passage, chunks, passages
from curation.formats.read import read
from curation.formats.rows import MAX_LINE, REASONS, BadRow, Batch, Damage, Format, Mapping, Row
from curation.formats.shapes import shape_of
from curation.formats.shaping import LOSSES
from curation.formats.sniff import FORCED, sniff
from curation.formats.strict import parse
from curation.formats.vectors import read_vectors
from curation.formats.write import TARGETS, Converted, Written, convert, neutral, write

__all__ = [
    "FORCED",
    "LOSSES",
    "MAX_LINE",
    "REASONS",
    "TARGETS",
    "BadRow",
    "Batch",
    "Block",
    "Converted",
    "Damage",
    "Format",
    "Mapping",
    "Passage",
    "Repeatable",
    "Row",
    "Written",
    "chunks",
    "convert",
    "field_text",
    "neutral",
    "parse",
    "passages",
    "read",
    "read_objects",
    "read_vectors",
    "repeatable",
    "shape_of",
    "sniff",
    "text_fields",
    "text_of",
    "write",
]
