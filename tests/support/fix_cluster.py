"""A server that speaks Spark Connect, and declarations that name it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline import Settings
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World
from tests.support.spark_server import spark_server

#: Names an environment with Spark, which is then asked instead: 'make test-spark' makes one.
_SPARK = "RHEI_TESTS_SPARK"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Sail server of this process, or Spark; return its address."""
    environment = os.environ.get(_SPARK)
    if environment:
        with spark_server(Path(environment), tmp_path_factory.mktemp("spark") / "home") as address:
            yield address
        return
    spark = pytest.importorskip("pysail.spark", reason="pysail is not installed")
    server = spark.SparkConnectServer("127.0.0.1", 0)
    server.start(background=True)
    _, port = server.listening_address
    yield f"sc://127.0.0.1:{port}"
    server.stop()


def with_cluster(
    world: World | PostgresWorld,
    endpoint: str,
    tables: list[dict[str, Any]],
    kind: str = "sail",
    **more: Any,
) -> Settings:
    """Return a world's declaration with a cluster; its Delta tables are published at once."""
    values = {name: getattr(world.settings, name) for name in ("source", "capture", "registry")}
    mirror = world.settings.mirror.model_dump() | {
        "delta": {"interval_seconds": 0, "deletion_vectors": True}
    }
    compute = {"kind": kind, "endpoint": endpoint, **more}
    return Settings(**values, mirror=mirror, tables=tables, compute=compute)
