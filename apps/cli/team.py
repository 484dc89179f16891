"""Who answers and what they are asked: people, questions, revisions, projects taken over."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from apps.cli import app, session
from apps.cli.data import DryRun
from apps.cli.session import grid, lines

people = typer.Typer(
    name="people",
    help="Who answers: their time, what they know, and their work. Alone it lists them.",
    rich_markup_mode=None,
)
question = typer.Typer(
    name="question",
    help="What people are asked. Alone it shows the question as it stands.",
    rich_markup_mode=None,
)
app.add_typer(people, invoke_without_command=True)
app.add_typer(question, invoke_without_command=True)

Named = Annotated[str, typer.Option("--name", help="Which question; the first of tilth.toml by default.")]
Pairs = Annotated[list[str] | None, typer.Option(help="OLD=NEW; may be given several times.")]


@people.callback()
def people_list(context: typer.Context) -> None:
    """Who answers: their time, what they know, and their work. Alone it lists them."""
    if context.invoked_subcommand:
        return
    from curation.people import plan

    with session.workspace() as opened:
        team = plan.people(opened)
    told = [_person(p) for p in team]
    rows = [(p["name"], p["minutes"], ", ".join(p["expertise"]), p["email"], p["active"]) for p in told]
    text = grid(rows, ("name", "minutes", "expertise", "login", "active")) if rows else "nobody was added yet"
    session.report({"people": told}, text)


def _person(person: Any) -> dict[str, Any]:
    return {
        "id": person.id,
        "name": person.name,
        "minutes": person.minutes,
        "expertise": sorted(person.expertise),
        "email": person.email,
        "active": person.active,
    }


@people.command(epilog="Example: tilth people add Ines --minutes 90 --expertise hazmat,customs")
def add(
    name: Annotated[str, typer.Argument(help="Whoever answers; their project on the server bears the name.")],
    minutes: Annotated[int, typer.Option(min=1, help="Their time, in minutes a week.")],
    expertise: Annotated[str, typer.Option(help="What they know, separated by commas.")] = "",
    email: Annotated[str, typer.Option(help="Their login in Label Studio, to tell whose answer it is.")] = "",
    dry_run: DryRun = False,
) -> None:
    """Add somebody, or change what is known of them. Rounds are sized and routed by it."""
    from curation.people import plan

    with session.workspace() as opened:
        if dry_run:
            told: dict[str, Any] = {"name": name, "minutes": minutes, "expertise": expertise.split(",")}
        else:
            told = _person(
                plan.add(opened, name, minutes=minutes, expertise=expertise.split(","), email=email)
            )
    session.report({**told, "dry_run": dry_run}, f"{name}: {minutes} minutes a week")


@people.command(epilog="Example: tilth people stop Ines")
def stop(
    name: Annotated[str, typer.Argument(help="Who has stopped answering.")], dry_run: DryRun = False
) -> None:
    """Note that somebody has stopped, and give their open tasks to others. What they said stays."""
    from curation import people as room
    from curation.people import plan
    from curation.question import current

    with session.workspace() as opened:
        person = plan.find(opened, name)
        load = plan.loads(opened, "label-studio")[person.id]
        told = {"moved": 0, "given_up": 0, "open": load.open}
        if not dry_run:
            plan.stop(opened, name)
            if load.open:
                told |= room.label_studio().rebalance(opened, current(opened), person)
    text = f"{name} has stopped; of {load.open} open tasks {told['moved']} went to others"
    session.report({"name": name, **told, "dry_run": dry_run}, text)


def people_text(told: dict[str, Any]) -> str:
    """A line per person, then what holds for all."""
    header = ("person", "this week", "open", "minutes", "spent", "per item", "agreement", "skill", "changed")
    rows = []
    for row in told["people"]:
        agreed = row["agreement"]["share"] if row.get("agreement") else None
        given = row.get("minutes") if row.get("active") is not False else "stopped"
        numbers = (row.get("minutes_spent"), row.get("minutes_per_item"), agreed, row.get("skill"))
        rows.append((row["person"], row["done_this_week"], row.get("open"), given, *numbers, row["changed"]))
    text = grid(rows, header) if rows else "nobody has answered yet, and nobody was added"
    if told["alpha"] is not None:
        text += f"\nKrippendorff's alpha: {told['alpha']:.3f}"
    if (gap := told["anchoring"]["difference"]) is not None:
        low, high = gap["ci95"]
        text += f"\nAnchoring: shown suggestions are followed {gap['value']:+.3f} [{low:+.3f}, {high:+.3f}] more often"
    return text


@question.callback()
def question_show(context: typer.Context) -> None:
    """What people are asked. Alone it shows the question as it stands."""
    if context.invoked_subcommand:
        return
    from curation.question import current

    with session.workspace() as opened:
        asked = current(opened)
    told = {"name": asked.name, "version": asked.version, "kind": asked.kind, "classes": list(asked.classes)}
    session.report(told, lines({**told, "classes": ", ".join(asked.classes) or "free text"}))


@question.command(
    epilog="Example: tilth question revise --add hazmat --merge lost=claims --rename billing=invoices"
)
def revise(
    add: Annotated[list[str] | None, typer.Option(help="A new class; may be given several times.")] = None,
    merge: Pairs = None,
    rename: Pairs = None,
    reask: Annotated[
        list[str] | None, typer.Option(help="A class whose answers no longer count and are asked for again.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A class that goes; its records are asked about again.")
    ] = None,
    name: Named = "",
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave the projects on the server; the next push renews them.")
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Revise the classes: old labels are mapped, kept or asked for again, and the projects renewed."""
    from curation import people as room
    from curation.people import revising
    from curation.question import Revision

    change = Revision(
        tuple(add or ()), _pairs(merge), _pairs(rename), tuple(reask or ()), tuple(remove or ())
    )
    with session.workspace() as opened:
        through = None if offline or dry_run else room.label_studio()
        told = revising.revise(opened, change, name or None, through, dry_run=dry_run)
    counts = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in told["labels"].items())
    text = f"{told['question']} version {told['version']}: {', '.join(told['classes'])}\nold labels: {counts}"
    session.report({**told, "dry_run": dry_run}, text)


@question.command(epilog="Example: tilth question judged --name quality")
def judged(name: Named = "") -> None:
    """What people's grades or preferences amount to: every answer, who grades strictly, which source wins."""
    from curation import judging
    from curation.question import current

    with session.workspace() as opened:
        told = judging.report(opened, current(opened, name or None))
    session.report(told, _judged_text(told))


def _judged_text(told: dict[str, Any]) -> str:
    """The answers from worst to best, since the worst want a look, then people or sources."""
    rows = [(a["record"][:12], a["share"], a["words"], a["text"][:60]) for a in reversed(told["answers"])]
    text = f"{told['judgements']} judgements of {len(rows)} answers"
    text += "\n" + grid(rows[:20], ("record", "share", "in words", "answer")) if rows else ""
    if people := told.get("people"):
        text += "\n" + grid([(p["person"], p["leaning"]) for p in people], ("person", "grades above others"))
    if sources := told.get("sources"):
        text += "\n" + grid([(s["source"], s["strength"]) for s in sources], ("source", "strength"))
    return text


def _pairs(given: list[str] | None) -> dict[str, str]:
    from curation.errors import UsageError

    found = {}
    for pair in given or ():
        old, sign, new = pair.partition("=")
        if not (old and sign and new):
            raise UsageError(f"{pair!r} is no OLD=NEW", where="tilth question revise")
        found[old] = new
    return found


@question.command(epilog="Example: tilth question adopt 12")
def adopt(
    project: Annotated[int, typer.Argument(min=1, help="The project's number, as its address shows it.")],
    dry_run: DryRun = False,
) -> None:
    """Take over a Label Studio project with its tasks and answers; again, to take in what it got since."""
    from curation import people as room
    from curation.people import adopt as taking

    with session.workspace() as opened, room.server(opened) as client:
        told = taking.adopt(opened, client, project, dry_run=dry_run)
    session.report({**told, "dry_run": dry_run}, lines(told))
