"""One self-contained page about a workspace: what labels bought, what cleaning did, what the functions are worth.

``gather`` reads facts, ``render`` makes HTML of them, ``write`` puts it into a file. The page loads nothing from
anywhere, shows every text as text, and prints an interval beside every measured number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import floor, log10
from pathlib import Path
from typing import Any

from curation.workspace import Workspace

STRATEGY, RANDOM = "strategy", "random arm"


def gather(workspace: Workspace, run: str) -> dict[str, Any]:
    """The facts of a page: rounds of one run, the cleaning funnel and the card of its newest snapshot, functions."""
    from apps.jobs import returned
    from curation import snapshot
    from curation.loop import reports

    rounds = reports(workspace, run)
    newest = rounds[-1]["snapshot"] if rounds else None
    manifest = snapshot.show(workspace.store, newest).manifest if newest else {}
    votes = (
        next((out for name, _, step, out in reversed(workspace.ledger.steps()) if step == "vote"), None) or {}
    )
    return {
        "workspace": workspace.config.workspace.name,
        "annotator": run,
        "rounds": rounds,
        "stages": manifest.get("stages", []),
        "gates": manifest.get("gates", []),
        "pii": manifest.get("pii", {}),
        "snapshot": newest,
        "functions": votes.get("functions", []),
        "label_model": {k: votes[k] for k in ("model", "why", "coverage") if k in votes},
        "counts": workspace.ledger.counts(),
        "returned": returned(workspace),
    }


def write(facts: Mapping[str, Any], out: Path) -> None:
    """Render the page and put it in place whole."""
    from curation.artifacts import write_atomic

    write_atomic(out, render(facts).encode())


def render(facts: Mapping[str, Any]) -> str:
    """The page as HTML. Sections without facts are left out."""
    sections = [
        _headline(facts),
        _curve(facts["rounds"]),
        _scores(facts.get("scores", [])),
        _rounds(facts["rounds"]),
        _returned(facts.get("returned", [])),
        _funnel(facts["stages"]),
        _gates(facts["gates"]),
        _functions(facts),
        _next(facts.get("next", [])),
    ]
    title = f"{facts['workspace']}: what the labels bought"
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body = "\n".join(section for section in sections if section)
    return PAGE.format(title=escape(title), style=STYLE, body=body, stamp=stamp)


def _section(title: str, body: str, note: str = "") -> str:
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}{body}</section>"


def _headline(facts: Mapping[str, Any]) -> str:
    rounds = facts["rounds"]
    name = escape(facts["workspace"])
    if not rounds:
        return f"<header><h1>{name}</h1><p>No round is finished yet.</p></header>"
    last = rounds[-1]
    simulated = "simulated annotator" if facts["annotator"] == "simulated" else "people"
    tiles = [
        (f"{last['metric_name']}, {STRATEGY}", number(last["metric"], last["metric_ci95"])),
        (f"{last['metric_name']}, {RANDOM}", number(last["random_metric"], last["random_ci95"])),
        ("difference, paired", signed(last.get("difference"))),
        ("labels", f"{last['labels']:,} <small>({escape(simulated)})</small>"),
        ("test rows, never trained on", f"{last['test_rows']:,}"),
    ]
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>" for k, v in tiles)
    return f"<header><h1>{name}</h1><dl class='tiles'>{cells}</dl></header>"


def number(value: float | None, ci: Sequence[float] | None) -> str:
    """A number with its 95% interval in small print; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" <small>[{ci[0]:.3f}, {ci[1]:.3f}]</small>" if ci else "")


def signed(paired: Mapping[str, Any] | None) -> str:
    """A difference with sign and interval, and in words when the interval holds zero."""
    if not paired:
        return "-"
    low, high = paired["ci95"]
    unsure = " <small>not told apart from 0</small>" if low <= 0 <= high else ""
    return f"{paired['value']:+.3f} <small>[{low:+.3f}, {high:+.3f}]</small>{unsure}"


# ------------------------------------------------------------------------------------------------- charts

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 720, 320, 56, 44, 16, 120


def _curve(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The metric over labels for both arms, with their intervals."""
    if not rounds:
        return ""
    arms = {
        STRATEGY: [(r["labels"], r["metric"], r["metric_ci95"]) for r in rounds],
        RANDOM: [
            (r["labels"], r["random_metric"], r["random_ci95"])
            for r in rounds
            if r["random_metric"] is not None
        ],
    }
    points = [point for arm in arms.values() for point in arm]
    top = max(point[2][1] for point in points) * 1.05 or 1.0
    most = max(point[0] for point in points) * 1.05
    drawn = "".join(_arm(name, arm, most, top) for name, arm in arms.items() if arm)
    chart = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="learning curve">{_axes(most, top)}{drawn}</svg>'
    note = "Bars are 95% bootstrap intervals over test rows. Both arms learned from equally many labels."
    return _section(f"{rounds[-1]['metric_name']} over labels", chart, note)


def _x(value: float, most: float) -> float:
    return LEFT + value / most * (WIDTH - LEFT - RIGHT)


def _y(value: float, top: float) -> float:
    return HEIGHT - BOTTOM - value / top * (HEIGHT - BOTTOM - TOP)


def _axes(most: float, top: float) -> str:
    parts = []
    for value in ticks(top):
        y = _y(value, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(most):
        parts.append(
            f'<text x="{_x(value, most):.1f}" y="{HEIGHT - 20}" text-anchor="middle">{value:.0f}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}" text-anchor="middle">labels</text>'
    )
    return "".join(parts)


def ticks(most: float) -> list[float]:
    """Round numbers from 0 to ``most``, four to nine of them: steps of 1, 2 or 5 times a power of ten.

    >>> ticks(0.73), ticks(168)
    ([0.0, 0.2, 0.4, 0.6], [0.0, 50.0, 100.0, 150.0])
    """
    unit = 10.0 ** floor(log10(most))
    step = next(s for s in (5 * unit, 2 * unit, unit, unit / 2, unit / 5) if most / s >= 3)
    return [round(i * step, 10) for i in range(int(most / step) + 1)]


def _arm(name: str, points: Sequence[tuple[float, float, Sequence[float]]], most: float, top: float) -> str:
    kind = "main" if name == STRATEGY else "other"
    shift = -3 if name == STRATEGY else 3  # so that the bars of both arms can be told apart
    at = [(_x(labels, most) + shift, _y(value, top), ci) for labels, value, ci in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
    bars = "".join(
        f'<line class="bar {kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{_y(ci[0], top):.1f}" y2="{_y(ci[1], top):.1f}"/>'
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        for x, y, ci in at
    )
    x, y, _ = at[-1]
    below = 14 if name == RANDOM else -2
    label = f'<text class="{kind}" x="{x + 12:.1f}" y="{y + below:.1f}">{escape(name)}</text>'
    return f'<polyline class="{kind}" points="{line}"/>{bars}{label}'


def _funnel(stages: Sequence[Mapping[str, Any]]) -> str:
    """Records into and out of every stage, as bars."""
    if not stages:
        return ""
    most = max(stage["in"] for stage in stages) or 1
    rows = []
    for stage in stages:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in stage["reasons"].items() if count)
        share = 100 * stage["out"] / most
        rows.append(
            f"<tr><th>{escape(stage['stage'])}</th><td class='n'>{stage['out']:,}</td>"
            f"<td class='wide'><div class='bar' style='width:{share:.1f}%'></div></td>"
            f"<td>{escape(reasons) or '<span class=quiet>nothing</span>'}</td></tr>"
        )
    head = "<tr><th>stage</th><th>records left</th><th></th><th>set aside or changed</th></tr>"
    return _section("What cleaning did", f"<table>{head}{''.join(rows)}</table>")


# ------------------------------------------------------------------------------------------------- tables


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of cells that are HTML already."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> str:
    if not rounds:
        return ""
    rows = [
        (
            str(r["round"]),
            f"{r['labels']:,}",
            number(r["metric"], r["metric_ci95"]),
            number(r["random_metric"], r["random_ci95"]),
            signed(r.get("difference")),
            f"<code>{escape(r['snapshot'][:12])}</code>",
            f"<code>{escape(r['adapter'][:12])}</code>",
        )
        for r in rounds
    ]
    header = ("round", "labels", STRATEGY, RANDOM, "difference", "snapshot", "adapter")
    return _section("Rounds", table(header, rows), "Snapshots and adapters are named by their digests.")


def _returned(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Adapters that were trained on other hosts, with the loss on their validation rows."""
    rows = [
        (
            f"<code>{escape(job['adapter'][:12])}</code>",
            f"<code>{escape(job['snapshot'][:12])}</code>",
            "-" if job.get("eval_loss") is None else f"{job['eval_loss']:.4f}",
            f"{job['steps']:,}",
            f"{job['seconds'] / 60:.1f}",
            escape(str(job.get("host", "-"))),
        )
        for job in jobs
    ]
    header = ("adapter", "snapshot", "validation loss", "updates", "minutes", "host")
    note = "Checked against the snapshot of that name; not measured on test rows."
    return _section("Trained elsewhere", table(header, rows), note) if rows else ""


def _scores(scores: Sequence[Mapping[str, Any]]) -> str:
    """The score card of a corpus whose faults are known."""
    if not scores:
        return ""
    rows = [
        (
            escape(s["what"]),
            f"{s['found']:,} of {s['known']:,}",
            number(s["recall"], s["ci95"]),
            escape(s["note"]),
        )
        for s in scores
    ]
    note = "The corpus was generated, so every fault in it is known. Intervals are 95% Wilson intervals."
    return _section("Scored against the known faults", table(("fault", "found", "recall", ""), rows), note)


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    if not gates:
        return ""
    rows = [
        (
            escape(g["gate"]),
            f"<b class='{escape(g['status'])}'>{escape(g['status'])}</b>",
            escape(g["detail"]),
        )
        for g in gates
    ]
    return _section("Gates of the newest snapshot", table(("gate", "answer", "because"), rows))


def _functions(facts: Mapping[str, Any]) -> str:
    functions = facts["functions"]
    if not functions:
        return ""
    model = facts["label_model"]
    rows = [
        (
            f"<code>{escape(f['name'])}</code>",
            *(f"{f[name]:.1%}" for name in ("coverage", "overlap", "conflict")),
            number(f.get("accuracy"), f.get("interval")),
        )
        for f in functions
    ]
    header = ("function", "coverage", "overlap", "conflict", "accuracy on dev")
    note = f"Label model: {model.get('model', '-')} ({model.get('why', '')})"
    return _section("Labeling functions", table(header, rows), note)


def _next(commands: Sequence[str]) -> str:
    if not commands:
        return ""
    return _section("Next", "<pre>" + "\n".join(escape(command) for command in commands) + "</pre>")


STYLE = """
:root { color-scheme: light dark; --ink: #1d2a1f; --quiet: #66756a; --paper: #fbfaf6; --line: #dcdccf;
  --main: #2f6b3c; --other: #b0732c; --bad: #a8322d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9e2; --quiet: #9aa79d; --paper: #161a17; --line: #343b35;
  --main: #7fc48d; --other: #dba45f; --bad: #e5807a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; max-width: 60rem;
  padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; margin: 0 0 1rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
.note, .quiet, small, footer { color: var(--quiet); font-size: .875rem; font-weight: normal; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 0; }
.tiles div { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
dt { color: var(--quiet); font-size: .875rem; } dd { margin: .15rem 0 0; font-size: 1.3rem; font-weight: 600; }
dd small { display: block; } small { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .925rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; } td.wide { width: 35%; }
div.bar { background: var(--main); height: .8rem; border-radius: .2rem; margin-top: .35rem; opacity: .8; }
pre, code { font: .875rem/1.5 ui-monospace, monospace; } pre { border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; overflow-x: auto; }
svg { width: 100%; height: auto; } svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); } svg polyline { fill: none; stroke-width: 2.5; }
polyline.main, line.main { stroke: var(--main); } polyline.other, line.other { stroke: var(--other); }
circle.main { fill: var(--main); } circle.other { fill: var(--other); } line.bar { stroke-width: 2; opacity: .55; }
svg text.main { fill: var(--main); font-weight: 600; } svg text.other { fill: var(--other); font-weight: 600; }
b.refused { color: var(--bad); } b.passed { color: var(--main); }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title><style>{style}</style></head>
<body>{body}<footer><p>Written by Tilth, {stamp}.</p></footer></body></html>
"""
