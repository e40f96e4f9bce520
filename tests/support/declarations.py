"""A pipeline whose declaration changes while its source does: masks, filters, columns, people."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import strategies as st

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.protocols import Step
from rhei_pipeline.sources.postgres.logical import recent_slot
from rhei_pipeline.sync import copy_ranges as sharing
from rhei_pipeline.sync import pipeline
from rhei_pipeline.testing.faults import Crash, CrashAt
from rhei_pipeline.testing.oracle import Key, by_key
from rhei_pipeline.wiring.copy_ranges import copy_range
from rhei_pipeline.wiring.engine import bridge
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.masking import partial
from tests.support.model import instant_between
from tests.support.playing import Work

CREATE = ("create table people(id integer primary key, name text, age integer, city text)",)
_NAMES = ("ann", "bob", "Ann Vergessmich")
_CITIES = ("x", "y")

Row = dict[str, Any]
_FILTERS: Mapping[str, Callable[[Row], bool]] = {
    "age < 3": lambda row: row["age"] is not None and row["age"] < 3,
    "city = 'x' or age is null": lambda row: row["city"] == "x" or row["age"] is None,
}
_MASKS: Mapping[str, Callable[[Any], Any]] = {
    "redact": lambda value: None if value is None else "***",
    "truncate:1": lambda value: None if value is None else value[:1],
    "partial:2": partial(2),
    "null": lambda _: None,
}


@dataclass(frozen=True)
class Statement:
    """Something the application writes."""

    sql: str


@dataclass(frozen=True)
class Declared:
    """What is declared of the table from now on."""

    where: str | None
    mask: str | None
    has_city: bool
    ranges: int = 1


@dataclass(frozen=True)
class Altered:
    """A column beside the others that the application adds, renames or drops, where that can be."""

    change: str


@dataclass(frozen=True)
class Remarked:
    """A value that the application writes into that column, if there is one."""

    key: int
    value: str


@dataclass(frozen=True)
class Helping:
    """A worker that comes at a step of the next copies in ranges, or at once, and may die.

    `meanwhile`: What the application writes before it comes.
    """

    at: Step | None
    number: int | None
    meanwhile: str
    crash_at: Step | None
    occurrence: int


@dataclass(frozen=True)
class Forgetting:
    """A key that its people want to be gone, and where the command crashes."""

    key: int
    crash_at: Step | None


@dataclass(frozen=True)
class Backup:
    """The mirror's files are kept as they are, or put back as they were kept last."""

    is_put_back: bool


_KEYS = st.integers(1, 4)
_AGES = st.sampled_from(["null", "1", "2", "3", "4"])


def _text(values: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from(["null", *(f"'{value}'" for value in values)])


_VALUES = st.tuples(_text(_NAMES), _AGES, _text(_CITIES))
_inserts = st.builds(
    lambda key, row: Statement(
        f"insert into people(id, name, age, city) values ({key}, {', '.join(row)})"
        " on conflict (id) do update set name = excluded.name, age = excluded.age"
    ),
    _KEYS,
    _VALUES,
)
_updates = st.builds(
    lambda key, row, place: Statement(
        f"update people set {('name', 'age', 'city')[place]} = {row[place]} where id = {key}"
    ),
    _KEYS,
    _VALUES,
    st.integers(0, 2),
)
_moves = st.builds(
    lambda key, other: Statement(
        f"update people set id = {other} where id = {key}"
        f" and not exists (select 1 from people where id = {other})"
    ),
    _KEYS,
    _KEYS,
)
_deletes = st.builds(lambda key: Statement(f"delete from people where id = {key}"), _KEYS)
_STEPS = st.none() | st.sampled_from(list(Step))
_KINDS = ("copy", "repair", "verify", "reopen", "maintain", "bridge", "bridge")
_syncs, _works = (
    st.builds(Work, kinds, st.just("people"), _STEPS, st.integers(1, 2))
    for kinds in (st.just("sync"), st.sampled_from(_KINDS))
)
_declared = st.builds(
    Declared,
    st.sampled_from([None, *_FILTERS]),
    st.sampled_from([None, *_MASKS]),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
)
_RANGE_STEPS = (Step.RANGES_PLANNED, Step.RANGE_WRITTEN, Step.RANGE_RECORDED)
#: None of them brings a key that people want to be gone.
_MEANWHILE = (
    "select 1",
    "update people set age = coalesce(age, 0) + 1 where id % 2 = 1",
    "update people set name = 'cid' where id = 2",
    "delete from people where id = 3",
)
_helpings = st.builds(
    Helping,
    st.none() | st.sampled_from(_RANGE_STEPS),
    st.none() | st.integers(1, 3),
    st.sampled_from(_MEANWHILE),
    st.none() | st.sampled_from(_RANGE_STEPS),
    st.integers(1, 2),
)
_forgettings = st.builds(Forgetting, _KEYS, _STEPS)
_altered = st.builds(Altered, st.sampled_from(["add", "add", "rename", "drop"]))
_remarked = st.builds(Remarked, _KEYS, st.sampled_from(["'p'", "'q'", "null"]))
_backups = st.builds(Backup, st.booleans())
_writes = _inserts | _updates | _moves | _deletes | _remarked
_others = _syncs | _works | _declared | _forgettings | _altered | _backups


def histories(fewest: int, most: int) -> st.SearchStrategy[list[Any]]:
    """Return histories of so many pieces of work, each after a few writes."""
    pieces = st.tuples(st.lists(_writes, max_size=3), st.lists(_helpings, max_size=2), _others)
    return st.lists(pieces, min_size=fewest, max_size=most).map(
        lambda drawn: [act for writes, help_, other in drawn for act in (*writes, *help_, other)]
    )


@dataclass(frozen=True)
class Kept:
    """What is known of a mirror whose files were kept."""

    declared: Declared
    noted: list[tuple[datetime, dict[Key, Row]]]
    half_forgotten: set[int]


@dataclass
class Play:
    """A history being played.

    After each piece of work that did not crash, the mirror has the source's rows as they are
    declared, and every state that it ever showed is still shown as of its instant, but for keys
    that were forgotten since. A history's mask stays as it was declared first.

    Args:
        world: The source and the mirror.
        create: The statements that make the table.
        options: What is declared of it besides.
        done: Counts what was played, and where it crashed.
        is_behind: What was written last went into the buffer, and not into the mirror yet.
    """

    world: World | PostgresWorld
    create: tuple[str, ...] = CREATE
    options: Mapping[str, Any] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    beside: str | None = None
    declared: Declared = field(default_factory=lambda: Declared(None, None, has_city=True))
    noted: list[tuple[datetime, dict[Key, Row]]] = field(default_factory=list)
    half_forgotten: set[int] = field(default_factory=set)
    is_behind: bool = False
    kept: "Kept | None" = None

    def run(self, played: list[Any]) -> None:
        """Play all; whoever copies in ranges waits for nobody, and every other copies in turns."""
        with pytest.MonkeyPatch.context() as patch:
            if len(played) % 2:
                patch.setattr(pipeline, "TURN_SECONDS", 0.0)
                patch.setattr(pipeline, "COPYING_SHARE", 0)
                patch.setattr(recent_slot, "BEHIND_BYTES", 0)
                patch.setattr(recent_slot, "STEP_BYTES", 0)
            patch.setattr(sharing, "PATIENCE_SECONDS", 0.0)
            patch.setattr(sharing, "_LOOK_SECONDS", 0.01)
            patch.setattr(sharing, "PART_BATCHES", 1)
            self._run(played)

    def _run(self, played: list[Any]) -> None:
        self.world.run(*self.create)
        self.world.run(
            "insert into people(id, name, age, city) values (1, 'ann', 1, 'x'), (2, 'bob', 3, 'y')"
        )
        first = next((it for it in played if isinstance(it, Declared)), self.declared)
        self._declare(first)
        for action in [Work("sync", "people", None), *played, Work("sync", "people", None)]:
            self._play(action)
        assert self.world.htap.verify().equal

    def _play(self, action: Any) -> None:
        self.world.faults.disarm()
        prepare = self._PREPARING.get(type(action))
        if prepare is not None:
            self.done[f"{type(action).__name__.lower()}"] += 1
            prepare(self, action)
            return
        self.done[getattr(action, "kind", "forget")] += 1
        if action.crash_at:
            self.world.faults.arm(action.crash_at, getattr(action, "occurrence", 1))
        if self.world.surviving(lambda: self._do(action)):
            self.done[f"crash at {action.crash_at}"] += 1
        else:
            self.world.faults.disarm()
            if not self.is_behind:
                self._check()

    def _alter(self, altered: Altered) -> None:
        before, after = self.beside, {"note": "remark"}.get(self.beside or "", "note")
        if altered.change == "add" and before is None:
            self.world.run(f"alter table people add column {after} text default 'n'")
            self.beside = after
        elif altered.change == "rename" and before is not None:
            self.world.run(f"alter table people rename column {before} to {after}")
            self.beside = after
        elif altered.change == "drop" and before is not None:
            self.world.run(f"alter table people drop column {before}")
            self.beside = None
        if before is not None and before != self.beside:
            # What its past is called from now on is not told here.
            for _, rows in [*self.noted, *(self.kept.noted if self.kept else ())]:
                for row in rows.values():
                    row.pop(before, None)

    def _remark(self, remarked: Remarked) -> None:
        if self.beside is not None:
            self.world.run(
                f"update people set {self.beside} = {remarked.value} where id = {remarked.key}"
            )

    def _help(self, helping: Helping) -> None:
        if self._ranges == 1:
            return
        if helping.at is None:
            self._work(helping)
        else:
            self.world.faults.do_at(helping.at, lambda: self._work(helping))

    def _work(self, helping: Helping) -> None:
        self.world.run(helping.meanwhile)
        faults = CrashAt()
        if helping.crash_at is not None:
            faults.arm(helping.crash_at, helping.occurrence)
        try:
            report = copy_range(self.world.settings, "people", helping.number, on_step=faults)
            self.done["ranges that workers copied"] += report.parts
        except Crash:
            self.done[f"worker's crash at {helping.crash_at}"] += 1
        except SchemaError as error:
            told = (
                "no copy of it in ranges is under way",
                "of another declaration",
                "has no range",
            )
            assert any(text in str(error) for text in told)  # noqa: PT017

    @property
    def _ranges(self) -> int:
        is_of_files = self.world.storage in {"ipc", "parquet", "delta"}
        return self.declared.ranges if is_of_files else 1

    def _declare(self, declared: Declared) -> None:
        if self.world.mode == "temporal" and self.noted:
            declared = replace(declared, mask=self.declared.mask)
        if declared.where and "city" in declared.where:
            declared = replace(declared, has_city=True)  # what it compares is there
        self.declared = declared
        table: dict[str, Any] = {"name": "people", **self.options}
        if self._ranges > 1:
            table["copy_ranges"] = self._ranges
        if declared.where:
            table["where"] = declared.where
        if declared.mask:
            table["mask"] = {"name": declared.mask}
        if not declared.has_city:
            table["columns"] = ["id", "name", "age", *self._kept]
        self.world.crash()
        self.world.tables = [table]

    def _back_up(self, backup: Backup) -> None:
        self.world.crash()
        if self.world.storage == "memory":
            return
        kept = self.world.directory / "kept"
        if not backup.is_put_back:
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir()
            _copy_into(kept, self._files())
            self.kept = Kept(self.declared, deepcopy(self.noted), {*self.half_forgotten})
        elif self.kept is not None:
            for file in self._files():
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            _copy_into(self.world.directory, sorted(kept.iterdir()))
            self.declared, self.noted = self.kept.declared, deepcopy(self.kept.noted)
            self.half_forgotten = {*self.kept.half_forgotten}
            self._declare(self.declared)

    def _files(self) -> list[Path]:
        """Return all of the mirror's: those of its registry and of its buffer, too."""
        others = ("app.db", "kept")
        found = self.world.directory.iterdir()
        return [file for file in found if not file.name.startswith(others)]

    def _do(self, action: Work | Forgetting) -> None:
        if isinstance(action, Forgetting):
            self._forget(action.key)
            return
        if action.kind == "bridge" and self.world.settings.capture.buffer is not None:
            self.world.crash()
            bridge(self.world.settings, self.world.faults)
            self.is_behind = True
            return
        if action.kind == "reopen":
            self.world.crash()
        htap = self.world.htap
        if action.kind == "copy":
            htap.initial_sync("people")
        elif action.kind == "repair":
            htap.repair("people")
        elif action.kind == "verify":
            htap.verify()
        elif action.kind == "maintain":
            htap.maintain()
        assert htap.sync_now().errors == {}
        self.is_behind = False

    def _forget(self, key: int) -> None:
        self.world.run(f"delete from people where id = {key}")
        htap = self.world.htap
        assert htap.sync_now().errors == {}
        self.is_behind = False
        # From here on it may be gone, or not yet, if the command crashes.
        for _, rows in self.noted:
            rows.pop((key,), None)
        self.half_forgotten.add(key)
        htap.forget("people", [key])
        self.half_forgotten.discard(key)
        if self.world.mode == "temporal":
            assert key not in {row["id"] for row in self.world.versions("people")}

    def _check(self) -> None:
        held = by_key(self._present(), ("id",))
        assert held == self._expected()
        if self.world.mode != "temporal" or self.world.storage == "memory":
            return
        for instant, rows in self.noted:
            shown = by_key(self.world.htap.as_of("people", instant).to_pylist(), ("id",))
            for forgotten in self.half_forgotten:
                shown.pop((forgotten,), None)
            assert shown.keys() == rows.keys(), (instant, shown, rows)
            for key, row in rows.items():
                common = row.keys() & shown[key].keys()
                assert {n: row[n] for n in common} == {n: shown[key][n] for n in common}
        self.noted.append((instant_between(), held))

    def _present(self) -> list[Row]:
        where = " where _rhei_valid_to is null" if self.world.mode == "temporal" else ""
        sql = f"select {', '.join(self._columns)} from people{where}"
        rows: list[Row] = self.world.htap.query(sql, hint="olap").to_pylist()
        return rows

    @property
    def _kept(self) -> list[str]:
        """The column by which a polled table is read."""
        polling = self.options.get("polling")
        return [polling["updated_at"]] if polling else []

    @property
    def _columns(self) -> list[str]:
        known = ["id", "name", "age"]
        if not self.declared.has_city:
            return known
        return [*known, "city", *([self.beside] if self.beside else [])]

    def _expected(self) -> dict[Key, Row]:
        names = ["id", "name", "age", "city", *([self.beside] if self.beside else [])]
        found = self.world.app.execute(f"select {', '.join(names)} from people").fetchall()
        kept = {}
        for values in found:
            row = dict(zip(names, values, strict=True))
            if self.declared.where and not _FILTERS[self.declared.where](row):
                continue
            if self.declared.mask:
                row["name"] = _MASKS[self.declared.mask](row["name"])
            kept[row["id"],] = {name: row[name] for name in self._columns}
        return kept

    _PREPARING: ClassVar[Mapping[type, Callable[[Any, Any], None]]] = {
        Statement: lambda play, written: play.world.run(written.sql),
        Declared: lambda play, declared: play._declare(declared),
        Altered: lambda play, altered: play._alter(altered),
        Remarked: lambda play, remarked: play._remark(remarked),
        Helping: lambda play, helping: play._help(helping),
        Backup: lambda play, backup: play._back_up(backup),
    }


def _copy_into(directory: Path, files: Sequence[Path]) -> None:
    for file in files:
        copy: Callable[[Path, Path], object] = shutil.copytree if file.is_dir() else shutil.copy2
        copy(file, directory / file.name)
