"""Sections of a declaration that say how much is kept."""

from pydantic import Field

from rhei_pipeline.model.retention import HistoryBounds
from rhei_pipeline.settings.section import Section


class HistorySettings(Section):
    """How much of a temporal table's history is kept."""

    keep_days: int | None = Field(
        None,
        ge=1,
        description="Maintenance removes versions that ended so many days ago; left out: none for"
        " its age.",
    )
    keep_versions: int | None = Field(
        None,
        ge=1,
        description="Maintenance leaves so many versions of a row, the present one among them;"
        " left out: any number. The row that changes most then decides since when the table's"
        " history is kept.",
    )

    @property
    def bounds(self) -> HistoryBounds:
        """The same as a value."""
        return HistoryBounds(self.keep_days, self.keep_versions)
