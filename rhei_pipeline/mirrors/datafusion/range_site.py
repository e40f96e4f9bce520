"""A mirror of files, as it is seen by a process that copies ranges of a table into it."""

from pathlib import Path
from typing import TYPE_CHECKING

from rhei_pipeline.mirrors.datafusion.copy_ranges import CopyRanges
from rhei_pipeline.mirrors.datafusion.manifest_store import ManifestStore
from rhei_pipeline.mirrors.datafusion.storages import FORMATS, open_files
from rhei_pipeline.model.progress import Ledger, TableState

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.manifest import Manifest
    from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess


class RangeSite(CopyRanges):
    """Where ranges are found and recorded, while another process holds the mirror.

    Args:
        storage, path, access: As of the mirror.
    """

    def __init__(self, storage: str, path: Path | str, access: "StoreAccess | None") -> None:
        self._site = open_files(storage, path, access)
        self._manifest: Manifest | None = None
        super().__init__(self._site, FORMATS[storage](), self._newest)

    @property
    def owner(self) -> str | None:
        """Whose mirror it is, as `ownership.Owner` writes it; None where that is not recorded."""
        self._newest()
        return None if self._manifest is None else self._manifest.owner

    def spelled(self, name: str) -> str | None:
        """Return a table's name as the mirror has recorded it; None if it has not."""
        ledger = self._newest() or Ledger()
        known = sorted({*ledger.copies, *ledger.watermarks})
        asked = {name.lower(), name.lower().removeprefix("public.").removeprefix("main.")}
        return name if name in known else next((n for n in known if n.lower() in asked), None)

    def state(self, name: str) -> TableState:
        """Return a table's state, as was recorded last."""
        return (self._newest() or Ledger()).state(name)

    def close(self) -> None:
        """Let the files go; safe to repeat."""
        self._site.close()

    def _newest(self) -> Ledger | None:
        """Read the newest manifest, where it is another one by now."""
        store = ManifestStore(self._site, 1)
        last = max(store.versions(), default=0)
        if last and (self._manifest is None or self._manifest.version != last):
            self._manifest = store.newest()
        return None if self._manifest is None else self._manifest.ledger
