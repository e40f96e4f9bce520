"""A server that applies another one's log: what needs to create something there is refused."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg
import pytest

from examples.postgres_server import Server
from rhei_pipeline import HTAP
from rhei_pipeline.errors import RheiError, SourceBusyError
from rhei_pipeline.wiring.source import validate
from tests.support.fix_postgres import PostgresWorld

WAY_OUT = r"'source\.dsn', or use 'capture: \{method: polling\}'"
METHODS = ("logical", "stream", "trigger", "polling")


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[dict[str, PostgresWorld]]:
    """A server's databases, one for each method, with a table that is mirrored."""
    with TemporaryDirectory(prefix="rhei-postgres-") as directory:
        server, found = Server(Path(directory)), dict[str, PostgresWorld]()
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                for method in METHODS:
                    connection.execute(f"create database {method}_one".encode())
            for method in METHODS:
                own = tmp_path / method
                own.mkdir()
                streaming = method == "stream"
                capture = {"method": "logical" if streaming else method, "streaming": streaming}
                world = found[method] = PostgresWorld(
                    server.dsn(f"{method}_one"), own, capture=capture, mode="temporal"
                )
                world.run(
                    "create table t (id int primary key, updated_at timestamptz default now())",
                    "create index on t (updated_at)",
                    "insert into t values (1)",
                )
                world.htap.sync_now()
                world.run("insert into t values (2)")
            (Path(directory) / "standby.signal").write_text("")
            server.kill()
            yield found
        finally:
            for world in found.values():
                world.close()
            server.stop()


@pytest.mark.long
def test_a_standby_is_named_with_the_way_out_and_followed_once_it_is_promoted(
    worlds: dict[str, PostgresWorld],
) -> None:
    for method, world in worlds.items():
        if method == "polling":  # it only reads
            world.htap.sync_now()
            assert world.htap.query("select id from t", hint="olap").num_rows == 2
            continue
        with pytest.raises(SourceBusyError, match=f"is a standby.*{WAY_OUT}"):
            world.htap.sync_now()  # the session of before has ended with the server
        world.crash()
        with pytest.raises(SourceBusyError, match=f"is a standby.*{WAY_OUT}"):
            HTAP(world.settings)
        try:
            told = [f"{found.what} ({found.remedy})" for found in validate(world.settings)]
        except RheiError as error:
            told = [str(error)]
        assert any("is a standby" in each and "source.dsn" in each for each in told), told
        with HTAP(world.settings, hold=False) as htap:
            assert htap.query("select id from t", hint="olap").num_rows == 1
    with psycopg.connect(worlds["logical"].dsn, autocommit=True) as connection:
        connection.execute("select pg_promote()")
    for world in worlds.values():
        world.app.close()
        world.app = psycopg.connect(world.dsn, autocommit=True, prepare_threshold=None)
        world.run("insert into t values (3)")
        assert not world.htap.sync_now().errors
        world.assert_equal("t")
        assert world.htap.verify().equal
