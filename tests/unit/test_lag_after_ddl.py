"""What a status says of tables whose schema or capture changed since the last sync."""

from dataclasses import replace

import pyarrow as pa

from rhei_pipeline.model.schema import TableSchema
from tests.unit.stub_world import StubWorld, schema


class Source:
    """A world's source, whose catalogue is counted in and whose capture can be taken away."""

    def __init__(self, world: StubWorld) -> None:
        self._source, self._describe = world.source, world.source.describe
        self.described: list[str] = []
        world.source.describe = self._counted  # type: ignore[method-assign]

    def _counted(self, name: str) -> TableSchema:
        self.described.append(name)
        return self._describe(name)

    def take_away(self, table: str) -> None:
        """Drop a table's capture, as somebody may who drops triggers."""
        source = self._source
        source._states[table] = replace(source._states[table], installed=None)
        source._version += 1


def lags(world: StubWorld) -> dict[str, int | None]:
    return {name: of.lag_events for name, of in world.pipeline.status().tables.items()}


def synced() -> tuple[StubWorld, Source]:
    world = StubWorld("t", "u")
    world.pipeline.sync()
    for table in world.names:
        world.fill(1, table=table)
    return world, Source(world)


def test_of_a_table_that_is_captured_no_more_nobody_knows_the_lag_and_of_others_one_does() -> None:
    world, source = synced()
    source.take_away("t")
    assert lags(world) == {"t": None, "u": 1}


def test_the_lag_of_a_table_with_another_column_is_counted_before_a_sync_follows_it() -> None:
    """Its capture is not as it would be made now, and holds its changes nonetheless."""
    world, _ = synced()
    world.source.create(schema("t", v=pa.string(), w=pa.string()))
    assert lags(world) == {"t": 1, "u": 1}


def test_tables_are_looked_at_once_for_each_schema_that_no_sync_has_met() -> None:
    world, source = synced()
    lags(world)
    assert source.described == [], "a sync has met this schema"
    source.take_away("t")
    for _ in range(2):
        assert lags(world)["t"] is None
        assert sorted(source.described) == ["t", "u"]
    source.take_away("u")
    assert lags(world) == {"t": None, "u": None}
    assert sorted(source.described) == ["t", "t", "u", "u"]
