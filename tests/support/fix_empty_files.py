"""DuckDB files that are made without starting DuckDB for each.

To start it takes far longer than to make an empty file, and most tests make one. Programs under
test that run in processes of their own make theirs as users' do.
"""

import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import duckdb
import pytest

from rhei_pipeline.mirrors.duckdb import connecting
from rhei_pipeline.sql.text import literal, quote


@pytest.fixture(scope="session", autouse=True)
def make_as_users() -> Iterator[Callable[[Path], None]]:
    """Let one DuckDB of the session make the empty files; return what makes them otherwise."""
    started = cache(lambda: duckdb.connect(config={"threads": 1}))

    def create(file: Path) -> None:
        name = quote(uuid.uuid4().hex)
        with started().cursor() as cursor:
            cursor.execute(f"attach {literal(str(file))} as {name}")
            cursor.execute(f"detach {name}")

    with pytest.MonkeyPatch.context() as patch:
        users = connecting._create_empty
        patch.setattr(connecting, "_create_empty", create)
        yield users
