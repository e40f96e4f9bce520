"""What a mirror remembers of its tables, in a file beside it, from one process to the next."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from rhei_pipeline.errors import SchemaError
from rhei_pipeline.model.coverage import Coverage
from rhei_pipeline.model.schema import Column, Mode, Table, TableSchema
from rhei_pipeline.model.schema_log import Followed
from rhei_pipeline.sync.schema_registry import Registry, StoredRegistrations, mirror_id_of

COLUMNS = (Column("id", pa.int64(), nullable=False), Column("v", pa.string()))
EARLY, LATE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)
Opened = Callable[..., Registry]


def table(name: str, *more: str, namespace: str | None = None, storage: str = "") -> Table:
    columns = (*COLUMNS, *(Column(each, pa.int64()) for each in more))
    schema = TableSchema(name, columns, ("id",), namespace, storage=storage)
    return Table(schema, Mode.TEMPORAL)


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """Open the registry as another process does."""

    def make(mirror: str = "m", *, is_new: bool = True) -> Registry:
        return Registry(tmp_path / "made" / "registry.json", mirror, lambda: is_new)

    return make


def test_all_of_it_is_there_for_the_next_process(opened: Opened) -> None:
    first, t = opened(), table("t", storage="12")
    first.save(t, table("u"))
    first.note_not_followed({"t": EARLY, "unknown": EARLY})
    assert opened().not_followed == {"t": EARLY} == first.not_followed
    first.note_left(["t", "unknown"], EARLY)
    first.note_left(["t", "u"], LATE)
    assert opened().left_at == {"t": EARLY, "u": LATE} == first.left_at
    first.note_owing(["t"], owe=True)
    assert opened().owing == {"t"}
    coverage = Coverage(("id",), resume="3")
    first.note_coverage("t", coverage)
    assert opened().coverage(t) == coverage
    first.note_forgotten(t, 2, LATE)
    (forgotten,) = opened().schema_log
    assert "forgot 2 keys" in forgotten.what
    found = opened().table("t")
    assert found == t
    assert found.schema.storage == "12"
    assert opened().version("t") == 1
    first.save(table("u", storage="13"))  # no other schema, and kept with it
    assert opened().tables["u"].schema.storage == "13"
    first.save(table("t", "w"), followed=lambda _: Followed(LATE))
    assert opened().version("t") == 2
    assert len(opened().schema_log) == 2


def test_a_table_that_is_followed_again_is_named_no_more(opened: Opened) -> None:
    registry, t = opened(), table("t")
    registry.save(t)
    registry.note_not_followed({"t": EARLY})
    registry.note_left(["t"], EARLY)
    registry.save(t)
    for each in (registry, opened()):
        assert (each.not_followed, each.left_at, each.version("t")) == ({}, {}, 1)


def test_nothing_of_a_forgotten_table_is_there_for_one_of_its_name(opened: Opened) -> None:
    registry, t = opened(), table("t")
    registry.save(t)
    registry.note_not_followed({"t": EARLY})
    registry.note_left(["t"], EARLY)
    registry.note_owing(["t"], owe=True)
    registry.note_coverage("t", Coverage(("id",), resume="3"))
    registry.forget("t")
    assert opened().table("t") is None
    assert (registry.not_followed, registry.left_at, registry.owing) == ({}, {}, frozenset())
    registry.save(t)
    assert opened().coverage(t) == Coverage(("id",)) == registry.coverage(t)
    assert (opened().not_followed, opened().left_at, opened().owing) == ({}, {}, frozenset())


def test_what_was_compared_by_another_key_does_not_count(opened: Opened) -> None:
    registry, t = opened(), table("t")
    registry.save(t)
    registry.note_coverage("t", Coverage(("id",), resume="3"))
    other = replace(t, schema=replace(t.schema, primary_key=("v",)))
    assert registry.coverage(other) == Coverage(("v",))


def test_a_table_is_known_by_its_full_name_and_in_any_case(opened: Opened) -> None:
    registry = opened()
    t, orders = table("t"), table("orders", namespace="public")
    registry.save(t, orders)
    assert registry.table("T") is t
    assert registry.table("public.orders") is orders
    assert registry.table("ORDERS") is None  # where there are schemas, the case counts
    registry.save(table("T", "w"))
    assert opened().tables.keys() == {"T", "orders"}
    assert opened().version("T") == 2


def test_what_is_registered_at_run_time_outlives_the_mirror(opened: Opened, tmp_path: Path) -> None:
    registry, said = opened(), {"mode": "temporal"}
    registry.save(table("t"))
    file = tmp_path / "made" / "registry.json"
    assert '"format": 1' in file.read_text()
    stored = StoredRegistrations(file)
    assert stored.registered == {}
    registry.register("t", said)
    assert '"format": 2' in file.read_text()
    assert stored.registered == {"t": said} == opened("another").registered
    before = registry.registered
    registry.register("t", {**said})
    assert registry.registered is before
    registry.register("t", None)
    assert stored.registered == {} == opened().registered
    file.write_text("{")
    assert stored.registered == {}


def test_another_mirror_takes_its_place_only_where_that_is_new(opened: Opened) -> None:
    opened().save(table("t"))
    with pytest.raises(SchemaError, match="two declarations"):
        opened("another", is_new=False)
    assert opened("another").table("t") is None
    opened().forget("t")
    assert opened("another", is_new=False).tables == {}  # of no table, it hides nothing


def test_what_could_not_be_written_is_written_by_the_next_save(
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file, registry, t = tmp_path / "made" / "registry.json", opened(), table("t")

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(os, "fsync", fail)
        for name in ("t", "u"):
            registry.save(table(name))
        assert caplog.text.count("cannot be written") == 1
    assert [*file.parent.iterdir()] == []
    registry.save(*registry.tables.values())
    assert opened().tables.keys() == {"t", "u"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        registry.save(table("w"))
    assert opened().tables.keys() == {"t", "u"}
    registry.save(*registry.tables.values())
    assert opened().tables.keys() == {"t", "u", "w"}
    file.unlink()
    registry.save(*registry.tables.values())
    assert mirror_id_of(file) == "m"
    written = file.stat().st_ino  # a file that is written takes its place
    registry.save(*registry.tables.values())
    assert file.stat().st_ino == written
    registry.save(t)
    assert file.stat().st_ino == written


def test_who_takes_a_registry_over_is_told_once_that_another_may_share_it(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    opened("first").save(table("t"))
    assert not caplog.records
    second = opened("second")
    assert "put it back before the next sync" in caplog.text
    second.save(table("t"))
    second.save(table("u"))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "give each a registry.path of its own" in caplog.text
    with pytest.raises(SchemaError, match="two declarations share it"):
        opened("first", is_new=False)
    opened("second").save(table("v"))
    assert len(caplog.records) == 1
