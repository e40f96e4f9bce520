"""The operational database."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from rhei_pipeline import Settings


class OltpResource(dg.ConfigurableResource[Any]):
    """Where the facts are written. Any field may be a `dg.EnvVar`."""

    kind: str = Field("sqlite", description="What kind of database it is.")
    path: str = Field(description="The SQLite file.")
    busy_timeout_seconds: float = Field(10.0, description="How long to wait for its write lock.")
    read_pool: int = Field(4, description="How many idle reading connections to keep.")

    @classmethod
    def of(cls, settings: Settings) -> "OltpResource":
        """Take the fields from the declaration."""
        source = settings.source
        return cls(
            kind=source.kind,
            path=str(source.path),
            busy_timeout_seconds=source.busy_timeout_seconds,
            read_pool=source.read_pool,
        )

    def section(self) -> dict[str, Any]:
        """Return the fields as the declaration's `source`."""
        return {
            "kind": self.kind,
            "path": Path(self.path),
            "busy_timeout_seconds": self.busy_timeout_seconds,
            "read_pool": self.read_pool,
        }
