"""Damages one file of a mirror or a buffer, and proves that nothing wrong comes of it.

In a process of its own, it makes the trials it is given one after the other, each on a copy of one
world, and prints what came of each: a crash is then seen as such, with the trial it was in.
"""

import json
import shutil
import sqlite3
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.schema import Mode
from tests.support.other_process import copy
from tests.support.parts import engine_of

#: What is done to a file, by name.
KINDS: dict[str, Callable[[bytes], bytes | None]] = {
    "flip first": lambda content: _flipped(content, 0.0),
    "flip quarter": lambda content: _flipped(content, 0.25),
    "flip half": lambda content: _flipped(content, 0.5),
    "flip most": lambda content: _flipped(content, 0.9),
    "flip last": lambda content: _flipped(content, 1.0),
    "cut half": lambda content: content[: len(content) // 2],
    "cut last": lambda content: content[:-1],
    "empty": lambda _: b"",
    "remove": lambda _: None,
}
TABLES = ("t", "u")
#: Files of a world that are no part of a mirror or a buffer, or hold nothing.
_NOT_OURS = ("app.db", "registry.json", "before.json")
_EMPTY = {"lock", "LOCK", "mirror.duckdb.last", "newest", "mirror.duckdb.lock"}


def _flipped(content: bytes, share: float) -> bytes:
    place = min(int(len(content) * share), len(content) - 1)
    return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]


def damage(file: Path, kind: str) -> bool:
    """Damage a file; False where it cannot be damaged so."""
    content = file.read_bytes()
    if not content and kind != "remove":
        return False
    damaged = KINDS[kind](content)
    if damaged is None:
        file.unlink()
    else:
        file.write_bytes(damaged)
    return True


def files_of(world: Path) -> list[str]:
    """Name every file of a world's mirror and buffer."""
    found = (file.relative_to(world) for file in sorted(world.rglob("*")) if file.is_file())
    return [str(f) for f in found if not f.parts[0].startswith(_NOT_OURS) and f.name not in _EMPTY]


def settings(world: Path, storage: str | None, mode: str, *, buffered: bool) -> Settings:
    """Return the declaration of a world."""
    return Settings(
        source={"path": world / "app.db"},
        capture={"buffer": {"path": world / "cdc"} if buffered else None},
        mirror={
            "kind": "datafusion" if storage else "duckdb",
            "storage": storage,
            "path": world / (storage or "mirror.duckdb"),
            "lock_timeout_seconds": 1,
            "delta": {"deletion_vectors": True} if storage == "delta" else None,
        },
        registry={"path": world / "registry.json"},
        tables=[{"name": "t", "mode": mode}, {"name": "u", "mode": "destructive"}],
    )


def build(world: Path, storage: str | None, mode: str, *, buffered: bool = False) -> None:
    """Make a world whose mirror has every kind of file, with changes that are pending."""
    world.mkdir(parents=True)
    app = sqlite3.connect(world / "app.db", isolation_level=None)
    app.execute("pragma journal_mode = wal")
    app.execute("create table t(id integer primary key, a integer, b real, c text)")
    app.execute("create table u(id integer primary key, v text)")
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 400)"
    app.execute(f"insert into t {numbers} select i, i, i * 0.5, 'text ' || i from n")
    app.execute(f"insert into u {numbers} select i, 'other ' || i from n")
    htap = HTAP(settings(world, storage, mode, buffered=buffered))
    htap.sync_now()
    htap.close()  # DuckDB's file has blocks from here on; what follows is in its log
    htap = HTAP(settings(world, storage, mode, buffered=buffered))
    for statement in (
        "update t set a = -a where id % 5 = 0",
        "delete from t where id % 7 = 0",
        "update t set c = 'again' where id % 10 = 0",
        "update u set v = 'changed' where id < 50",
    ):
        app.execute(statement)
        htap.sync_now()
    if mode == "temporal":
        htap.snapshot("t", {date(2026, 1, 1): datetime.now(UTC)})
    # A row that cannot be mirrored, so that there is a dead letter.
    app.execute("insert into t values (1000, 'no number', 0, '')")
    htap.sync_now()
    app.execute("delete from t where id = 1000")
    app.execute("insert into t values (1001, 'no number', 0, '')")
    htap.sync_now()
    (world / "before.json").write_text(json.dumps(_answers(htap, mode)))
    if buffered:
        from rhei_pipeline.wiring.engine import bridge  # noqa: PLC0415

        htap.close()
        app.execute("update t set b = b + 1 where id < 20")
        bridge(settings(world, storage, mode, buffered=True))
    elif storage is None:
        # Copied while it is open, DuckDB's file has its log beside it.
        (world / "open").mkdir()
        for file in world.glob("mirror.duckdb*"):
            copy(file, world / "open" / file.name)
        htap.close()
        for file in (world / "open").iterdir():
            shutil.copy(file, world / file.name)
        shutil.rmtree(world / "open")
    htap.close()
    app.execute("update t set a = a + 1 where id < 30")
    app.execute("insert into u values (2000, 'new')")
    app.execute("delete from t where id = 1001")
    app.close()


def _answers(htap: HTAP, mode: str) -> dict[str, Any]:
    """Return what queries on the mirror find, as text."""
    found: dict[str, Any] = {}
    for table in TABLES:
        found[table] = _rows(htap, f"select * from {table}")
    if mode == "temporal":
        found["snapshot"] = _rows(htap, "select * from snapshot.t")
    return found


def _rows(htap: HTAP, sql: str) -> list[str]:
    return sorted(str(row) for row in htap.query(sql, hint="olap").to_pylist())


class WrongError(Exception):
    """A promise was broken."""


def trial(world: Path, settings_: Settings, file: str, kind: str, mode: str) -> str:
    """Open a damaged world, ask, sync, go the way out; return what was named."""
    before = json.loads((world / "before.json").read_text())
    ways = ""
    named: list[str] = []
    try:
        with HTAP(settings_) as htap:
            _ask(htap, before, named, mode)
            _sync(world, htap, named)
    except RheiError as error:
        named.append(str(error))
    if named:
        ways = _go_the_ways_out(world, settings_, _names_of(file, kind), named)
    try:
        _prove(world, settings_, before, ways)
    except RheiError as error:
        # DuckDB may read a block for the first time when it folds its log into the file.
        ways += _go_the_ways_out(world, settings_, _names_of(file, kind), [str(error)])
        _prove(world, settings_, before, ways)
    return ways or "harmless"


def _prove(world: Path, settings_: Settings, before: dict[str, Any], ways: str) -> None:
    with HTAP(settings_) as htap:
        report = htap.sync_now()
        if report.errors:
            raise WrongError(f"left out: {report.errors}")
        _prove_equal(world, htap)
        if engine_of(htap).pipeline.table("t").mode is Mode.TEMPORAL:
            _prove_past(htap, before, whole="versions" not in ways and "away" not in ways)
        htap.maintain()
        _prove_equal(world, htap)


def _names_of(file: str, kind: str) -> list[str]:
    """Return what names a file: a Delta table is named by its folder."""
    path = Path(file)
    if (file, kind) == ("mirror.duckdb", "remove"):
        # A mirror that is gone is a new one, and the log says that the registry knows another.
        return ["mirror.duckdb", "is not copied yet"]
    names = [path.name] if "_delta_log" not in path.parts else [str(path.parents[1].name)]
    return [*names, "mirror.duckdb"] if path.name.startswith("mirror.duckdb") else names


def _ask(htap: HTAP, before: dict[str, Any], named: list[str], mode: str) -> None:
    questions = {table: f"select * from {table}" for table in TABLES}
    if mode == "temporal":
        questions["snapshot"] = "select * from snapshot.t"
    for name, sql in questions.items():
        try:
            answer = _rows(htap, sql)
        except RheiError as error:
            named.append(str(error))
            continue
        if answer != before[name]:
            raise WrongError(f"{name}: a wrong answer of {len(answer)} rows")


def _sync(world: Path, htap: HTAP, named: list[str]) -> None:
    try:
        report = htap.sync_now()
        named += report.errors.values()
        for table in set(TABLES) - report.errors.keys():
            _prove_table_equal(world, htap, table)
        verified = htap.verify()
        named += [found.damage for found in verified.tables.values() if found.damage]
        htap.dead_letters()
    except RheiError as error:
        named.append(str(error))


def _go_the_ways_out(world: Path, settings_: Settings, names: list[str], named: list[str]) -> str:
    advice = " ".join(named)
    if not any(name in advice for name in names):
        raise WrongError(f"the file is not named: {named}")
    ways = []
    for table in ("t", "u"):
        if f"rhei repair {table}'" in advice or "rhei repair' with" in advice:
            with HTAP(settings_) as htap:
                report = htap.repair(table)
            ways.append(f"repair {table}: {[f'{d.file}: {d.outcome}' for d in report.damaged]}")
    ways += _moved_away(world, advice)
    if not ways and "'rhei sync'" in advice:
        ways.append("synced; the versions in the log are lost")
    if not ways:
        raise WrongError(f"there is no way out: {named}")
    return "; ".join(ways)


def _moved_away(world: Path, advice: str) -> list[str]:
    """Move away what the advice says; DuckDB's file and its log go together."""
    ways = []
    for name in ("mirror.duckdb", "mirror.duckdb.wal", "cdc"):
        shown = repr(str(world / name))
        told = (f"move {shown} away" in advice, f"{shown} with it" in advice)
        buffer = name == "cdc" and "move it away" in advice
        if (world / name).exists() and (any(told) or buffer):
            (world / name).rename(world / f"away-{name}")
            ways.append(f"moved {name} away")
    return ways


def _prove_equal(world: Path, htap: HTAP) -> None:
    """The mirror holds what the source holds, both ways."""
    for table in TABLES:
        _prove_table_equal(world, htap, table)
    if not htap.verify().equal:
        raise WrongError(f"verify: {htap.verify()}")


def _prove_table_equal(world: Path, htap: HTAP, table: str) -> None:
    columns = {"t": "id, a, b, c", "u": "id, v"}[table]
    app = sqlite3.connect(world / "app.db")
    source = sorted(map(str, app.execute(f"select {columns} from {table}")))
    app.close()
    temporal = engine_of(htap).pipeline.table(table).mode is Mode.TEMPORAL
    valid = " where _rhei_valid_to is null" if temporal else ""
    found = htap.query(f"select {columns} from {table}{valid}", hint="olap").to_pylist()
    if sorted(str(tuple(row.values())) for row in found) != source:
        raise WrongError(f"table {table} is not equal to its source")


def _prove_past(htap: HTAP, before: dict[str, Any], *, whole: bool) -> None:
    """No version that began before the damage is told otherwise; where none is lost, all stand."""
    began = max(_began(row) for row in before["t"])
    known = {_version(row) for row in before["t"]}
    after = _rows(htap, "select * from t")
    for row in after:
        if _began(row) <= began and _version(row) not in known:
            raise WrongError(f"a version that never was: {row}")
    ended = {row for row in before["t"] if "'_rhei_valid_to': None" not in row}
    if whole and not ended <= set(after):
        raise WrongError("versions are lost, and nothing said so")


def _began(row: str) -> list[int]:
    """Return the parts of the instant at which a version began, the year first."""
    text = row.partition("'_rhei_valid_from': datetime.datetime(")[2].partition(", tzinfo")[0]
    parts = list(map(int, text.split(", ")))
    return parts + [0] * (7 - len(parts))


def _version(row: str) -> str:
    return row.partition(", '_rhei_valid_to'")[0]


def main(given: dict[str, Any]) -> None:
    """Make trials and print a line before and after each."""
    template, world = Path(given["template"]), Path(given["world"])
    for file, kind in given["trials"]:
        print(json.dumps(["begin", file, kind]), flush=True)  # noqa: T201
        # A mirror belongs to the database at one path, so each trial is made where it was built.
        shutil.rmtree(world, ignore_errors=True)
        shutil.copytree(template, world)
        outcome = "cannot be done"
        if damage(world / file, kind):
            chosen = settings(world, given["storage"], given["mode"], buffered=given["buffered"])
            try:
                outcome = trial(world, chosen, file, kind, given["mode"])
            except Exception as error:  # noqa: BLE001  (whatever it is, it is to be seen)
                outcome = f"WRONG {type(error).__name__}: {error}"
        print(json.dumps(["end", file, kind, outcome]), flush=True)  # noqa: T201
