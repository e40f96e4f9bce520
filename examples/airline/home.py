"""Where the demo keeps its things: a Dagster home in `.dagster`, and databases in `data`."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import psycopg

from rhei_pipeline import PostgresSettings, RheiError, Settings, SqliteSettings

PROJECT = Path(__file__).resolve().parents[2]
HOME = PROJECT / ".dagster"
DATA = PROJECT / "data"
#: The declaration of each kind of source, as `SOURCE` names it.
DECLARATIONS = {"sqlite": "pipeline.yaml", "postgres": "postgres.yaml"}
#: Where the demo's own PostgreSQL listens, as its declaration has it.
POSTGRES_PORT = 54329
_DATABASE = "airline"


def choose_declaration() -> Path:
    """Let this process and its children use the declaration that `SOURCE` asks for.

    Raises:
        SystemExit: There is none of that name.
    """
    source = os.environ.get("SOURCE", "sqlite")
    if source not in DECLARATIONS:
        raise SystemExit(f"SOURCE is {source!r}; it can be {' or '.join(DECLARATIONS)}.")
    chosen = PROJECT / "config" / DECLARATIONS[source]
    return Path(os.environ.setdefault("RHEI_CONFIG", str(chosen)))


def declared() -> Settings:
    """Return what the chosen declaration says.

    Raises:
        SystemExit: It cannot be read, or does not make sense; why.
    """
    try:
        return Settings.load(choose_declaration())
    except RheiError as error:
        raise SystemExit(f"error {error}") from None


@contextmanager
def claim_data(command: str) -> Iterator[None]:
    """Keep others off the demo's data for the length of a block.

    Raises:
        SystemExit: Another demo has them; it says which.
    """
    DATA.mkdir(exist_ok=True)
    with (DATA / "in_use").open("a+") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.seek(0)
            raise SystemExit(
                f"The demo's data are in use by {claim.read().strip() or 'another demo'}."
                " End it first."
            ) from None
        claim.truncate(0)
        claim.write(f"'{command}', process {os.getpid()}")
        claim.flush()
        yield


@contextmanager
def writer(database: str, first: date, *pace: str, quiet: bool) -> Iterator[None]:
    """Let the airline's application write in a process of its own for the length of a block."""
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "examples.airline.writer", "--database", database),
            *("--first", first.isoformat(), *pace),
        ],
        cwd=PROJECT,
        start_new_session=True,  # Ctrl-C is for whoever opened this
        stdout=subprocess.DEVNULL if quiet else None,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def prepare_home() -> None:
    """Let this process and its children use a Dagster home: DAGSTER_HOME, or the demo's own."""
    home = Path(os.environ.get("DAGSTER_HOME") or HOME)
    os.environ["DAGSTER_HOME"] = str(home)
    home.mkdir(parents=True, exist_ok=True)
    if home == HOME or not (home / "dagster.yaml").exists():
        shutil.copy(PROJECT / "dagster.yaml", home / "dagster.yaml")
    # Supersession notes of the orchestrator's own command line are not for its users.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")


def refuse_other_data(settings: Settings) -> None:
    """End the demo where the declaration is no longer its own: it would overwrite real data."""
    paths = [settings.mirror.path, settings.registry.path]
    if isinstance(settings.source, SqliteSettings):
        paths.append(settings.source.path)
        shown, own = str(settings.source.path), settings.source.path.name == f"{_DATABASE}.db"
    else:
        shown, own = "another server", address(settings) == _own_address()
    if not own or any(DATA not in path.resolve().parents for path in paths):
        raise SystemExit(
            f"The declaration names {shown}, its mirror {settings.mirror.path}: not what the "
            "demo created.\nThe demo deletes and rebuilds its database and mirror, so it does "
            "nothing."
            "\nPut the demo's declaration back, or use 'rhei' and"
            " 'dagster dev -w workspace.yaml' on your own."
        )


def remove_data(settings: Settings) -> None:
    """Remove what an earlier demo left: its database, its mirror, its registry, its runs.

    The runs are kept where DAGSTER_HOME names another place for them.
    """
    refuse_other_data(settings)
    paths = [settings.mirror.path, settings.registry.path]
    if isinstance(settings.source, SqliteSettings):
        paths.append(settings.source.path)
    else:
        _create_database()
    for path in paths:
        for suffix in ("", "-wal", "-shm", ".wal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
    for directory in (HOME, settings.mirror.path.parent / "marts"):
        shutil.rmtree(directory, ignore_errors=True)


def address(settings: Settings) -> str:
    """Return the declared source as the application opens it: a path or an address."""
    source = settings.source
    if isinstance(source, PostgresSettings):
        return source.dsn.get_secret_value()
    return str(source.path)


@contextmanager
def database_server(settings: Settings) -> Iterator[None]:
    """Run the demo's own PostgreSQL for the length of a block, where the source asks for it."""
    if isinstance(settings.source, SqliteSettings):
        yield
        return
    refuse_other_data(settings)
    from examples.postgres_server import Server  # noqa: PLC0415  (SQLite's demo needs no server)

    directory = DATA / "postgres" / "server"
    directory.mkdir(parents=True, exist_ok=True)
    server = Server(directory, port=POSTGRES_PORT)
    try:
        yield
    finally:
        server.stop()


def is_built(settings: Settings) -> bool:
    """Return whether the airline's database exists."""
    if isinstance(settings.source, SqliteSettings):
        return settings.source.path.exists()
    return _has_database()


def _own_address(database: str = _DATABASE) -> str:
    return f"postgresql://postgres@127.0.0.1:{POSTGRES_PORT}/{database}"


def _has_database() -> bool:
    with psycopg.connect(_own_address("postgres"), autocommit=True) as connection:
        query = "select 1 from pg_database where datname = %s"
        return connection.execute(query, (_DATABASE,)).fetchone() is not None


def _create_database() -> None:
    """Make the database again; a slot would hold the old one."""
    with psycopg.connect(_own_address("postgres"), autocommit=True) as connection:
        connection.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = %s",
            (_DATABASE,),
        )
        connection.execute(f"drop database if exists {_DATABASE} with (force)")
        connection.execute(f"create database {_DATABASE}")
