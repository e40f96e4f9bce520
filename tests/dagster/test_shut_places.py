"""Definitions load although this user may not use the source, the mirror or what is beside it."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from rhei_pipeline import HTAP, Settings
from rhei_pipeline.dagster import build_definitions
from rhei_pipeline.errors import SourceError
from tests.support.fix_users import ordinary_user
from tests.support.refusals import refused

PLACES = ("source", "mirror", "files", "registry", "buffer")


def declared(folder: Path, shut: str) -> Settings:
    """Return a pipeline one of whose places is below the folder `shut`."""
    at = {place: folder / ("shut" if place == shut else "open") / place for place in PLACES}
    files: dict[str, Any] = {"kind": "datafusion", "storage": "parquet", "path": at["files"]}
    buffer = {"kind": "rocksdb", "path": at["buffer"]}
    with closing(sqlite3.connect(at["source"])) as app_connection:
        app_connection.execute("create table orders(id integer primary key)")
        app_connection.execute("insert into orders values (1)")
        app_connection.commit()
    return Settings(
        source={"path": at["source"]},
        mirror=files if shut == "files" else {"path": at["mirror"]},
        registry={"path": at["registry"]},
        capture={"buffer": buffer if shut == "buffer" else None},
        mode="temporal",
        tables=[{"name": "orders"}],
    )


def keys(settings: Settings) -> set[dg.AssetKey]:
    return {spec.key for spec in build_definitions(settings).resolve_all_asset_specs()}


@pytest.mark.parametrize("place", PLACES)
def test_the_definitions_load_where_a_place_is_shut(shared_place: Path, place: str) -> None:
    shut = shared_place / "shut"
    for folder in (shared_place / "open", shut):
        folder.mkdir()
    settings = declared(shared_place, place)
    expected = keys(settings)
    assert dg.AssetKey(["mirror", "orders"]) in expected
    with ordinary_user(shared_place):
        shut.chmod(0o000)
        assert keys(settings) == expected
        if place == "source":
            way_out = "give this user access to it and to its folder, or correct source.path"
            with refused(way_out, SourceError):
                HTAP(settings).sync_now()
        shut.chmod(0o700)
        with HTAP(settings) as htap:
            assert htap.sync_now().inserted == 1
        assert keys(settings) == expected
