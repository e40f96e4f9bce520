"""What compares our cost with the floor's names what got slower, and proves both mirrors."""

import hashlib
import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import duckdb
import pytest

from benchmarks import environments, quick, sql_logic, sysbench
from benchmarks.charts import chart
from benchmarks.contenders import CONTENDERS, Contender, Play, compared
from benchmarks.floor import Floor
from benchmarks.memory import Teeth
from benchmarks.orders import orders
from benchmarks.others.running import running
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


@pytest.mark.long
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


@pytest.mark.long
def test_contenders_take_turns_and_one_that_cannot_be_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    ours = CONTENDERS[0]
    absent = Contender("absent", "with_rhei", "inmemory", ("rhei-engine",), "2.0")
    play = Play(60, rounds=1, inserts=30, small_cycles=1, updates=5, updated_rows=20)
    found, missing = compared([ours, absent], play)
    assert len(found) == 5
    assert all(cost > 0 for costs in found.values() for cost in costs[ours.name])
    assert all(costs.keys() == {ours.name} for costs in found.values())
    assert missing == {"absent": "cannot be installed here: Python 2.0, rhei-engine"}


@pytest.mark.long
def test_a_contender_whose_copy_is_not_right_is_worth_nothing() -> None:
    with (
        orders(60) as table,
        running(table.path, Path(sys.executable), "with_pipeline", "memory") as program,
    ):
        program.sync()
        program.prove()
        program.update(7)
        with pytest.raises(SystemExit, match=r"with_pipeline memory: .* worth nothing"):
            program.prove()


def test_a_report_has_conditions_figures_and_what_failed(tmp_path: Path) -> None:
    chapters = [
        Chapter("copy", [("a | b", "3 rows/s")], 1.0, 2.0, 300.0),
        Chapter("idle", failure="source and mirror differ"),
    ]
    text, data = write(chapters, tmp_path / "bench")
    page, whole = text.read_text(), json.loads(data.read_text())
    assert "| a \\| b | 3 rows/s |" in page
    assert "at most 300 MB" in page
    assert "![copy](copy.svg)" in page
    assert "Failed: source and mirror differ" in page
    assert whole["conditions"]["duckdb"] == duckdb.__version__
    assert [part["name"] for part in whole["chapters"]] == ["copy", "idle"]


def test_a_chart_has_a_bar_for_each_number_to_the_scale_of_its_unit() -> None:
    figures = [
        ("a & b", "1,000 rows/s CPU, 3 ms"),
        ("half", "500 rows/s CPU"),
        ("slow", "0.25 ms against 2 ms: 0.1 x"),
        ("told in words", "equal"),
    ]
    image = ET.fromstring(chart(figures))  # noqa: S314  (our own)
    names = {"s": "http://www.w3.org/2000/svg"}
    texts = [text.text for text in image.findall("s:text", names)]
    bars = [int(bar.attrib["width"]) for bar in image.findall("s:rect[@x]", names)]
    assert texts == ["rows/s CPU", "a & b", "1,000", "half", "500", "ms", "slow", "0.25"]
    assert bars == [bars[0], bars[0] // 2, bars[0]]
    assert not chart([("told in words", "equal")])


#: As sqllogictest writes it: values one a line, many of them as a hash.
_SCRIPT = """statement ok
CREATE TABLE t1(a INTEGER, b VARCHAR(9))

statement ok
INSERT INTO t1(a, b) VALUES (2, 'x'), (1, ''), (NULL, 'y')

skipif sqlite
query I nosort
SELECT 1 FROM t1
----
9

query TI rowsort
SELECT b, a FROM t1
----
(empty)
1
x
2
y
NULL

query R nosort
SELECT avg(a) FROM t1
----
1.500

query I valuesort
SELECT a.a * b.a FROM t1 AS a CROSS JOIN t1 AS b WHERE a.a > 0 AND b.a > 0
----
4 values hashing to 00000000000000000000000000000000
"""


@pytest.mark.long
def test_a_script_for_sqllogictest_is_played_and_a_difference_counted(tmp_path: Path) -> None:
    hashed = hashlib.md5(b"1\n2\n2\n4\n", usedforsecurity=False).hexdigest()
    right = _SCRIPT.replace("00000000000000000000000000000000", hashed)
    for name, text, different in (
        ("right", right, False),
        ("hash", _SCRIPT, True),
        ("value", right.replace("1.500", "1.501"), True),
        ("row", right.replace("2\ny", "1\ny"), True),
    ):
        (tmp_path / name).mkdir()
        script = tmp_path / f"{name}.test"
        script.write_text(text)
        told = sql_logic.play(script, {"kind": "duckdb"}, tmp_path / name, every=1)
        asked = told["olap"] + told["olap by hint"] + told["olap refused"]
        assert (told["queries"], asked) == (3, 3)
        assert bool(told["different"]) == different, name


def test_where_sysbench_is_not_installed_its_chapter_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert [*sysbench.measure()] == [("sysbench", "left out: it is not installed")]


@pytest.mark.parametrize(
    ("grown", "teeth", "told"),
    [(0, 18, "flat"), (3, 18, "flat"), (40, 18, "GROWN"), (40, 5, "too few")],
)
def test_memory_is_flat_where_the_peaks_between_checkpoints_are(
    grown: int, teeth: int, told: str
) -> None:
    found = Teeth()
    for tooth in range(teeth + 2):  # neither the first nor the last one is whole
        for cycle in range(10):
            wobble = (tooth * 7 % 5 + cycle) * 2**20
            found.add(200 * 2**20 + wobble + tooth * grown * 2**20 // 6, cycle * 1000)
    assert len(found.peaks) == teeth
    assert told in str(found)
