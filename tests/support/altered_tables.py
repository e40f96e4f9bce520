"""A source whose table is altered, how it is captured, and what its mirror is in."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from rhei_pipeline.protocols import Step
from tests.support.fix_postgres import PostgresWorld
from tests.support.fix_world import World

#: Where a sync in which a table is altered may end.
STEPS = (
    *(Step.SNAPSHOT, Step.CAPTURED, Step.APPLIED, Step.RECORDED, Step.COMMITTED),
    Step.ACKNOWLEDGED,
)
STORAGES = (None, "memory", "ipc", "parquet", "delta")


@dataclass(frozen=True)
class Way:
    """A way to capture, and what its mirror is in."""

    capture: str
    storage: str | None

    def __str__(self) -> str:
        return f"{self.capture}-{self.storage or 'duckdb'}"


def put_back_after(world: World | PostgresWorld, storage: str | None, statement: str) -> None:
    """Have a statement followed, and put the mirror back that was there before."""
    world.crash()
    place, backup = world.directory / (storage or "mirror.duckdb"), world.directory / "backup"
    _copy(place, backup)
    world.run(statement)
    world.htap.sync_now()
    world.crash()
    shutil.rmtree(place) if storage else place.unlink()
    _copy(backup, place)


def _copy(place: Path, other: Path) -> None:
    if place.is_dir():
        shutil.copytree(place, other)
    else:
        shutil.copy(place, other)
