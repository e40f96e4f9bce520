"""Rights that our user loses while its triggers stand: the application goes on all the same."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

import psycopg
import pytest

from rhei_pipeline.errors import SourceError
from tests.support.fix_postgres import PostgresWorld

TAKEN = {
    "owner": (["alter table t owner to postgres"], ["alter table t owner to {app}"]),
    "member": (["revoke {app} from {user}"], ["grant {app} to {user}"]),
    "schema": (
        ["revoke usage on schema public from public"],
        ["grant usage on schema public to public"],
    ),
    "rows": (
        [
            "alter table t enable row level security",
            "alter table t force row level security",
            "create policy few on t using (id < 2)",
        ],
        ["drop policy few on t", "alter table t no force row level security"],
    ),
}


@pytest.fixture
def roles(dsn: str) -> Iterator[dict[str, str]]:
    """Make the tables' owner, and our user as a member of it; they belong to the whole server."""
    end = uuid.uuid4().hex[:8]
    made = {"app": f"app_{end}", "user": f"rhei_{end}"}
    with psycopg.connect(dsn, autocommit=True) as admin:
        for statement in (
            "create role {app}",
            "create role {user} login",
            "grant {app} to {user}",
            "grant create on schema public to {app}",
            "create schema _rhei authorization {user}",
        ):
            admin.execute(statement.format(**made).encode())
        yield made
        for statement in ("drop owned by {user}, {app} cascade", "drop role {user}, {app}"):
            admin.execute(statement.format(**made).encode())


@pytest.mark.parametrize("mode", ["destructive", "temporal"])
@pytest.mark.parametrize("taken", TAKEN)
def test_what_is_written_meanwhile_succeeds_and_is_found(
    make_postgres: Callable[..., PostgresWorld],
    dsn: str,
    roles: dict[str, str],
    taken: str,
    mode: str,
) -> None:
    ours = psycopg.conninfo.make_conninfo(dsn, user=roles["user"])
    world = make_postgres(capture={"method": "trigger"}, mode=mode, source={"dsn": ours})
    for name in ("t", "u"):
        world.run(
            f"create table {name}(id int primary key, v text)",
            f"alter table {name} owner to {roles['app']}",
            f"insert into {name} select i, 'a' from generate_series(1, 4) i",
        )
    assert not world.htap.sync_now().errors
    take, give = ([text.format(**roles) for text in texts] for texts in TAKEN[taken])
    world.run(*take)
    world.run("update t set v = 'b' where id = 3", "delete from t where id = 4")
    world.run("insert into t values (5, 'b')", "update u set v = 'b' where id = 3")
    with suppress(SourceError):  # of all tables, where none can be read
        world.htap.sync_now()
    world.run("update t set v = 'c' where id = 2")
    world.run(*give)
    assert not world.htap.sync_now().errors
    world.assert_equal("t", "u")
    assert world.htap.verify().equal
    if mode == "temporal":
        told = [(row["v"], row["_rhei_valid_to"] is None) for row in world.versions("t", "id, 3")]
        assert ("b", True) in told
        ended = {row["id"] for row in world.versions("t") if row["_rhei_valid_to"] is not None}
        assert ended == {2, 3, 4}
    world.crash()
