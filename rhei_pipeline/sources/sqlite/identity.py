"""An id stored in a SQLite file, which identifies it after it was moved."""

import sqlite3
import uuid

_TABLE = "create table if not exists _rhei_source(id text not null)"


def read_mark(connection: sqlite3.Connection) -> str:
    """Return the file's id; empty where it has none."""
    there = "select 1 from sqlite_master where type = 'table' and name = '_rhei_source'"
    if connection.execute(there).fetchone() is None:
        return ""
    found = connection.execute("select id from _rhei_source").fetchone()
    return "" if found is None else str(found[0])


def write_mark(connection: sqlite3.Connection) -> str:
    """Give the file an id unless it has one, inside an open transaction; return it."""
    connection.execute(_TABLE)
    connection.execute(
        "insert into _rhei_source select ? where not exists (select 1 from _rhei_source)",
        (uuid.uuid4().hex,),
    )
    return read_mark(connection)
