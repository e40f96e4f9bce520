"""Has the log of a table whose columns were renamed go on: its triggers are SQLite's work already.

`alter table ... rename column` writes the new name into our triggers, at the place where the old
one was. So each entry has its column's value where it always was. What is left are the names that
the log was made for, and the table of names beside it.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from rhei_pipeline.sources.sqlite.triggers import log_chain
from rhei_pipeline.sources.sqlite.triggers.ddl import shape_sql, shape_table
from rhei_pipeline.sql.text import quote

_SIGN = "_rhei_renamed"


def rename_in_log(connection: sqlite3.Connection, table: str, former: Mapping[str, str]) -> None:
    """Give the log that is written into the names that columns have now, within a transaction.

    It can be read by either names. Logs of before keep theirs.
    """
    log = log_chain.current_log(connection, table)
    if not former or log is None or log.schema is None:
        return
    names, schema = {old: new for new, old in former.items()}, log.schema
    own = tuple(replace(c, name=names.get(c.name, c.name)) for c in schema.columns)
    key = tuple(names.get(name, name) for name in schema.primary_key)
    log_chain.note_renamed(connection, log, replace(schema, columns=own, primary_key=key))
    shape = shape_table(table)
    rows = connection.execute("select name from temp.pragma_table_info(?)", (shape,)).fetchall()
    if rows:
        connection.execute(f"drop table {quote(shape)}")
        connection.execute(shape_sql(table, sorted(names.get(name, name) for (name,) in rows)))
    # Others know what they read of the logs by SQLite's count of schema changes.
    connection.execute(f"create table {_SIGN}(name)")
    connection.execute(f"drop table {_SIGN}")
