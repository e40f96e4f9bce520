"""Reads several mirrors by one statement, beside whoever writes them, and keeps nobody from it."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from rhei_pipeline.errors import MirrorBusyError, QueryError, RheiError, SettingsError
from rhei_pipeline.holder.making_way import making_way
from rhei_pipeline.holder.unread_mirrors import UnreadMirrors
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
from rhei_pipeline.wiring.joint import JointMirrors, read_together
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

    Each mirror is read at one committed state of its own; one that cannot be read is missed by
    those queries alone that read its tables. The tables of a mirror stand in a schema
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
            mirror's reader has it). A mirror that cannot be read is in none of them.

        Raises:
            QueryError: The statement does not only read, or is refused.
            MirrorBusyError: It reads a mirror that a process holds, without a published copy.
            MirrorError: It reads a mirror that cannot be read.
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
        placed, why = self._placed(is_open_elsewhere=is_open_elsewhere)
        with ExitStack() as opened:
            mirrors = read_together(
                [(one.part, one.settings.mirror, one.place.copy) for one in placed]
            )
            opened.callback(mirrors.close)
            why += [(placed[number].part, error) for number, error in mirrors.left_out.items()]
            read = [one for n, one in enumerate(placed) if n not in mirrors.left_out]
            ways = [
                opened.enter_context(making_way(one.place.lock, str(one.settings.mirror.path)))
                for one in read
            ]

            def begun(cancel: Callable[[], None]) -> None:
                for way in ways:
                    way.begun(cancel)

            called = _called(read, mirrors)
            kind = self._pipelines[0][1].mirror.kind
            unread = UnreadMirrors(why, [own for _, own in called], kind)
            query = opened.enter_context(self._clock.timing(begun))
            try:
                found = mirrors.query(sql, params, query.begun, self._limits.answer)
            except QueryError as error:
                raise unread.explained(error, sql) from error.__cause__
            unread.refuse_partial(sql)
            labelled = _labelled(found, mirrors.ledgers(), read)
            letters = _shown(read, map(letters_by_table, mirrors.dead_letters()))
            left = _shown(
                read,
                (
                    not_followed_at_rest(one.settings.registry.path, mirror_id)
                    for one, mirror_id in zip(read, mirrors.mirror_ids, strict=True)
                ),
            )
        return told(labelled, sql, kind, letters, left, lambda: called)

    def _placed(
        self, *, is_open_elsewhere: bool
    ) -> tuple[list["_Placed"], list[tuple[Part, RheiError]]]:
        """Return the mirrors that can be read now, and why others cannot.

        Raises:
            MirrorBusyError: None can be read.
        """
        found, why = list[_Placed](), list[tuple[Part, RheiError]]()
        for number, (part, settings) in enumerate(self._pipelines, 1):
            name = part.schema or settings.name or str(number)
            try:
                place = _place_of(settings, is_open_elsewhere=is_open_elsewhere)
            except MirrorBusyError as error:
                why.append((part, error))
            else:
                found.append(_Placed(name, part, settings, place))
        if not found:
            raise why[0][1]
        return found, why


@dataclass(frozen=True, slots=True)
class _Placed:
    """One of several mirrors, and where it is read."""

    name: str
    part: Part
    settings: Settings
    place: Place


def _called(read: Sequence[_Placed], mirrors: JointMirrors) -> list[tuple[str, str]]:
    """Return the names of all tables, each with the one that a query has for it."""
    return [
        (one.part.shown(name), one.part.shown(own))
        for one, tables in zip(read, mirrors.tables(), strict=True)
        for name, own in called_in(tables)
        if one.part.takes(name)
    ]


def _shown(read: Sequence[_Placed], each: Iterable[Mapping[str, _Fact]]) -> dict[str, _Fact]:
    """Return what is known of each mirror's tables, by the names that a query has for them."""
    return {
        one.part.shown(name): fact
        for one, facts in zip(read, each, strict=True)
        for name, fact in facts.items()
        if one.part.takes(name)
    }


def _labelled(found: pa.Table, ledgers: Sequence[Ledger], read: Sequence[_Placed]) -> pa.Table:
    marks: dict[str, int] = {}
    recorded: dict[str, str] = {}
    read_from: dict[str, str] = {}
    for one, ledger in zip(read, ledgers, strict=True):
        own = [mark for name, mark in ledger.watermarks.items() if one.part.takes(name)]
        marks |= {one.part.shown(mark.table): mark.position.order for mark in own}
        if own:
            recorded[one.name] = max(mark.recorded_at for mark in own).isoformat()
        read_from[one.name] = "published copy" if one.place.copy else "file"
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
