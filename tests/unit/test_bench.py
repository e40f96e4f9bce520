"""What compares our cost with the floor's names what got slower, and proves both mirrors."""

import json
from pathlib import Path

import duckdb
import pytest

from benchmarks import quick
from benchmarks.floor import Floor
from benchmarks.orders import orders
from benchmarks.quick import Size
from benchmarks.report import Chapter, write


def test_what_got_slower_is_named_and_ends_in_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"copy": 2.0, "cycle": 4.0, "gone": 1.0}))
    assert quick.judge({"copy": 2.4, "cycle": 6.0, "new": 9.0, "gone": 0.5}, baseline) == 1
    told = capsys.readouterr().out.partition("Slower:\n")[2]
    assert told == "cycle: 6 x the floor, 1.50 x the baseline (4)\n"
    assert quick.judge({"copy": 2.4, "cycle": 4.9}, baseline) == 1
    assert capsys.readouterr().out.endswith("Slower:\ngone: not measured\n")
    assert quick.judge({"copy": 2.4, "cycle": 1.0, "gone": 1.0}, baseline) == 0


def test_all_that_the_baseline_names_is_measured() -> None:
    found = quick.measure(Size(50, copies=1, rounds=1, changes=20, small_cycles=1))
    assert found.keys() == json.loads(quick.BASELINE.read_text()).keys()
    assert min(found.values()) > 0


def test_a_floor_that_misses_a_change_is_worth_nothing(tmp_path: Path) -> None:
    with orders(100) as table:
        floor = Floor(table.path, tmp_path / "floor.duckdb")
        floor.copy()
        table.change(60)
        floor.sync()
        with duckdb.connect(tmp_path / "floor.duckdb") as mirror:
            mirrored = mirror.execute("select * from orders order by id").fetchall()
        source = table.connection.execute("select * from orders order by id").fetchall()
        assert mirrored == source
        floor.prove()
        table.connection.execute(
            "update orders set updated_at = 0 where id = (select max(id) from orders)"
        )
        with pytest.raises(SystemExit, match="worth nothing"):
            floor.prove()
        floor.close()


def test_a_report_has_conditions_figures_and_what_failed(tmp_path: Path) -> None:
    chapters = [
        Chapter("copy", [("a | b", "3 rows/s")], 1.0, 2.0, 300.0),
        Chapter("idle", failure="source and mirror differ"),
    ]
    text, data = write(chapters, tmp_path / "bench")
    page, whole = text.read_text(), json.loads(data.read_text())
    assert "| a \\| b | 3 rows/s |" in page
    assert "at most 300 MB" in page
    assert "Failed: source and mirror differ" in page
    assert whole["conditions"]["duckdb"] == duckdb.__version__
    assert [part["name"] for part in whole["chapters"]] == ["copy", "idle"]
