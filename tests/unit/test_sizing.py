"""What a load needs, worked out of what was measured; and the measuring, in small."""

import json
import math
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import sizing
from benchmarks.sizing_model import Costs, Load, Prices, cycle, needs, waits

COSTS = Costs(
    cycle=0.005,
    table=0.004,
    change=4e-6,
    byte=1e-8,
    scanned=0.0,
    folded=1e-6,
    copied_table=0.03,
    copied_row=1e-6,
    copied_byte=1e-8,
    server_change=5e-6,
    stored=0.5,
)
STORE = replace(COSTS, requests=4, requests_table=3, rounds=5)
LOAD = Load(100, 1_000_000, 100, 1_000, 10, 1.0, 60.0)


def test_a_cycle_is_the_sum_of_its_parts() -> None:
    found = cycle(COSTS, LOAD, 2.0)
    assert found.cpu == pytest.approx(0.005 + 10 * 0.004 + 2_000 * (5e-6 + 100 * 1e-8))
    assert (found.wall, found.requests) == (found.cpu, 0)
    delayed = cycle(STORE, LOAD, 2.0, latency=0.05)
    assert delayed.requests == 4 + 3 * 10
    assert delayed.wall == pytest.approx(found.cpu + 0.05 * 5)
    # 300 files take more turns than ten that are put at once.
    assert waits(STORE, 100) == 5 + math.ceil(300 / 32) - 1
    assert waits(COSTS, 100) == 0


def test_a_load_that_one_process_keeps_up_with_takes_one() -> None:
    found = needs(COSTS, LOAD)
    assert found.shards == 1
    assert found.cores == pytest.approx(cycle(COSTS, LOAD, 1.0).cpu)
    assert found.lag == pytest.approx(1 + cycle(COSTS, LOAD, 1.0).wall)
    assert found.server_cores == pytest.approx(0.005)
    assert found.gigabytes == pytest.approx(100 * 1e6 * 100 * 0.5 / 1e9)
    assert found.copy_hours == pytest.approx((100 * 0.03 + 1e8 * 2e-6) / 3600)
    kept = found.gigabytes * Prices().disk_gigabyte_month
    assert found.dollars == pytest.approx(0.05 * 720 + kept)


def test_more_changes_than_one_process_takes_are_shared_out() -> None:
    many = replace(LOAD, changes=500_000, changed_tables=100)
    found = needs(COSTS, many)
    assert found.shards > 500_000 * 6e-6  # a process is not busy all the time
    assert found.cores < found.shards
    fewer = needs(COSTS, replace(many, changes=250_000))
    assert fewer.shards < found.shards
    # A table is one shard's: no number is enough for one table that takes them all.
    assert needs(COSTS, replace(many, tables=1)).shards == 0


def test_a_slow_store_makes_syncs_rarer_and_dearer_is_less_often() -> None:
    quick, slow = (needs(STORE, LOAD, latency) for latency in (0.01, 0.5))
    assert quick.shards == slow.shards == 1
    assert slow.lag > 2 * cycle(STORE, LOAD, 1.0, 0.5).wall
    assert slow.requests < quick.requests == pytest.approx(34)
    rare = needs(STORE, replace(LOAD, interval=60))
    assert rare.requests == pytest.approx(34 / 60)
    assert rare.dollars < quick.dollars


def test_history_takes_room_by_the_days_it_is_kept() -> None:
    plain, kept = needs(COSTS, LOAD), needs(COSTS, replace(LOAD, history_days=10))
    versions = 1_000 * 10 * 86_400 * 100 * 0.5 / 1e9
    assert kept.gigabytes - plain.gigabytes == pytest.approx(versions)


def test_what_is_fitted_is_what_made_it() -> None:
    points = []
    for tables, changes, row_bytes, rows in (
        (1, 10, 70, 1e4),
        (1, 3e3, 70, 1e4),
        (8, 80, 70, 1e4),
        (8, 8e3, 70, 1e4),
        (1, 3e4, 70, 1e6),
        (1, 1e4, 900, 1e5),
    ):
        cpu = cycle(COSTS, Load(99, rows, row_bytes, changes, tables, 1.0, 1.0), 1.0).cpu
        points.append(sizing.Point(tables, changes, row_bytes, rows, cpu, 0, 0))
    found = sizing.fitted(points, is_scanned=True)
    assert found["cycle"] == pytest.approx(COSTS.cycle, rel=1e-3)
    assert found["change"] == pytest.approx(COSTS.change + COSTS.folded, rel=1e-3)
    assert found["byte"] == pytest.approx(COSTS.byte, rel=1e-3)
    assert found["scanned"] == pytest.approx(0, abs=1e-12)
    assert sizing.fitted(points, is_scanned=False) == pytest.approx(found, abs=1e-12)


def test_the_costs_that_are_kept_are_of_all_that_is_measured() -> None:
    kept = sizing.known()
    assert {name for name in kept if "SQLite" in name} == {
        f"SQLite, {mirror}, {mode}" for mirror in sizing.MIRRORS for mode in sizing.MODES
    }
    assert len(kept) == len(sizing.SOURCES) * len(sizing.MIRRORS) * len(sizing.MODES)
    for name, costs in kept.items():
        assert costs.change + costs.byte > 0, name
        assert costs.stored > 0, name
        assert (costs.requests > 3) is ("store" in name)


@pytest.mark.long
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(("SQLite", "DuckDB", "temporal"), marks=pytest.mark.soak),
        ("PostgreSQL", "store", "destructive"),
    ],
)
def test_a_combination_is_measured_and_a_run_compared_with_it(
    kind: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small: dict[str, object] = {"ROWS": 40, "LARGE_ROWS": 400, "TABLES": 2, "CYCLES": 1, "FOLDS": 1}
    small["POINTS"] = ((1, 10), (2, 20), (1, 30))
    for name, value in small.items():
        monkeypatch.setattr(sizing, name, value)
    monkeypatch.setattr(sizing, "KEPT", tmp_path / "costs.json")
    with ExitStack() as stack:
        places = sizing.Places(stack)
        costs = sizing.measured(places, kind)
        sizing.KEPT.write_text(json.dumps({", ".join(kind): costs.to_json()}))
        told = list(sizing.Check(kind, 2, 50, 2, 20, delay=5 if "store" in kind else 0).run(places))
    assert costs.cycle + costs.table + costs.change > 0
    assert len(told) == (4 if "store" in kind else 2)
    # The last is a difference of two times by the clock: of so little, it may be anything.
    assert all(was > 0 and should > 0 for _, was, should in told[:3])
    assert all(math.isfinite(was) and math.isfinite(should) for _, was, should in told)
