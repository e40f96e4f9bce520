"""What a source tells of a reader of its changes, while the mirror is not opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class SourceStanding:
    """How far a source is ahead of a reader of its changes.

    Attributes:
        pending: Events that the reader has not acknowledged; None: it never came.
        is_exact: Whether these are all; a server's log is only looked at for the first.
        heads: The newest position of each log, by the table's name, or `log` where all share one.
        waiting: When the oldest pending change was made, by the same names; only where one is
            known to wait.
        held_bytes: What is kept for the reader, by `log`, `slot` or `buffer`, where it is known.
    """

    pending: int | None
    is_exact: bool = True
    heads: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    waiting: Mapping[str, datetime] = field(default_factory=lambda: MappingProxyType({}))
    held_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def oldest_at(self) -> datetime | None:
        """When the oldest pending change was made; None where none is known to wait."""
        return min(self.waiting.values(), default=None)
