"""The operational database."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field, SecretStr

from rhei_pipeline import Settings


class OltpResource(dg.ConfigurableResource[Any]):
    """Where the facts are written. Any field may be a `dg.EnvVar`."""

    kind: str = Field("sqlite", description="What kind of database it is.")
    path: str = Field("", description="The SQLite file.")
    dsn: str = Field("", description="PostgreSQL's connection string; empty: as declared.")

    @classmethod
    def of(cls, settings: Settings) -> "OltpResource":
        """Take the fields from the declaration."""
        source = settings.source
        # A connection string holds a secret: it stays where it was declared.
        return cls(kind=source.kind, path=str(getattr(source, "path", "")), dsn="")

    def section(self) -> dict[str, Any]:
        """Return the fields that stand above the declaration's `source`."""
        if self.kind == "sqlite":
            return {"kind": self.kind, "path": Path(self.path)}
        return {"kind": self.kind} | ({"dsn": SecretStr(self.dsn)} if self.dsn else {})
