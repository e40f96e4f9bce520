"""Removes keys from a DuckDB file: their rows, then what its free parts still hold of them."""

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from rhei_pipeline.mirrors.duckdb.connecting import ended_by_signals
from rhei_pipeline.mirrors.duckdb.housekeeping import silent
from rhei_pipeline.mirrors.duckdb.remains import delete_remains
from rhei_pipeline.mirrors.duckdb.tables import (
    MAIN,
    SNAPSHOTS,
    copy_name,
    in_utc,
    registered,
)
from rhei_pipeline.model.changes import key_text
from rhei_pipeline.model.durable import make_durable
from rhei_pipeline.model.plain_values import plain_rows
from rhei_pipeline.model.schema import Table, TableSchema
from rhei_pipeline.sql.text import literal, matching, mirror_table, quote

_REWRITTEN = ".rewritten"
_KEYS = "_rhei_forgotten"
#: How long queries may still run before they are ended.
_PATIENCE_SECONDS = 2.0


def forget_rows(
    connection: duckdb.DuckDBPyConnection, table: Table, keys: pa.Table
) -> list[pa.Table]:
    """Delete all that a mirror has of these keys; return the rows, present and past."""
    found = []
    same = matching("t", "k", table.schema.primary_key)
    with registered(connection, _KEYS, keys):
        for name in _holding(connection, table.schema):
            rows = connection.sql(f"select t.* from {name} t semi join {_KEYS} k on {same}")
            found.append(in_utc(rows.to_arrow_table()))
            connection.execute(f"delete from {name} t using {_KEYS} k where {same}")
    connection.execute(
        "delete from _rhei_dead_letter where table_name = ? and list_contains(?::varchar[], key)",
        [table.name, [key_text(key) for key in plain_rows(keys)]],
    )
    return found


def _holding(connection: duckdb.DuckDBPyConnection, schema: TableSchema) -> Iterator[str]:
    """Yield the quoted names of the tables that have rows of a table's keys."""
    days = replace(schema, name=schema.snapshot_name, namespace=SNAPSHOTS, mirror_name="")
    names = (mirror_table(schema), mirror_table(days), copy_name(schema))
    there = connection.execute(
        "select schema_name, table_name from duckdb_tables()"
        " where database_name = current_database()"
    ).fetchall()
    known = {
        (quote(name) if namespace == MAIN else f"{quote(namespace)}.{quote(name)}").lower()
        for namespace, name in there
    }
    yield from (name for name in names if name.lower() in known)


def rewrite_file(file: Path, memory_limit: object) -> None:
    """Replace a closed database file by one without free parts, atomically."""
    delete_remains(file, _REWRITTEN)  # only the mirror's writer rewrites it
    # A folder for its owner alone: DuckDB writes its log and what it spills there, too.
    folder = file.with_name(f"{file.name}.{uuid.uuid4().hex}{_REWRITTEN}")
    folder.mkdir(mode=0o700)
    fresh = folder / file.name
    try:
        with silent(duckdb.connect(str(fresh))) as written, ended_by_signals(written):
            if memory_limit is not None:
                written.execute(f"set memory_limit = {literal(str(memory_limit))}")
            written.execute(f"attach {literal(str(file))} as _rhei_former (read_only)")
            new = written.execute("select current_database()").fetchall()[0][0]
            written.execute(f"copy from database _rhei_former to {quote(new)}")
            written.execute("detach _rhei_former")
        former = file.stat()
        with suppress(PermissionError):  # nobody but the superuser gives files away
            os.chown(fresh, former.st_uid, former.st_gid)
        fresh.chmod(former.st_mode)
        fresh.replace(file)
        make_durable(file.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Door:
    """Lets readers in one by one, or keeps them all out for a while."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._is_shut = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside; wait while it is shut."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_shut)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def shut(self, end: Callable[[], None]) -> Iterator[bool]:
        """Keep everybody out during the block; `end` ends what takes long.

        Yields whether nobody is inside: who takes no more rows of an answer cannot be made to go.
        """
        try:
            with self._changed:
                self._is_shut = True
                is_empty = self._changed.wait_for(self._is_empty, _PATIENCE_SECONDS)
                if not is_empty:
                    end()
                    is_empty = self._changed.wait_for(self._is_empty, _PATIENCE_SECONDS)
            yield is_empty
        finally:
            self._open()

    @contextmanager
    def shut_if_empty(self) -> Iterator[bool]:
        """Keep everybody out during the block if nobody is inside; yield whether that is so."""
        with self._changed:
            is_empty = self._is_shut = self._is_empty()
        try:
            yield is_empty
        finally:
            self._open()

    def _open(self) -> None:
        with self._changed:
            self._is_shut = False
            self._changed.notify_all()

    def _is_empty(self) -> bool:
        return not self._inside
