"""How a cell of the drift matrix is played, and judged by an oracle of its own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.support.drift import drifts
from tests.support.drift.drifts import Way
from tests.support.drift.matrix import MOMENTS, Cell
from tests.support.drift.stage import Row, Stage
from tests.support.parts import engine_of


@dataclass
class Known:
    """What was known of a temporal table when it drifted."""

    past: list[Row] = field(default_factory=list)
    pending: list[Row] = field(default_factory=list)


def play(cell: Cell, stage: Stage) -> str:
    """Play a cell; return how it ended, `equal` or `named`."""
    known = _prepare(cell, stage)
    stage.run_together(*cell.statements)
    stage.run(*drifts.BESIDE)
    if cell.moment != "quiet":
        stage.run(*cell.drifts.after)
    errors = stage.sync()
    others = {name: text for name, text in errors.items() if name != "t"}
    assert not others, f"others are left out: {others}"
    _assert_equal(cell, stage, "other")
    named = errors.get("t")
    way = None
    if named is not None:
        way = _take_way_out(cell, stage, named)
    assert cell.ends in {drifts.EITHER, drifts.NAMED if named else drifts.EQUAL}, (
        f"must end {cell.ends}: {named or 'no error'}"
    )
    for table in stage.tables:
        _assert_equal(cell, stage, table)
    if cell.mode == "temporal":
        if way is None or not way.begins_anew:
            _assert_past(stage, known, cell.drifts.renames)
        _assert_invariants(stage.versions("t"), _keys(stage))
    found = stage.htap.verify()
    assert found.equal, f"verify disagrees: {found.tables}"
    _assert_rests_equal(cell, stage)
    return "named" if named else "equal"


def _prepare(cell: Cell, stage: Stage) -> Known:
    """Bring the cell to the moment at which its table drifts."""
    stage.run(*cell.drifts.before)
    for statements in ((), drifts.EARLIER):
        stage.run(*statements)
        assert not stage.sync()
    known = Known(past=stage.versions("t"))
    if cell.moment == "reopened":
        stage.close()
    if cell.moment != "quiet":
        for statement in drifts.PENDING:
            before = stage.source_rows("t")
            stage.run(statement)
            known.pending += [row for row in stage.source_rows("t") if row not in before]
    if not cell.captures.sees_versions:
        known.pending.clear()
    return known


def _take_way_out(cell: Cell, stage: Stage, named: str) -> Way:
    """Do what the error says; the table has to be followed again then."""
    assert "'t'" in named, f"the error does not name the table: {named}"
    found = [way for way in cell.drifts.ways if re.search(way.said, named)]
    assert found, f"no way out is named that is known here: {named}"
    way = found[MOMENTS.index(cell.moment) % len(found)]
    if way.sql:
        stage.run_together(*way.sql)
    if way.begins_anew:
        stage.begin_anew()
    if way.declared:
        stage.close()
        stage.declared = dict(way.declared)
        if "replica identity full" in named:
            stage.run("alter table t replica identity full")
    errors = stage.sync()
    assert not errors, f"the way out leads nowhere: {errors}"
    return way


def _assert_equal(cell: Cell, stage: Stage, table: str) -> None:
    source = stage.source_rows(table)
    _compare(table, source, _present(cell, stage.versions(table)))


def _present(cell: Cell, held: list[Row]) -> list[Row]:
    if cell.mode == "temporal":
        return [row for row in held if row["_rhei_valid_to"] is None]
    return held


def _compare(table: str, source: list[Row], mirror: list[Row]) -> None:
    """Demand the same rows in the source's columns, counted."""
    names = list(source[0]) if source else []
    held = sorted(repr([_of(row, name) for name in names]) for row in mirror)
    wanted = sorted(repr([row[name] for name in names]) for row in source)
    extra = [row for row in held if row not in wanted]
    lost = [row for row in wanted if row not in held]
    assert held == wanted, f"{table} differs: extra {extra[:3]}, missing {lost[:3]}"


def _assert_past(stage: Stage, known: Known, renames: Mapping[str, str]) -> None:
    held = stage.versions("t")

    def is_held(version: Row) -> bool:
        renamed = {renames.get(name, name): value for name, value in version.items()}
        return _holds(held, version) or _holds(held, renamed)

    for version in known.past:
        assert is_held(version), f"the past was rewritten: {_short(version)} of {len(held)}"
    for state in known.pending:
        assert is_held(state), f"a pending version is lost: {_short(state)}"


def _keys(stage: Stage) -> Sequence[str]:
    return engine_of(stage.htap).pipeline.table("t").schema.primary_key


def _holds(held: list[Row], version: Row) -> bool:
    """Tell whether a version stands as it stood; an open one may have ended."""
    ended = version.get("_rhei_valid_to") is not None
    skipped = set() if ended else {"_rhei_valid_to", "_rhei_operation"}
    wanted = [item for item in version.items() if item[0] not in skipped]
    return any(all(_of(row, name) == value for name, value in wanted) for row in held)


def _of(row: Row, name: str) -> Any:
    """Return a row's value in a column; not all engines tell names by their case."""
    if name in row:
        return row[name]
    return next((value for known, value in row.items() if known.lower() == name.lower()), ...)


def _assert_invariants(held: list[Row], keys: Sequence[str]) -> None:
    by_key: dict[str, list[Row]] = {}
    for row in sorted(held, key=lambda row: row["_rhei_valid_from"]):
        by_key.setdefault(repr([_of(row, name) for name in keys]), []).append(row)
    for versions in by_key.values():
        for version in versions:
            end = version["_rhei_valid_to"]
            assert end is None or end > version["_rhei_valid_from"], "a version is empty"
        for earlier, later in pairwise(versions):
            end, begin = earlier["_rhei_valid_to"], later["_rhei_valid_from"]
            assert end is not None, "two versions are open"
            assert end <= begin, "versions overlap"
            followed = earlier["_rhei_operation"] != "D"
            assert end == begin or not followed, "a version ends where none begins"


def _short(row: Row) -> Row:
    return {name: value for name, value in row.items() if name in {"id", "qty", "note"}}


def _assert_rests_equal(cell: Cell, stage: Stage) -> None:
    """Demand the same of the mirror's file, read by DuckDB itself."""
    if cell.mirror == "duckdb":
        for table, held in stage.at_rest().items():
            _compare(table, stage.source_rows(table), _present(cell, held))
