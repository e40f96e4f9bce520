"""What taking snapshots has brought."""

from collections.abc import Mapping
from datetime import date
from types import MappingProxyType


class SnapshotRows(dict[date, int]):
    """How many rows the snapshot of each day has.

    Attributes:
        engines: What found the rows of each day: `mirror` or `cluster`.
        reason: Why the mirror found rows although a cluster is declared; None if it found none.
    """

    def __init__(
        self,
        rows: Mapping[date, int],
        engines: Mapping[date, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(rows)
        self.engines = MappingProxyType(dict(engines or dict.fromkeys(rows, "mirror")))
        self.reason = reason
