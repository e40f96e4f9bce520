"""What is taken for granted as a DuckDB mirror is opened: of a new file, of one as we make it."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb import connecting
from rhei_pipeline.mirrors.duckdb.connecting import MEMORY
from rhei_pipeline.mirrors.duckdb.housekeeping import _ALL, _TABLES
from rhei_pipeline.mirrors.duckdb.mirror import DuckDBMirror

#: The headers' places that differ between any two files: checksums, and the file's own id.
_OWN = [*range(8), *range(124, 140)]
OWN_PLACES = {header + place for header in (0, 4096, 8192) for place in _OWN}


def test_empty_files_of_the_tests_are_as_users_have_them(
    tmp_path: Path, make_as_users: Callable[[Path], None]
) -> None:
    files = {name: tmp_path / name for name in ("users", "others", "tests")}
    make_as_users(files["users"])
    make_as_users(files["others"])
    connecting._create_empty(files["tests"])
    users, others, ours = (file.read_bytes() for file in files.values())
    assert differing(users, others) <= OWN_PLACES
    assert differing(users, ours) <= OWN_PLACES


def differing(one: bytes, other: bytes) -> set[int]:
    assert len(one) == len(other)
    return {place for place, byte in enumerate(one) if byte != other[place]}


def test_a_mirror_made_as_users_make_it_opens(
    tmp_path: Path, make_as_users: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "_create_empty", make_as_users)
    with closing(DuckDBMirror(tmp_path / "m.duckdb")) as mirror:
        created = mirror.mirror_id
    with closing(DuckDBMirror(tmp_path / "m.duckdb")) as mirror:
        assert mirror.mirror_id == created


@pytest.mark.parametrize("name", ["m.duckdb", MEMORY])
def test_a_new_mirror_has_no_table_and_then_those_that_are_made(tmp_path: Path, name: str) -> None:
    with closing(DuckDBMirror(name if name == MEMORY else tmp_path / name)) as mirror:
        assert mirror.tables() == {}
        mirror.claim("somebody")
        assert mirror.tables() == {}
        with mirror.transaction() as transaction:
            transaction._connection.execute("create table t(k bigint)")
        assert list(mirror.tables()) == ['"t"']
        mirror.claim("another", new_id="1")
        assert list(mirror.tables()) == ['"t"']


def test_tables_that_a_file_had_before_it_became_a_mirror_are_seen(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "m.duckdb")) as own:
        own.execute("create table t(k bigint)")
    with closing(DuckDBMirror(tmp_path / "m.duckdb")) as mirror:
        assert list(mirror.tables()) == ['"t"']


@pytest.mark.parametrize(
    "missing",
    [
        f"drop table {name}"
        for name in (
            "_rhei_watermark",
            "_rhei_copies",
            "_rhei_dead_letter",
            "_rhei_history",
            "_rhei_table",
        )
    ]
    + ["alter table _rhei_mirror drop column owner"],
)
def test_a_part_of_the_housekeeping_that_is_missing_is_made(tmp_path: Path, missing: str) -> None:
    with closing(DuckDBMirror(tmp_path / "m.duckdb")) as mirror:
        created = mirror.mirror_id
    with duckdb.connect(str(tmp_path / "m.duckdb")) as own:
        own.execute(missing)
    with closing(DuckDBMirror(tmp_path / "m.duckdb")) as mirror:
        assert mirror.mirror_id == created
        mirror._connection.execute(_ALL)


def test_every_table_of_ours_is_asked_for() -> None:
    made = {
        statement.split("exists ")[1].split("(")[0]
        for statement in _TABLES
        if statement.startswith("create")
    }
    assert all(name in _ALL for name in made)
