"""The small examples do what their pages say."""

import json
from pathlib import Path

import pytest

import rhei_pipeline as rhei
from examples import consume_changes, json_lines


def test_the_example_prints_an_order_with_its_history(capsys: pytest.CaptureFixture[str]) -> None:
    json_lines.main()
    printed = capsys.readouterr().out
    assert printed.index("'new'") < printed.index("'paid'")


def test_a_source_of_ones_own_goes_on_in_another_process_where_it_was(tmp_path: Path) -> None:
    form = {"key": ["id"], "columns": {"id": "int64", "status": "string"}}
    (tmp_path / "orders.schema.json").write_text(json.dumps(form))
    source = json_lines.JsonLinesSource(tmp_path)
    copied = []
    for status in ("new", "paid"):
        source.append("orders", {"put": {"id": 1, "status": status}})
        mirror = rhei.open_mirror(rhei.MirrorSettings(path=tmp_path / "mirror.duckdb"))
        tables = {"orders": "temporal"}
        pipeline = rhei.open_with(source, mirror, tables, registry=tmp_path / "registry.json")
        copied.append(pipeline.sync().tables["orders"].copied_rows)
        assert pipeline.verify().equal
        found = mirror.query("select status from orders order by _rhei_valid_from")
        mirror.close()
    assert copied[0] == 1
    assert not copied[1]
    assert found["status"].to_pylist() == ["new", "paid"]


def test_the_consumer_counts_each_order_once(capsys: pytest.CaptureFixture[str]) -> None:
    consume_changes.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["{'new': 2}", "{'new': 1, 'paid': 1}", "{'paid': 1}"]
