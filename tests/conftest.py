"""What several tests share: a ledger on each store, and the real data beside the project."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from curation.ledger import Ledger
from tests import postgres


@pytest.fixture(autouse=True)
def _same_main() -> Iterator[None]:
    """Streamlit puts the page it tests in the place of ``__main__``, which every process that is spawned later would
    then run instead of what it was spawned for."""
    main = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server started for this run of the tests; skips where there is none to start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'tilth[postgres]'")
    try:
        context = postgres.server()
        url = context.__enter__()
    except postgres.PostgresMissing as missing:
        pytest.skip(str(missing))
    try:
        yield url
    finally:
        context.__exit__(None, None, None)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store_kind(request: pytest.FixtureRequest) -> str:
    """Each store in turn."""
    return str(request.param)


@pytest.fixture
def new_ledger_url(
    store_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[[], str]]:
    """A maker of URLs where no ledger is yet, on the store of the moment."""
    made: list[str] = []

    def make() -> str:
        if store_kind == "sqlite":
            made.append(f"sqlite:///{tmp_path / f'ledger-{len(made)}.db'}")
        else:
            made.append(postgres.fresh_schema(request.getfixturevalue("postgres_url")))
        return made[-1]

    yield make
    if store_kind == "postgres":
        for url in made:
            postgres.drop_schema(url)


@pytest.fixture
def ledger_url(new_ledger_url: Callable[[], str]) -> str:
    """A URL where no ledger is yet: of SQLite, then of PostgreSQL."""
    return new_ledger_url()


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """An empty ledger: on SQLite, then on PostgreSQL."""
    with Ledger.create(ledger_url, workspace="toy", actor="ana") as opened:
        yield opened


@pytest.fixture
def sqlite_ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger on SQLite alone, for tests that are not about the store."""
    with Ledger.create(f"sqlite:///{tmp_path / 'ledger.db'}", workspace="toy", actor="ana") as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: ``$TILTH_DATA``, or ``../shared/data`` beside the project; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TILTH_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"the real data is not here ({folder}): set TILTH_DATA to its folder")
    return folder
