"""What a background sync does, where this process holds the mirror and where another one does."""

from rhei_pipeline.holder.access import Access
from rhei_pipeline.model.reports import SyncReport
from rhei_pipeline.sync.background import BackgroundSync  # noqa: TC001  (beside the others)


class KeepingUp:
    """What the background sync of this process does: it syncs, or follows whoever syncs."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self.background: BackgroundSync | None = None

    def sync(self) -> SyncReport:
        """Return the report of a sync, made here or by whoever syncs."""
        *earlier, last = self._access.keep_up() or [SyncReport()]
        for report in earlier:
            if self.background is not None:
                self.background.take_in(report)
        return last
