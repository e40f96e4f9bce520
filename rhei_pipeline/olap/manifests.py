"""The manifests of a mirror: the newest is what it holds, a few older ones are kept, the rest goes.

Files that no kept manifest names are orphans: of a writer that was killed, or of a past that
nobody reads any more. They are deleted, and nothing else ever is.
"""

from collections.abc import Callable, Iterable

from rhei_pipeline.olap.files import Files
from rhei_pipeline.olap.manifest import MEMORY, Manifest
from rhei_pipeline.olap.segment_store import DATA, SegmentStore

_FOLDER = "manifests"
_SUFFIX = ".json"


class Manifests:
    """All manifests among some files.

    Args:
        retained: How many to keep, the newest among them; at least one.
    """

    def __init__(self, files: Files, retained: int) -> None:
        self._files = files
        self._retained = retained
        self._known: dict[int, Manifest] = {}

    def newest(self) -> Manifest | None:
        """Return what was committed last; None in a mirror that begins."""
        versions = self.versions()
        return self.read(versions[-1]) if versions else None

    def versions(self) -> list[int]:
        """Return the versions that can be read, in their order."""
        names = self._files.names(_FOLDER)
        return sorted(
            int(name.rpartition("/")[2].removesuffix(_SUFFIX))
            for name in names
            if name.endswith(_SUFFIX)
        )

    def read(self, version: int) -> Manifest:
        """Read one manifest.

        Raises:
            MirrorError: It is not kept any more, or damaged.
        """
        found = self._known.get(version)
        if found is None:
            content = self._files.get(_name(version)).to_pybytes()
            found = Manifest.decode(content, self._files.root or MEMORY)
            self._known[version] = found
        return found

    def commit(self, manifest: Manifest) -> None:
        """Make a state the newest one: from here on it counts, before here it does not exist.

        Raises:
            MirrorBusyError: Somebody else has committed since this state was begun.
        """
        self._files.settle()
        self._files.create(_name(manifest.version), manifest.encode())
        self._known[manifest.version] = manifest

    def collect(self, store: SegmentStore, in_use: Callable[[], set[int]]) -> int:
        """Drop manifests beyond those retained or in use, and the files only they name.

        Args:
            store: Knows the files that a manifest names.
            in_use: Tells which versions somebody holds now.

        Returns:
            How many files were deleted.
        """
        versions = self.versions()
        kept = {*versions[-self._retained :], *in_use()}
        dropped = [version for version in versions if version not in kept]
        if not dropped:
            return 0
        orphans = self._named(store, dropped) - self._named(store, set(versions) - set(dropped))
        self._files.delete([_name(version) for version in dropped])
        # A reader that pinned one of them, and found it there, did so before it was deleted.
        orphans -= self._named(store, in_use().intersection(dropped))
        self._files.delete(orphans)
        for version in dropped:
            self._known.pop(version, None)
        return len(orphans)

    def collect_orphans(self, store: SegmentStore) -> int:
        """Delete files that no manifest names; only while nobody else may write."""
        versions = self.versions()
        if not self._files.pinned().issubset(versions):
            return 0  # somebody reads a state whose files nobody can name any more
        named = self._named(store, versions)
        orphans = self._files.abandoned(DATA) - named
        self._files.delete(orphans)
        return len(orphans)

    def _named(self, store: SegmentStore, versions: Iterable[int]) -> set[str]:
        found: set[str] = set()
        for version in versions:
            found.update(store.files_of(self.read(version)))
        return found


def _name(version: int) -> str:
    return f"{_FOLDER}/{version:012d}{_SUFFIX}"
