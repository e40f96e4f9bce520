"""Tables that are in place, and that nothing brings up: no row was copied or changed."""

from dataclasses import dataclass, field

from rhei_pipeline.dagster.session import ReportWindow, Session
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.reports import SyncStatus, TableReport


def ready(status: SyncStatus) -> set[str]:
    """Return the tables that are copied, and followed."""
    return {
        name
        for name, found in status.tables.items()
        if found.error is None and found.state is TableState.READY
    }


@dataclass
class NeverTold:
    """The tables of a session that no event on record reports.

    Attributes:
        copies: Those whose copy is not reported.
        mirrors: Those whose mirror is not.
    """

    copies: set[str] = field(default_factory=set)
    mirrors: set[str] = field(default_factory=set)
    _ready: set[str] = field(default_factory=set)

    def bring_up(self, session: Session, status: SyncStatus) -> None:
        """Put those that are in place among what the session reports next.

        Of a copy without a row the engine tells nothing. Of one that was not in place at the last
        look it may yet tell how many rows it has.
        """
        now = ready(status)
        for name in self.copies & now & self._ready:
            session.copies.setdefault(name, TableReport(name))
        for name in self.mirrors & now:
            session.windows.setdefault(name, ReportWindow())
        self.mirrors -= now
        self._ready = now
