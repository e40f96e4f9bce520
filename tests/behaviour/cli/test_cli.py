"""The command line on a real source and mirror: what it prints, and how it exits."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner

from rhei_pipeline import open as rhei_open
from rhei_pipeline.cli import output as terminal
from rhei_pipeline.cli.main import app
from rhei_pipeline.model.reports import TypeProposal
from tests.support.fix_world import World
from tests.support.terminal import INTERRUPT, Terminal


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended, without the traceback that holds its objects."""

    exit_code: int
    output: str
    stdout: str
    error: str


Rhei = Callable[..., Answer]


@pytest.fixture
def rhei(world: World, tmp_path: Path) -> Rhei:
    """Run a command on the fixture's source, with the library closed so that the file is free."""
    settings = world.settings
    world.mode = "temporal"
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"source: {{kind: sqlite, path: {settings.sqlite_path}}}\n"
        f"mirror: {{kind: duckdb, path: {settings.mirror.path}}}\n"
        f"registry: {{path: {settings.registry.path}}}\n"
        "tables: [{name: orders, mode: temporal}]\n"
    )

    def run(*arguments: str) -> Answer:
        found = CliRunner().invoke(app, [*arguments, "--config", str(config)], prog_name="rhei")
        return Answer(found.exit_code, found.output, found.stdout, str(found.exception or ""))

    return run


def answer(result: Answer) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_sync_reports_what_it_did(rhei: Rhei, world: World) -> None:
    assert answer(rhei("sync", "--json"))["inserted"] == 3
    world.run("update orders set status = 'sent' where id < 3", "delete from orders where id = 3")
    report = answer(rhei("sync", "--json"))
    assert (report["events"], report["updated"], report["deleted"]) == (3, 2, 1)
    assert report["tables"]["orders"]["updated"] == 2
    assert "orders" in rhei("sync").output


def test_a_sync_that_leaves_all_out_prints_why_and_no_empty_table(rhei: Rhei, world: World) -> None:
    world.run("alter table orders rename to other")
    found = rhei("sync")
    assert found.exit_code == 3
    assert "no such table" in found.output
    assert "watermark" not in found.output


def test_copy_status_check_verify_repair(rhei: Rhei) -> None:
    (copied,) = answer(rhei("copy", "--table", "orders", "--json"))["tables"]
    assert copied["rows"] == 3
    assert answer(rhei("status", "--json"))["tables"]["orders"]["state"] == "ready"
    verified = answer(rhei("verify", "--json"))
    assert verified["equal"] is True
    assert verified["tables"]["orders"]["rows"] == 3
    assert answer(rhei("repair", "orders", "--json"))["inserted"] == 0


def test_status_counts_what_is_pending_and_leaves_it_pending(rhei: Rhei, world: World) -> None:
    rhei("sync")
    world.run("update orders set status = 'sent'")
    for _ in range(2):
        assert answer(rhei("status", "--json"))["tables"]["orders"]["lag_events"] == 3


def test_check_says_what_is_wrong_and_what_mends_it(rhei: Rhei, world: World) -> None:
    before = answer(rhei("check", "--json"))
    assert before["ready"]
    assert "not captured yet" in str(before["findings"])
    assert not world.settings.mirror.path.exists()
    assert "ready to sync" in rhei("check").output
    assert "orders: changes are not captured yet" in rhei("check").output
    rhei("sync")
    assert "not captured yet" not in str(answer(rhei("check", "--json")))
    world.run("drop table orders", "create table orders(id integer, status text)")
    broken = rhei("check", "--json")
    assert broken.exit_code == 1
    (finding,) = [f for f in json.loads(broken.stdout)["findings"] if f["severity"] == "error"]
    assert finding["table"] == "orders"
    assert "primary_key" in finding["remedy"]


@pytest.mark.long
def test_check_and_status_answer_while_another_process_has_the_mirror(
    rhei: Rhei, world: World
) -> None:
    rhei("sync")
    script = (
        "import sys, rhei_pipeline as rhei\n"
        "with rhei.open(rhei.Settings.model_validate_json(sys.argv[1])):\n"
        "    print('open', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, world.settings.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        assert answer(rhei("check", "--json"))["ready"]
        assert answer(rhei("status", "--json"))["tables"]["orders"]["state"] == "ready"


def test_verify_fails_where_rows_differ(rhei: Rhei, world: World) -> None:
    rhei("sync")
    with duckdb.connect(str(world.settings.mirror.path)) as mirror:
        mirror.execute("delete from orders where id = 2")
    result = rhei("verify", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["tables"]["orders"]["missing"] == 1


def test_queries_show_rows_as_they_are(rhei: Rhei) -> None:
    rhei("sync")
    for side in ("oltp", "olap"):
        sql = "select id, amount from orders where id = 1"
        assert answer(rhei("query", sql, "--hint", side, "--json")) == [{"id": 1, "amount": 1.5}]
    wide = rhei("query", "select * from orders where id = 1", "--hint", "olap").output
    assert "_rhei_valid_from" in wide
    assert "no rows" in rhei("query", "select * from orders where id = 9").output


def test_an_answer_that_json_cannot_hold_is_written_as_text(rhei: Rhei) -> None:
    rhei("sync")
    sql = (
        "select 'nan'::double as n, '\\x00'::blob as b, 1.10::decimal(4, 2) as d,"
        " date '2026-01-02' as t"
    )
    found = answer(rhei("query", sql, "--hint", "olap", "--json"))
    assert found == [{"n": "nan", "b": {"hex": "00"}, "d": "1.10", "t": "2026-01-02"}]


def test_as_of_looks_back(rhei: Rhei, world: World) -> None:
    rhei("sync")
    world.run("update orders set status = 'later' where id = 1")
    rhei("sync")
    (first, second) = world.versions("orders", "id, _rhei_valid_from")[:2]
    world.crash()
    for version in (first, second):
        instant = version["_rhei_valid_from"].isoformat()
        rows = answer(rhei("as-of", "orders", instant, "--json"))
        assert [row["status"] for row in rows if row["id"] == 1] == [version["status"]]


@pytest.mark.long
@pytest.mark.parametrize(
    "asked", [["as-of", "orders"], ["diff", "--table", "orders", "--from"], ["changes", "--after"]]
)
def test_an_instant_without_a_zone_is_given_one(rhei: Rhei, asked: list[str]) -> None:
    rhei("sync")
    more = ["--table", "orders"] if asked[0] == "changes" else []
    now = datetime.now(UTC)
    for typed in (f"{now:%Y-%m-%dT%H:%M:%S.%f}", f"{now:%Y-%m-%d %H:%M:%S.%f}"):
        refused = rhei(*asked, typed, *more)
        told = " ".join(refused.output.replace("│", " ").split())
        way_out = "end it with Z for UTC, or with an offset such as +02:00"
        assert refused.exit_code == 2
        assert f"{typed!r} has no time zone: {way_out}" in told
        for zone in ("Z", "+00:00"):
            assert rhei(*asked, typed + zone, *more).exit_code == 0


@pytest.mark.long
def test_changes_go_on_where_the_last_answer_ended(
    rhei: Rhei, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    rhei("sync")
    first = answer(rhei("changes", "--table", "orders", "--json"))
    assert (first["snapshot"], first["inserted"], len(first["changes"])) == (True, 3, 3)
    world.run("update orders set status = 'sent' where id = 1", "delete from orders where id = 2")
    rhei("sync")
    again = ("changes", "--table", "orders", "--after", first["position"])
    found = answer(rhei(*again, "--json"))
    assert (found["snapshot"], found["updated"], found["deleted"]) == (False, 1, 1)
    shown = rhei(*again)
    assert "status: new -> sent" in shown.stdout
    assert f"position {found['position']}" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    later = ("changes", "--table", "orders", "--after", found["position"])
    assert "no changes" in rhei(*later).stdout
    rhei("drop-table", "orders", "--discard-history", "--yes")
    rhei("sync")
    lost = rhei(*later)
    assert lost.exit_code == 1
    assert "take the whole table afresh" in lost.error
    assert answer(rhei(*later, "--snapshot-if-lost", "--json"))["snapshot"]


@pytest.mark.long
def test_diff_shows_what_differs_between_two_instants(
    rhei: Rhei, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    rhei("sync")
    world.run("update orders set status = 'sent' where id = 1", "delete from orders where id = 2")
    rhei("sync")
    world.run("update orders set status = 'new' where id = 1", "insert into orders(id) values (9)")
    rhei("sync")
    since, until = (
        world.htap.query(f"select {edge}(_rhei_valid_from) as at from orders", hint="olap")
        for edge in ("min", "max")
    )
    world.crash()
    a, b = (found["at"][0].as_py().isoformat() for found in (since, until))
    between = ("diff", "--table", "orders", "--from")
    found = answer(rhei(*between, a, "--to", b, "--json"))
    assert [(row["_rhei_operation"], row["id"]) for row in found] == [("D", 2), ("I", 9)]
    assert answer(rhei(*between, a, "--json")) == found
    back = rhei(*between, b, "--to", a)
    assert "insert" in back.stdout
    assert max(map(len, back.stdout.splitlines())) <= 80


def test_dead_letters_fail_until_they_are_mended(rhei: Rhei, world: World) -> None:
    world.run("update orders set amount = 'much' where id = 2")
    rhei("sync")
    listed = rhei("dead-letters", "--json")
    assert listed.exit_code == 1
    assert json.loads(listed.stdout)[0]["column_name"] == "amount"
    assert "much" not in rhei("dead-letters").output
    world.run("update orders set amount = 2 where id = 2")
    assert answer(rhei("dead-letters", "--replay", "--json")) == []


def test_a_letter_that_a_later_change_resolves_is_told_as_no_open_one(
    rhei: Rhei, world: World, tmp_path: Path
) -> None:
    """A history lacks a version then; 'rhei dead-letters' has nothing to say of it."""
    rhei("sync")
    world.run("insert into orders values (90, 'new', 'x')", "update orders set amount = 1")
    synced = rhei("sync")
    assert "1 dead letter, resolved by later changes in the same sync" in " ".join(
        synced.output.split()
    )
    assert "says why" not in synced.output
    assert rhei("dead-letters").exit_code == 0
    world.run("insert into orders values (91, 'new', 'x')")
    told = " ".join(rhei("sync").output.split())
    assert "1 row of orders could not be mirrored: 'rhei dead-letters' says why" in told


@pytest.mark.long
def test_a_type_is_proposed_that_takes_the_dead_letters(
    rhei: Rhei, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    config = tmp_path / "pipeline.yaml"
    config.write_text(config.read_text().replace("orders, mode", "made, mode"))
    world.run("create table made(id integer primary key, at timestamp, size real, odd real)")
    world.app.executemany(
        "insert into made values (?, ?, ?, ?)",
        [
            (n, 1_700_000_000 + n, "big" if n % 4 == 0 else 1.5, b"hidden" if n == 1 else 2.5)
            for n in range(1, 13)
        ],
    )
    synced = rhei("sync")
    assert "16 rows of made could not be mirrored" in synced.output
    shown = rhei("dead-letters")
    assert shown.exit_code == 1
    assert "hidden" not in shown.output
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "12" in shown.stdout
    found = {
        (each["column"], each["type"]): (each["healed"], each["letters"], each["refused"])
        for each in map(dataclasses.asdict, proposed(config))
    }
    assert found[("at", "timestamp_s")] == (12, 12, 0)
    assert ("at", "timestamp_ms") not in found
    assert found[("size", "string")] == (3, 3, 0)
    assert found[("odd", "binary")] == (1, 1, 11)
    # As it is printed: declared, and replayed.
    for declared in ('"at": timestamp_s', '"size": string'):
        assert f"made:  types: {{{declared}}}" in shown.stdout
    types = "types: {at: timestamp_s, size: string}"
    config.write_text(config.read_text().replace("made, mode", f"made, {types}, mode"))
    left = json.loads(rhei("dead-letters", "--replay", "--json").stdout)
    assert [(each["column_name"], each["key"]) for each in left] == [("odd", '{"id": 1}')]


def proposed(config: Path) -> list[TypeProposal]:
    with rhei_open(config) as htap:
        return htap.propose_types("made")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "delete from orders"], "only reads"),
        (["query", "select * from ordrs"], "did you mean 'orders'?"),
        (["verify", "--table", "ordrs"], "'orders'"),
    ],
)
def test_a_wrong_call_fails_with_a_sentence(rhei: Rhei, arguments: list[str], message: str) -> None:
    result = rhei(*arguments)
    assert result.exit_code == 1
    assert message in result.error


@pytest.mark.parametrize(
    "arguments",
    [
        ["query"],
        ["as-of", "orders", "yesterday"],
        ["changes"],
        ["query", "x", "--hint", "no"],
        ["changes", "--table", "orders", "--after", "yesterday"],
    ],
)
def test_wrong_usage_exits_with_two(rhei: Rhei, arguments: list[str]) -> None:
    assert rhei(*arguments).exit_code == 2


def test_every_command_shows_an_example() -> None:
    for command in app.registered_commands:
        assert "Example:  rhei " in str(command.epilog)


@pytest.mark.long
def test_the_demo_leaves_a_mirror_to_try_on(tmp_path: Path) -> None:
    place = tmp_path / "shop"
    told = CliRunner().invoke(app, ["demo", "--directory", str(place), "--json"])
    assert told.exit_code == 0, told.output
    titles = " ".join(chapter["title"] for chapter in json.loads(told.stdout)["chapters"])
    assert "52,000 rows" in titles
    assert "all equal" in titles
    asked = ["query", "select count(*) as n from orders", "--json", "--config"]
    found = CliRunner().invoke(app, [*asked, str(place / "pipeline.yaml")])
    assert json.loads(found.stdout) == [{"n": 50_400}]
    again = CliRunner().invoke(app, ["demo", "--directory", str(place)])
    assert again.exit_code == 1
    assert "not empty" in str(again.exception)


def test_status_is_shown_again_until_it_is_interrupted(
    rhei: Rhei, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rhei("sync")
    turns = iter(range(2))

    def sleep(seconds: float) -> None:
        assert seconds == 0.5
        world.run("update orders set status = 'sent'")
        if next(turns, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr("rhei_pipeline.cli.watching.sleep", sleep)
    assert rhei("status", "--watch", "1e10").exit_code == 2
    found = rhei("status", "--watch", "0.5", "--json")
    shown = [json.loads(line) for line in found.stdout.splitlines()]
    lags = [status["tables"]["orders"]["lag_events"] for status in shown]
    assert found.exit_code == 0
    assert lags[:3] == [0, 3, 6]


@pytest.mark.long
def test_a_terminal_shows_the_state_again_in_one_place(
    rhei: Rhei, world: World, tmp_path: Path
) -> None:
    rhei("sync")
    config = str(tmp_path / "pipeline.yaml")
    watching = ("status", "--watch", "0.1", "--config", config)
    with Terminal(*watching, cwd=tmp_path, kind="xterm") as screen:
        screen.shows("orders")
        world.run("update orders set status = 'sent'")
        drawn = screen.shows(" 3 │")
        assert "\x1b[1A" in drawn  # the cursor goes back up
        assert "\x1b[2J" not in drawn  # and what was on the screen before stays there
        screen.press(INTERRUPT)
        assert screen.exit_code() == 0


def test_no_word_is_cut_on_a_narrow_screen(
    rhei: Rhei, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    world.run("create table odd(id integer primary key, v integer)", "create table no_key(v)")
    world.run("insert into odd values (1, 'no number')")
    config = tmp_path / "pipeline.yaml"
    config.write_text(
        f"{config.read_text()}  - {{name: odd}}\n  - {{name: no_key}}\n".replace(
            "tables: [{name: orders, mode: temporal}]",
            "tables:\n  - {name: orders, mode: temporal}",
        )
    )
    rhei("sync")
    shown = rhei("status").stdout
    words = {"destructive", "left", "out", "not", "known", "none", "yet", "letters", "watermark"}
    assert words <= set(shown.split()), shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.long
def test_long_names_are_whole_on_a_narrow_screen(
    rhei: Rhei, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    name = "customers_of_the_northern_hemisphere_and_all_others"
    world.run(f"create table {name}(id integer primary key, v integer)")
    world.run(f"insert into {name} values (1, 'no number')")
    config = tmp_path / "pipeline.yaml"
    config.write_text(f"{config.read_text()}\n".replace("orders", name, 1))
    for command in (["sync"], ["status"], ["verify"], ["copy"]):
        shown = rhei(*command).stdout
        letters = "".join(re.findall(r"^│ (\S*) *│", shown, flags=re.MULTILINE))
        assert letters == name, shown
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= 80


def test_the_status_of_an_ordinary_table_fits_a_narrow_screen(
    rhei: Rhei, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal.out, "width", 80)
    for letters, value in enumerate(("1", "'no number'")):
        world.run(f"update orders set amount = {value} where id = 1")
        assert "…" not in rhei("sync").stdout
        shown = rhei("status").stdout
        assert "…" not in shown
        assert "lag" in shown
        assert ("letters" in shown) == bool(letters)
