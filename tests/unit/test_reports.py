"""What a report says of itself: in one line, as a table in a notebook, and as plain values."""

import json
from dataclasses import fields
from datetime import UTC, datetime
from xml.etree import ElementTree as ET

import pytest

from rhei_pipeline import (
    CopyReport,
    ForgetReport,
    MaintenanceReport,
    RepairReport,
    SyncReport,
    SyncStatus,
    TableReport,
    TableState,
    TableStatus,
    TableVerification,
    VerifyReport,
)
from rhei_pipeline.model.report import Report

NOW = datetime(2026, 11, 1, tzinfo=UTC)
SYNCED = {
    "<b>": TableReport("<b>", 1_200, 1_000, 1, 0, 2, 7, as_of=NOW),
    **{name: TableReport(name, error="gone: 'x'") for name in "pqrs"},
}
READY = TableStatus("t", "temporal", TableState.READY, 7, 3, 1.5, 0, doubt="polled")
FOUND = TableVerification("t", 9, 1, 0, 0, 0, {"missing": ('{"id": 1}',)})
LINES: dict[str, Report] = {
    "SyncReport(5 tables, 1,200 events, 1,000 inserted, 1 updated, 0 deleted, 2 dead letters,"
    " 0.250 s, left out: p, q, r and 1 more)": SyncReport(SYNCED, 0.25, {"old": NOW}),
    "CopyReport('t', 1 row of a resumed copy, 1 inserted, 0 updated, 0 deleted,"
    " 2.000 s)": CopyReport(
        "t",
        1,
        resumed=True,
        inserted=1,
        updated=0,
        deleted=0,
        dead_letters=0,
        watermark=5,
        duration_seconds=2.0,
    ),
    "VerifyReport(not equal, 1 table, 9 rows, 0.500 s, differ: t, left out: u)": VerifyReport(
        {"t": FOUND}, 0.5, {"u": "dropped"}
    ),
    "SyncStatus(running, 1 table, 3 events and 1.500 s behind, last error)": SyncStatus(
        running=True, tables={"t": READY}, last_error="no route to secret@host"
    ),
    "SyncStatus(not running, 2 tables, 3 events and 1.500 s behind, lag not known: u,"
    " left out: u)": SyncStatus(
        running=False,
        tables={"t": READY, "u": TableStatus("u", "temporal", None, 7, None, None, 0, "dropped")},
    ),
    "ForgetReport('t', 1 key, 3 rows, searched for 2 texts, found in 1 file)": ForgetReport(
        "t", 1, 3, 2, {"a": 1, "b": 4}, {"b": 1}
    ),
    "RepairReport('t', 1 inserted, 2 updated, 3 deleted, 0.100 s)": RepairReport("t", 1, 2, 3, 0.1),
    "MaintenanceReport(12 to 1 file, 9,000 to 800 bytes, 7 rows written, more is due,"
    " 1 damaged file)": MaintenanceReport(12, 1, 9_000, 800, 7, done=False, damaged=("f",)),
}


@pytest.mark.parametrize("line", LINES)
def test_a_report_is_one_line_one_table_and_plain_values(line: str) -> None:
    report = LINES[line]
    assert repr(report) == line
    table = ET.fromstring(report._repr_html_())  # noqa: S314  (of our own making)
    assert table.findtext("caption") == line
    heads = [head.text for head in table.iter("th")]
    rows = [[cell.text for cell in row] for row in table.findall("tbody/tr")]
    assert heads == [name.replace("_", " ") for name in report.shown]
    assert all(len(row) == len(heads) for row in rows)
    assert len(rows) == len(getattr(report, "tables", "1"))
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain.keys() == {field.name for field in fields(report)} | {*report.derived}  # type: ignore[arg-type]
    assert all(plain[name] == getattr(report, name) for name in report.derived)


def test_names_are_escaped_and_values_are_plain() -> None:
    synced = SyncReport(SYNCED, 0.25, {"old": NOW})
    assert "<b>" not in synced._repr_html_()
    assert "<td>&lt;b&gt;</td><td>1,200</td>" in synced._repr_html_()
    plain = synced.to_dict()
    assert (plain["tables"]["<b>"]["as_of"], plain["not_followed"]["old"]) == (NOW.isoformat(),) * 2
    assert "<td>no</td><td>9</td><td>1</td>" in VerifyReport({"t": FOUND}, 0.5)._repr_html_()
    status = SyncStatus(running=True, tables={"t": READY}).to_dict()
    assert (status["tables"]["t"]["state"], status["tables"]["t"]["proof"]) == ("ready", "unproved")
