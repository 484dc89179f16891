"""The command line: parse, call, report. Every command's work is done below ``apps``; here it is only asked for.

Results go to stdout, talk to stderr. Commands that need a workspace find it in ``--workspace``; filters need none.
"""

from __future__ import annotations

import logging
import signal
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from apps.cli.session import Session, login
from curation.errors import TilthError

app = typer.Typer(
    name="tilth",
    help="Get data ready before a model is grown on it: label, clean, freeze, train, and choose what to label next.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
session = Session()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"tilth {metadata.version('tilth')}")
        raise typer.Exit


@app.callback()
def options(
    workspace: Annotated[Path, typer.Option(help="The workspace's folder.")] = Path(),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress and no talk.")] = False,
    actor: Annotated[str, typer.Option(help="Who does this, for the ledger; your login by default.")] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """The options that stand before every command."""
    session.root, session.as_json, session.quiet = workspace, json, quiet
    session.actor, session.rows_on_stdout = actor or login(), False


def main(args: list[str] | None = None) -> None:
    """The entry point: runs one command and exits with the code that its outcome stands for."""
    signal.signal(signal.SIGTERM, _terminated)
    # What libraries tell their own developers (kernels that are not there, names that will change) helps no user.
    warnings.simplefilter("ignore", FutureWarning)
    warnings.filterwarnings("ignore", module="peft")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        app(args=args, prog_name="tilth")
    except TilthError as error:
        session.fail(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has stopped reading; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(0)


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


from apps.cli import (  # noqa: E402, F401
    cleaning,
    consensus,
    data,
    erase,
    filters,
    models,
    people,
    scrub,
    serving,
    snapshots,
    team,
    vault,
)
