"""What every command shares: the global options, progress on stderr, results on stdout.

Results are either a text for people or one JSON object; talk and progress never reach stdout. Texts from data are
printed without control characters, so that no record can drive somebody's terminal.
"""

from __future__ import annotations

import getpass
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.errors import Quarantined, TilthError

if TYPE_CHECKING:
    from curation.workspace import Workspace

# C0 and C1 control characters but tab and newline, and the characters that reorder text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
SCHEMA = 1  # of what --json prints; raised when a key changes its meaning


def plain(text: object) -> str:
    r"""A text as it may be shown in a terminal: control and reordering characters are spelt out.

    >>> plain("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), str(text))


def login() -> str:
    """The name of whoever runs the command; ``unknown`` where the machine does not say."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@dataclass
class Session:
    """The global options of one call."""

    root: Path = Path()
    as_json: bool = False
    quiet: bool = False
    actor: str = ""
    started: float = field(default_factory=time.monotonic)
    rows_on_stdout: bool = False  # ``--out -``: a table for people would stand among the rows

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """The open workspace, closed at the end."""
        from curation.workspace import open_workspace

        with open_workspace(self.root, actor=self.actor) as opened:
            yield opened

    def say(self, text: str) -> None:
        """A line of talk for people, on stderr; nothing with ``--quiet``."""
        if not self.quiet:
            print(plain(text), file=sys.stderr, flush=True)

    def report(self, result: dict[str, Any], text: str = "") -> None:
        """The result: as JSON, or the text (the result as ``key: value`` lines where there is none).

        The text is talk where rows went to stdout, so that what is piped holds rows alone; the JSON object then is the
        last line. A text says of a dry run that it was one.
        """
        if self.as_json:
            print(json.dumps({"schema": SCHEMA, **result}, ensure_ascii=True, default=str), flush=True)
            return
        text = text or lines(result)
        if result.get("dry_run"):
            text += "\n(dry run: nothing was written)"
        if self.rows_on_stdout:
            self.say(text)
        else:
            print(plain(text), flush=True)

    def fail(self, error: TilthError) -> None:
        """The error: its sentence on stderr, and with ``--json`` an object on stdout too."""
        print(f"tilth: {plain(error)}", file=sys.stderr, flush=True)
        if self.as_json:
            told = {
                "what": error.what,
                "where": error.where,
                "next": error.next,
                "exit_code": error.exit_code,
            }
            print(json.dumps({"schema": SCHEMA, "error": told}, ensure_ascii=True), flush=True)

    @contextmanager
    def progress(self) -> Iterator[Meter]:
        """A meter for long work; silent with ``--quiet``."""
        meter = Meter(None if self.quiet else sys.stderr)
        try:
            yield meter
        finally:
            meter.close()


class Meter:
    """Progress on stderr: one line that is redrawn on a terminal, a line now and then elsewhere.

    Called as ``meter(what, done, total)``; ``total`` may be ``None``. Shows the rate, and the time left where the
    total is known, and ``remark``, which whoever works may set (a loss, say).
    """

    remark = ""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.live = bool(stream and stream.isatty())
        self.what = ""
        self.begun = self.shown = 0.0
        self.width = self.last = 0

    def __call__(self, what: str, done: int, total: int | None) -> None:
        if self.stream is None:
            return
        now = time.monotonic()
        if what != self.what or done < self.last:  # the next piece of work, or the same kind of work again
            self.end_line()
            self.what, self.begun, self.shown = what, now, 0.0
            self.remark = self.remark if done else ""
        self.last = done
        if now - self.shown < (0.1 if self.live else 5.0):
            return
        self.shown = now
        self.draw(self.line(done, total, now - self.begun))

    def line(self, done: int, total: int | None, seconds: float) -> str:
        """What a moment of progress looks like in words."""
        if not done:
            return f"  {self.what}"
        rate = done / seconds if seconds > 0 else 0.0
        text = f"  {self.what}  {done:,}" + (f" of {total:,}" if total else "")
        if seconds >= 1:
            text += f"  {rate:,.0f}/s" if rate >= 1 else ""
            text += f"  {span((total - done) / rate)} left" if total and total > done else ""
        return f"{text}  {self.remark}" if self.remark else text

    def draw(self, text: str) -> None:
        """Show the line: over the last one on a terminal."""
        text = plain(text)
        if self.live:
            self.stream.write("\r" + text[:120].ljust(self.width))
            self.width = min(len(text), 120)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def end_line(self) -> None:
        """Leave the redrawn line standing."""
        if self.live and self.width:
            self.stream.write("\n")
            self.width = 0

    def close(self) -> None:
        """The work is over."""
        if self.stream is not None:
            self.end_line()


def span(seconds: float) -> str:
    """A duration in words a person can read at once.

    >>> span(4), span(75), span(7300)
    ('4 s', '1 min 15 s', '2 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def lines(result: dict[str, Any], indent: str = "") -> str:
    """A result as aligned ``key  value`` lines, nested objects indented."""
    if not result:
        return f"{indent}nothing"
    width = max(len(str(key)) for key in result)
    out = []
    for key, value in result.items():
        name = f"{indent}{str(key).replace('_', ' '):<{width}}"
        if isinstance(value, dict) and value:
            out += [name.rstrip(), lines(value, indent + "  ")]
        else:
            out.append(f"{name}  {_whole(value)}")
    return "\n".join(out)


def _whole(value: Any) -> str:
    """A number with commas, a truth value as yes or no, anything else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def grid(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> str:
    """Rows as a plain table: texts to the left, numbers to the right; an empty table says so."""
    if not rows:
        return "nothing to show"
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = [
        all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(header))
    ]
    out = []
    for row in cells:
        shown = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        out.append("  ".join(shown).rstrip())
    out.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(out)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else plain(value)


def strictly(strict: bool, quarantined: int) -> None:
    """Raise :class:`Quarantined` where rows were set aside and ``--strict`` was asked for."""
    if strict and quarantined:
        raise Quarantined(
            f"{quarantined:,} rows were quarantined",
            next="See them with `tilth status --quarantine`, or run without --strict",
        )
