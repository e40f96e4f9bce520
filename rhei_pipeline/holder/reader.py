"""Reads a mirror from any process, beside whoever writes it, and keeps nobody from it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import MirrorBusyError
from rhei_pipeline.holder.client import Holder, HolderGoneError
from rhei_pipeline.holder.joint_reader import READ_FROM, Declared, JointReader, as_one, side_by_side
from rhei_pipeline.holder.making_way import making_way
from rhei_pipeline.mirrors.locking import LockNote, Waiting, is_locked
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forking import is_fork, keep_from_forks, note_opened
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.query.completeness import called_in, letters_by_table, told
from rhei_pipeline.query.freshness import Demand
from rhei_pipeline.query.results import labelled
from rhei_pipeline.query.router import Route
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import not_followed_at_rest
from rhei_pipeline.wiring.engine import query_limits
from rhei_pipeline.wiring.mirror import lock_file, read_mirror


class OpenReader(Closing):
    """A mirror as another process reads it; a context manager.

    Each query is answered from one committed state, by the first of these that can: the process
    that holds the mirror; the file itself, between two syncs, which is closed at once where a
    process wants to write; the published copy. A mirror in files is read as it is, always. Source
    and capture take no part in it.
    """

    def __init__(self, settings: Settings) -> None:
        keep_from_forks(self)
        self._mirror, self._registry = settings.mirror, settings.registry.path
        self._lock = lock_file(settings.mirror) if settings.mirror.kind == "duckdb" else None
        self._limits = query_limits(settings)
        self._clock = QueryClock(self._limits.seconds)
        self._holder: Holder | None = None

    def close(self) -> None:
        """Close the connection; safe to repeat."""
        if is_fork():
            return  # it is the parent's
        self._clock.rest()
        self._leave()

    def _leave(self) -> None:
        """Ask the process that held the mirror no more."""
        holder, self._holder = self._holder, None
        if holder is not None:
            holder.close()

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one read-only statement, in the mirror's SQL.

        Returns:
            The answer. Its schema's metadata name the watermark of each table
            (`rhei.watermark`, JSON), what was read (`rhei.read_from`): `holder`, `file` or
            `published copy`, how many rows of its tables cannot be mirrored
            (`rhei.dead_letters`, JSON), and which of them are no longer synced, since when
            (`rhei.not_followed`, JSON; known where the registry can be read).

        Raises:
            QueryError: The statement does not only read, or is refused.
            MirrorBusyError: A process holds the mirror that cannot be asked.
        """
        note_opened()
        waiting = Waiting(
            str(self._mirror.path),
            self._mirror.lock_timeout_seconds,
            lambda: LockNote.read(self._lock) if self._lock else None,
        )
        while True:
            found = self._tried(sql, params, waiting)
            if found is not None:
                return found
            waiting.pause()

    def _tried(self, sql: str, params: Sequence[Any], waiting: Waiting) -> pa.Table | None:
        """Answer from what is to be had now; None where that is nothing."""
        try:
            if self._lock is None or not is_locked(self._lock):
                return self._from_files(sql, params, "file")
            holder = self._found()
            if holder is not None:
                return _named(holder.query(sql, params, "olap", Demand()), "holder")
        except HolderGoneError:
            self._leave()
        except MirrorBusyError as error:
            waiting.reason = error
        copy = self._mirror.published
        if copy is not None and copy.path.exists():
            return self._from_files(sql, params, "published copy", copy.path)
        return None

    def _found(self) -> Holder | None:
        note = LockNote.read(self._lock) if self._lock is not None else None
        if note is None or note.socket is None:
            return None
        if self._holder is None or self._holder.note != note:
            self._leave()
            self._holder = Holder(note, self._limits, lambda _side, _seconds: None)
        return self._holder

    def _from_files(
        self, sql: str, params: Sequence[Any], what: str, copy: Path | None = None
    ) -> pa.Table:
        with ExitStack() as opened:
            mirror = read_mirror(self._mirror, copy)
            opened.callback(mirror.close)
            # Nobody writes into a copy, and files are written beside those that are read.
            lock = None if copy else self._lock
            way = opened.enter_context(making_way(lock, str(self._mirror.path)))
            query = opened.enter_context(self._clock.timing(way.begun))
            ledger = mirror.ledger()
            found = mirror.query(sql, params, query.begun, self._limits.answer)
            letters = letters_by_table(mirror.dead_letters())
            left = not_followed_at_rest(self._registry, mirror.mirror_id)
            answer = _named(labelled(found, Route("olap", "asked for"), ledger), what)
            kind = self._mirror.kind
            return told(answer, sql, kind, letters, left, lambda: called_in(mirror.tables()))


def _named(found: pa.Table, what: str) -> pa.Table:
    return found.replace_schema_metadata({**(found.schema.metadata or {}), READ_FROM: what})


def reader(source: Declared | Mapping[str, Declared] | list[Declared]) -> OpenReader | JointReader:
    """Return what reads the mirror of a declaration, given as a file or as settings.

    Of several declarations, in a list or under names of your own, it returns what reads all of
    their mirrors by one statement: `shop.orders` is the table `orders` of the pipeline `shop`. Of
    a declaration with shards, it returns what reads all shards: each table has its own name.
    """
    if isinstance(source, Mapping | list):
        return JointReader(side_by_side(source))
    settings = source if isinstance(source, Settings) else Settings.load(source)
    pipelines = settings.pipelines()
    return OpenReader(settings) if pipelines == [settings] else JointReader(as_one(pipelines))
