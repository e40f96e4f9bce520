"""The ranges of a table that several processes copy into one mirror of files.

A plan and each record is a file of its own, created only if its name is free; nobody but the
process that holds the mirror writes a manifest. While a plan is open, the segments written for it
are kept: their names begin with its id.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa

from rhei_pipeline.errors import (
    MirrorBusyError,
    MirrorDamagedError,
    MirrorError,
    RheiError,
    SchemaError,
)
from rhei_pipeline.mirrors.datafusion.buffered_rows import append_rows
from rhei_pipeline.mirrors.datafusion.checksums import Checksum
from rhei_pipeline.mirrors.datafusion.files import Files
from rhei_pipeline.mirrors.datafusion.formats import Format
from rhei_pipeline.mirrors.datafusion.manifest import (
    COPY_PREFIX,
    Segment,
    StoredTable,
    read_segment,
    sealed,
    segment_form,
    unsealed,
)
from rhei_pipeline.mirrors.datafusion.segment_store import DATA, SegmentStore
from rhei_pipeline.mirrors.datafusion.write_buffer import WriteBuffer
from rhei_pipeline.model.copy_plan import CopyPlan, RangePart, RangeStanding
from rhei_pipeline.model.progress import CopyProgress, Ledger
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.stored_format import too_new

#: Of plans and records; a copy whose plan is in another one is begun again.
FORMAT = 1

_FOLDER = "ranges"
_PLAN = re.compile(rf"{_FOLDER}/([0-9a-f]+)\.plan\.json")
_PART = re.compile(rf"{_FOLDER}/([0-9a-f]+)\.(\d+)\.(\d+)\.json")
#: A plan, a record, or one that is about to become one; of others' files in the folder, none is.
_OWN_NAME = re.compile(rf"{_FOLDER}/[0-9a-f]{{32}}\..+")
_SEGMENTS, _SUMS = "segments", "files"


class CopyRanges:
    """The open plans of a mirror, and what is recorded of each.

    Args:
        files, form: Where segments are written, and how.
        ledger: Returns what the mirror has recorded; None in a new one.

    Attributes:
        left: Whether a plan was closed, so that segments of it may be nobody's.
    """

    def __init__(self, files: Files, form: Format, ledger: Callable[[], Ledger | None]) -> None:
        self._files, self._form, self._ledger = files, form, ledger
        self._plans: dict[str, CopyPlan] = {}
        self._parts: dict[str, RangePart] = {}
        self.left = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of segments begin with that belong to open plans."""
        return tuple(self._plans)

    def recorded(self) -> Collection[str]:
        """Return the names of all plans and records."""
        return list(filter(_OWN_NAME.fullmatch, self._files.names(_FOLDER)))

    def take_up(self, ledger: Ledger, names: Collection[str]) -> None:
        """Find the plans that were left open, and delete what belongs to none.

        `names`: What was recorded before the ledger was read. Nothing keeps another process from
        planning in an object store, and of a later plan the ledger does not tell.
        """
        for match in filter(None, map(_PLAN.fullmatch, names)):
            with suppress(MirrorError):  # what nobody can read is begun again
                plan = self._read_plan(match[0], match[1])
                self._plans[plan.plan_id] = plan
        self.settle(ledger)
        self._files.delete([name for name in names if not self._is_open(name)])

    def _is_open(self, name: str) -> bool:
        # Also what a worker is about to create: that has a name of its own until it is whole.
        return name.removeprefix(f"{_FOLDER}/").partition(".")[0] in self._plans

    def settle(self, ledger: Ledger) -> None:
        """Delete the plans of copies that are admitted, given up, or begun otherwise."""
        taken: set[str] = set()
        for plan in sorted(self._plans.values(), key=lambda plan: plan.plan_id):
            if plan.table in taken or not plan.is_of(ledger.copies.get(plan.table)):
                self._drop(plan)
            taken.add(plan.table)

    def plan(self, plan: CopyPlan) -> None:
        """Record a plan."""
        self._plans[plan.plan_id] = plan
        self._files.create(f"{_FOLDER}/{plan.plan_id}.plan.json", _text(plan.to_json()))

    def drop(self, table: str) -> None:
        """Forget what is planned for a table."""
        for plan in [plan for plan in self._plans.values() if plan.table == table]:
            self._drop(plan)

    def _drop(self, plan: CopyPlan) -> None:
        """Forget a plan: first that it is there, then what was recorded of it."""
        self._plans.pop(plan.plan_id, None)
        self.left = True
        own = f"{_FOLDER}/{plan.plan_id}."
        self._files.delete([f"{own}plan.json"])
        self._files.delete([name for name in self._files.names(_FOLDER) if name.startswith(own)])
        self._parts = {n: part for n, part in self._parts.items() if not n.startswith(own)}

    def under_way(self) -> list[RangeStanding]:
        """Return how far the copies of all open plans have come."""
        found = [self.standing(plan.table) for plan in list(self._plans.values())]
        return [standing for standing in found if standing is not None]

    def standing(self, table: str) -> RangeStanding | None:
        """Return how far the copy of a table has come."""
        ledger = self._ledger()
        if ledger is None or table not in ledger.copies:
            return None
        names = self._files.names(_FOLDER)
        try:
            return self._standing(table, ledger, names)
        except MirrorDamagedError:
            if names == self._files.names(_FOLDER):
                raise
            return self.standing(table)  # it was read while the plan was closed

    def _standing(self, table: str, ledger: Ledger, names: Collection[str]) -> RangeStanding | None:
        plan = self._open_plan(ledger.copies[table], names)
        if plan is None:
            return None
        parts: dict[int, list[RangePart]] = {}
        for name in sorted(names):
            match = _PART.fullmatch(name)
            if match and match[1] == plan.plan_id:
                parts.setdefault(int(match[2]), []).append(self._part(name))
        for found in parts.values():
            found.sort(key=lambda part: part.place)
        standing = RangeStanding(plan, parts)
        gap = standing.gap()
        if gap is not None:
            raise self._damaged(_record(plan.plan_id, *gap), "is missing, or is another one's")
        return standing

    def append(
        self,
        plan: CopyPlan,
        part: RangePart,
        table: Table,
        rows: pa.Table,
        on_written: Callable[[], None],
    ) -> bool:
        """Write segments of their own, then create the record."""
        schema = table.schema
        store = SegmentStore(self._files, self._form, plan.plan_id)
        empty = StoredTable(schema.namespace, COPY_PREFIX + schema.mirror_relation, schema.arrow)
        try:
            written = _written(WriteBuffer(empty, store), table, rows)
            self._files.flush()
        except RheiError:
            store.discard()  # a disk that is full has no room for what nobody names
            raise
        sums = store.checked.sums_of(store.table_files(written))
        files = {
            _SEGMENTS: [segment_form(segment) for segment in written.segments],
            _SUMS: {name: found.to_json() for name, found in sums.items()},
        }
        on_written()
        name = _record(plan.plan_id, part.number, part.place)
        try:
            self._files.create(name, _text({**part.to_json(), "files": files}))
        except MirrorBusyError:
            store.discard()
            return False
        return True

    def lost(self, standing: RangeStanding) -> list[str]:
        """Compare the sizes of what was recorded with a listing."""
        there = self._files.names(DATA)
        sums = [_sums(part) for parts in standing.parts.values() for part in parts]
        return [n for own in sums for n, found in own.items() if there.get(n) != found.size]

    def _open_plan(self, progress: CopyProgress, names: Iterable[str]) -> CopyPlan | None:
        """Return the plan of a copy. What is damaged of another table's is no matter of this one.

        Raises:
            MirrorError: There is none, and a plan cannot be read that may be it.
        """
        found, unread = [], None
        for name in names:
            match = _PLAN.fullmatch(name)
            if match:
                try:
                    found.append(self._plans.get(match[1]) or self._read_plan(name, match[1]))
                except MirrorError as error:
                    unread = error
        own = [plan for plan in found if plan.is_of(progress)]
        if unread is not None and not own:
            raise unread
        return min(own, key=lambda plan: plan.plan_id, default=None)

    def _read_plan(self, name: str, plan_id: str) -> CopyPlan:
        plan: CopyPlan = self._read(name, CopyPlan.from_json)
        if plan.plan_id != plan_id:
            raise self._damaged(name, "is another one's")
        return plan

    def _part(self, name: str) -> RangePart:
        if name not in self._parts:
            self._parts[name] = self._read(name, RangePart.from_json)
        return self._parts[name]

    def _read(self, name: str, read: Callable[[Mapping[str, Any]], Any]) -> Any:  # noqa: ANN401
        content = unsealed(self._files.get(name).to_pybytes())
        try:
            form = json.loads(content or b"")
            if form["format"] == FORMAT:
                return read(form)
        except (ValueError, TypeError, LookupError, SchemaError):
            form = {}
        if "format" in form:
            raise MirrorError(
                too_new(f"{name!r} of mirror {self._files.root!r}", form["format"], FORMAT),
                hint="use the newer version of rhei-pipeline that wrote it, or give another path",
            )
        raise self._damaged(name, "is damaged")

    def _damaged(self, name: str, fault: str) -> MirrorDamagedError:
        return MirrorDamagedError(
            f"mirror {self._files.root!r}: {name!r} {fault}, which says what was copied",
            file=name,
            hint="run 'rhei copy' with the table: it begins the ranges again",
        )


def _written(buffer: WriteBuffer, table: Table, rows: pa.Table) -> StoredTable:
    if rows.num_rows:
        append_rows(buffer, table, rows)
    return buffer.prepare_commit()


def _record(plan_id: str, number: int, place: int) -> str:
    """Return the name of a part's record."""
    return f"{_FOLDER}/{plan_id}.{number}.{place}.json"


def admitted(parts: Iterable[RangePart], store: SegmentStore) -> Iterator[Segment]:
    """Yield what parts have written, and have a store know the checksums of it."""
    for part in parts:
        store.checked.learn(_sums(part))
        yield from map(read_segment, part.files[_SEGMENTS])


def _sums(part: RangePart) -> dict[str, Checksum]:
    return {name: Checksum.from_json(kept) for name, kept in part.files[_SUMS].items()}


def _text(form: Mapping[str, Any]) -> bytes:
    return sealed(json.dumps({"format": FORMAT, **form}).encode())
