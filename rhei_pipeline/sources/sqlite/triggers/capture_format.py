"""The format of what capture keeps in a SQLite file: its logs, triggers and notes."""

import sqlite3
from pathlib import Path

from rhei_pipeline.errors import CaptureError
from rhei_pipeline.model.stored_format import UNNUMBERED, too_new
from rhei_pipeline.sources.sqlite.triggers.log_chain import exists

#: What this version makes and reads.
FORMAT = 1
_TABLE = "_rhei_format"


def refuse_newer(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file in which a newer version of this package keeps its capture.

    Raises:
        CaptureError: It does; nothing was read or changed.
    """
    found = None
    if exists(connection, _TABLE):
        found = connection.execute(f"select max(number) from {_TABLE}").fetchone()[0]
    written = UNNUMBERED if found is None else int(found)
    if written > FORMAT:
        raise CaptureError(
            too_new(f"what capture keeps in {str(path)!r}", written, FORMAT),
            hint="use the newer version of rhei-pipeline that made it",
        )


def note(connection: sqlite3.Connection) -> None:
    """Note the format, within the writing transaction that makes a log."""
    connection.execute(f"create table if not exists {_TABLE}(number integer not null)")
    connection.execute(
        f"insert into {_TABLE} select ? where not exists (select 1 from {_TABLE})", (FORMAT,)
    )
