"""The mirror, and with it the whole pipeline."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from config.settings import load
from resources.cdc import CdcResource
from rhei_pipeline import HTAP, Settings


class OlapResource(dg.ConfigurableResource[Any]):
    """Where the mirror lives, and whose changes it follows.

    A mirror has one writing process. So it is opened inside a step, which holds the pool's slot by
    then, and never when resources are set up.
    """

    cdc: CdcResource
    kind: str = Field("duckdb", description="Which engine holds the mirror.")
    storage: str | None = Field(None, description="How a DataFusion mirror is stored.")
    path: str = Field(description="The DuckDB file, or the DataFusion mirror's directory.")
    lock_timeout_seconds: float = Field(30.0, description="How long to wait for another process.")

    @classmethod
    def of(cls, settings: Settings, cdc: CdcResource) -> "OlapResource":
        """Take the fields from the declaration."""
        mirror = settings.mirror
        return cls(
            cdc=cdc,
            kind=mirror.kind,
            storage=mirror.storage,
            path=str(mirror.path),
            lock_timeout_seconds=mirror.lock_timeout_seconds,
        )

    def settings(self) -> Settings:
        """Return the declaration with the resources' fields in it."""
        mirror = {
            "kind": self.kind,
            "storage": self.storage,
            "path": Path(self.path),
            "lock_timeout_seconds": self.lock_timeout_seconds,
        }
        return load().with_fields({**self.cdc.sections(), "mirror": mirror})

    @contextmanager
    def open(self) -> Iterator[HTAP]:
        """Open source, capture and mirror for the length of a block."""
        with HTAP(self.settings()) as htap:
            yield htap
