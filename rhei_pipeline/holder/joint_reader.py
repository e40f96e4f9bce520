"""Reads several mirrors by one statement, beside whoever writes them, and keeps nobody from it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from rhei_pipeline.errors import MirrorBusyError, SettingsError
from rhei_pipeline.holder.making_way import making_way
from rhei_pipeline.mirrors.joining import Part, every_table
from rhei_pipeline.mirrors.locking import LockNote, Waiting, held, is_locked
from rhei_pipeline.model.closing import Closing
from rhei_pipeline.model.forking import is_fork, note_opened
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.query.completeness import called_in, letters_by_table, told
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import not_followed_at_rest
from rhei_pipeline.wiring.engine import query_limits
from rhei_pipeline.wiring.joint import read_together
from rhei_pipeline.wiring.mirror import lock_file

_Fact = TypeVar("_Fact", int, datetime)

READ_FROM = b"rhei.read_from"
#: Schemas and databases that the engines have themselves.
_TAKEN = {"information_schema", "main", "memory", "pg_catalog", "public", "rhei", "system", "temp"}


#: A declaration, as settings or as its file.
Declared = Settings | str | Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where one of several mirrors is read now.

    Attributes:
        lock: The file whose lock a writer takes; None where nobody needs to make way.
        copy: The published copy that is read in the mirror's place.
    """

    lock: Path | None = None
    copy: Path | None = None


class JointReader(Closing):
    """Several mirrors, as one query reads them; a context manager.

    Each mirror is read at one committed state of its own. The tables of a mirror stand in a schema
    with the name of its pipeline. A DuckDB file that a process has open for writing is read from
    its published copy. Sources and capture take no part in it.
    """

    def __init__(self, pipelines: Sequence[tuple[Part, Settings]]) -> None:
        self._pipelines = pipelines
        self._limits = query_limits(pipelines[0][1])
        self._clock = QueryClock(self._limits.seconds)

    def close(self) -> None:
        """Let the clock's thread end; between two queries nothing else is there. Safe to repeat."""
        if not is_fork():  # there it is the parent's
            self._clock.rest()

    def query(self, sql: str, params: Sequence[Any] = ()) -> pa.Table:
        """Run one read-only statement over all mirrors, in their SQL.

        Returns:
            The answer. Its schema's metadata name the watermark of each table of each mirror
            (`rhei.watermark`, JSON), when each mirror recorded its newest (`rhei.recorded_at`,
            JSON), what was read of each (`rhei.read_from`, JSON): `file` or `published copy`, and
            what they lack of its tables (`rhei.dead_letters` and `rhei.not_followed`, as one
            mirror's reader has it).

        Raises:
            QueryError: The statement does not only read, or is refused.
            MirrorBusyError: A process holds one of the mirrors, and that has no published copy.
        """
        note_opened()
        first = self._pipelines[0][1].mirror
        waiting = Waiting(str(first.path), first.lock_timeout_seconds, lambda: None)
        is_open_elsewhere = False
        while True:
            try:
                # Whoever has a file open without our lock is met when it is opened.
                return self._asked(sql, params, is_open_elsewhere=is_open_elsewhere)
            except MirrorBusyError as error:
                is_open_elsewhere, waiting.reason = True, error
            waiting.pause()

    def _asked(self, sql: str, params: Sequence[Any], *, is_open_elsewhere: bool) -> pa.Table:
        places = [
            _place_of(settings, is_open_elsewhere=is_open_elsewhere)
            for _, settings in self._pipelines
        ]
        with ExitStack() as opened:
            mirrors = read_together(
                [
                    (part, settings.mirror, place.copy)
                    for (part, settings), place in zip(self._pipelines, places, strict=True)
                ]
            )
            opened.callback(mirrors.close)
            ways = [
                opened.enter_context(making_way(place.lock, str(settings.mirror.path)))
                for (_, settings), place in zip(self._pipelines, places, strict=True)
            ]

            def begun(cancel: Callable[[], None]) -> None:
                for way in ways:
                    way.begun(cancel)

            query = opened.enter_context(self._clock.timing(begun))
            found = mirrors.query(sql, params, query.begun, self._limits.answer)
            labelled = self._labelled(found, mirrors.ledgers(), places)
            letters = self._shown(letters_by_table(each) for each in mirrors.dead_letters())
            left = self._shown(
                not_followed_at_rest(settings.registry.path, mirror_id)
                for (_, settings), mirror_id in zip(
                    self._pipelines, mirrors.mirror_ids, strict=True
                )
            )
            called = [
                (part.shown(name), part.shown(own))
                for (part, _), tables in zip(self._pipelines, mirrors.tables(), strict=True)
                for name, own in called_in(tables)
                if part.takes(name)
            ]
        kind = self._pipelines[0][1].mirror.kind
        return told(labelled, sql, kind, letters, left, lambda: called)

    def _shown(self, each: Iterable[Mapping[str, _Fact]]) -> dict[str, _Fact]:
        """Return what is known of each mirror's tables, by the names that a query has for them."""
        return {
            part.shown(name): fact
            for (part, _), facts in zip(self._pipelines, each, strict=True)
            for name, fact in facts.items()
            if part.takes(name)
        }

    def _labelled(
        self, found: pa.Table, ledgers: Sequence[Ledger], places: Sequence[Place]
    ) -> pa.Table:
        marks: dict[str, int] = {}
        recorded: dict[str, str] = {}
        read_from: dict[str, str] = {}
        for (part, settings), ledger, place in zip(self._pipelines, ledgers, places, strict=True):
            own = [mark for name, mark in ledger.watermarks.items() if part.takes(name)]
            marks |= {part.shown(mark.table): mark.position.order for mark in own}
            name = part.schema or settings.name or str(len(read_from))
            if own:
                recorded[name] = max(mark.recorded_at for mark in own).isoformat()
            read_from[name] = "published copy" if place.copy else "file"
        labels = {
            b"rhei.watermark": json.dumps(marks),
            b"rhei.recorded_at": json.dumps(recorded),
            READ_FROM: json.dumps(read_from),
        }
        return found.replace_schema_metadata({**(found.schema.metadata or {}), **labels})


def _place_of(settings: Settings, *, is_open_elsewhere: bool) -> Place:
    """Return where a mirror is read now; the file itself may be open somewhere.

    Raises:
        MirrorBusyError: A process holds it, and there is no published copy.
    """
    mirror = settings.mirror
    lock = lock_file(mirror) if mirror.kind == "duckdb" else None
    is_held = lock is not None and is_locked(lock)
    has_copy = mirror.published is not None and mirror.published.path.exists()
    if mirror.published is not None and has_copy and (is_held or is_open_elsewhere):
        return Place(None, mirror.published.path)
    if lock is None or not is_held:
        return Place(lock)
    error = held(str(mirror.path), LockNote.read(lock))
    hint = (
        "declare 'mirror.published': its copy is read as long as a process has the mirror open; or"
        " wait until that process ends"
    )
    error.hint = hint
    raise error


def as_one(shards: Sequence[Settings]) -> list[tuple[Part, Settings]]:
    """Return shards of one declaration, each with the tables that are its own."""
    return [(Part(None, shard.takes), shard) for shard in shards]


def side_by_side(
    sources: Mapping[str, Declared] | Sequence[Declared],
) -> list[tuple[Part, Settings]]:
    """Return pipelines with the schemas in which their tables stand.

    Raises:
        SettingsError: One has no name, or two have the same.
    """
    named = sources.items() if isinstance(sources, Mapping) else ((None, s) for s in sources)
    found: dict[str, tuple[Part, Settings]] = {}
    for given, source in named:
        settings = source if isinstance(source, Settings) else Settings.load(source)
        name = given or settings.name
        settings.refuse_whole()
        if name is None or name.lower() in {*_TAKEN, *found}:
            raise SettingsError(
                "pipelines that are read together need a name each, which is no other's"
                if name is None
                else f"pipelines that are read together cannot have {name!r} as one's name",
                hint="declare 'name' for each, or give names: rhei.reader({'shop': ..., ...})",
            )
        found[name.lower()] = (Part(name, every_table), settings)
    if not found:
        raise SettingsError(
            "there is no pipeline to read", hint="give one or more declarations to rhei.reader"
        )
    return list(found.values())
