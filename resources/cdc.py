"""The source of changes."""

from typing import Any

import dagster as dg
from pydantic import Field

from resources.oltp import OltpResource
from rhei_pipeline import Settings, unseen_events


class CdcResource(dg.ConfigurableResource[Any]):
    """How changes of the operational database are learned of."""

    oltp: OltpResource
    method: str = Field("trigger", description="How changes are captured.")
    batch_rows: int = Field(50_000, description="About how many rows are in memory at once.")
    prune: bool = Field(
        default=True, description="Delete changes from the source once no mirror needs them."
    )

    @classmethod
    def of(cls, settings: Settings, oltp: OltpResource) -> "CdcResource":
        """Take the fields from the declaration."""
        return cls(
            oltp=oltp,
            method=settings.capture_method,
            batch_rows=settings.sync.batch_rows,
            prune=settings.sync.prune,
        )

    def sections(self) -> dict[str, dict[str, Any]]:
        """Return the fields as the declaration's `source`, `capture` and `sync`."""
        return {
            "source": self.oltp.section(),
            "capture": {"method": self.method},
            "sync": {"batch_rows": self.batch_rows, "prune": self.prune},
        }

    def unseen(self, settings: Settings) -> int | None:
        """Count the events the mirror has not acknowledged; opens the source only.

        None when nothing was ever synced.
        """
        return unseen_events(settings.with_fields(self.sections()))
