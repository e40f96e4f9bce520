"""The manifests of a mirror: the newest is the current state, a few older ones are kept.

Files that no kept manifest names are orphans: of a writer that was killed, or of a state that
nobody reads any more. Only orphans are deleted.
"""

import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress

from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.mirrors.datafusion.files import Files, deleted_meanwhile
from rhei_pipeline.mirrors.datafusion.manifest import MEMORY, Manifest, ManifestTexts
from rhei_pipeline.mirrors.datafusion.segment_store import DATA, OWN_NAME, SegmentStore

_FOLDER = "manifests"
_SUFFIX = ".json"
#: How often the newest one is looked for, where others commit meanwhile.
_TRIES = 10
_NAME = re.compile(rf"{_FOLDER}/(\d{{12}})\.json")


class ManifestStore:
    """All manifests of one mirror.

    Args:
        retained: How many to keep, the newest among them; at least one.
    """

    def __init__(self, files: Files, retained: int) -> None:
        self._files = files
        self._retained = retained
        self._known: dict[int, Manifest] = {}
        self._listed: list[int] | None = None
        self._files_of: dict[int, frozenset[str]] = {}
        self._texts = ManifestTexts()

    def newest(self) -> Manifest | None:
        """Return what was committed last; None in a new mirror.

        Raises:
            MirrorDamagedError: It is damaged or missing.
        """
        found, damage = self.newest_whole()
        if damage is not None:
            raise damage
        return found

    def newest_whole(self) -> tuple[Manifest | None, MirrorDamagedError | None]:
        """Return the newest readable state, and the damage if it is not the last one.

        Raises:
            MirrorBusyError: Others commit faster than it can be read.
        """
        for _ in range(_TRIES):
            versions, found, damage = self._look()
            if damage is None:
                return found, None
            # What was superseded since it was listed is deleted, and no damage.
            if versions == self.versions():
                break
        else:
            raise deleted_meanwhile(self._files.root)
        return self._look()[1:]  # or it was missing for a moment

    def _look(self) -> tuple[list[int], Manifest | None, MirrorDamagedError | None]:
        """Return all versions, the newest readable state, and the damage of a newer one."""
        last, damage = self._files.remembered(), None
        versions = self.versions()
        if last > (versions[-1] if versions else 0):
            damage = self._lost(_name(last), "is missing")
        for version in reversed(versions):
            try:
                return versions, self.read(version), damage
            except MirrorDamagedError:
                damage = damage or self._lost(_name(version), "is damaged")
        return versions, None, damage

    @property
    def is_begun(self) -> bool:
        """Whether any state was ever committed here, as far as it shows."""
        return bool(self.versions() or self._files.remembered())

    def versions(self) -> list[int]:
        """Return the versions that are kept, in order."""
        found = (_NAME.fullmatch(name) for name in self._files.names(_FOLDER))
        return sorted(int(match[1]) for match in found if match)

    def is_newest(self, version: int) -> bool:
        """Return whether no version is newer; `collect` after the next commit lists no more."""
        self._listed = self.versions()
        return self._listed[-1:] == [version]

    def read(self, version: int) -> Manifest:
        """Read one manifest.

        Raises:
            MirrorDamagedError: It is no longer kept, or damaged.
            MirrorError: A newer version of this package wrote it.
        """
        found = self._known.get(version)
        if found is None:
            name = _name(version)
            content = self._files.get(name).to_pybytes()
            found = Manifest.decode(content, name, self._files.root or MEMORY)
            self._known[version] = found
        return found

    def set_aside_after(self, version: int) -> int:
        """Set aside all manifests newer than a version.

        Returns:
            The lowest number that later manifests may use.
        """
        newer = [found for found in self.versions() if found > version]
        self._files.set_aside([_name(found) for found in newer])
        return max([version, self._files.remembered(), *newer])

    def commit(self, manifest: Manifest) -> None:
        """Commit a state: make it the newest one, atomically.

        Raises:
            MirrorBusyError: Another process has committed since this state was begun.
        """
        self._files.flush()
        self._files.create(_name(manifest.version), manifest.encode(self._texts))
        self._files.remember(manifest.version)
        self._known[manifest.version] = manifest
        if self._listed is not None:
            self._listed.append(manifest.version)

    def collect(
        self,
        store: SegmentStore,
        in_use: Callable[[], set[int]],
        retained: int | None = None,
        superseded: Collection[str] = (),
    ) -> int:
        """Delete manifests beyond those retained or in use, and the files only they name.

        Args:
            store: Knows the files that a manifest names.
            in_use: Returns the versions that readers hold now.
            retained: How many to keep this time.
            superseded: Files that no manifest has ever named, to be deleted too.

        Returns:
            How many files were deleted.
        """
        # What others have committed or deleted since it was listed changes nothing: later states
        # name no file of those that are dropped here but which this one names too.
        versions, self._listed = self._listed or self.versions(), None
        kept = {*versions[-(retained or self._retained) :], *in_use()}
        dropped = [version for version in versions if version not in kept]
        if not dropped and not superseded:
            return 0
        orphans = self._named(store, dropped) - self._named(store, set(versions) - set(dropped))
        self._files.delete([_name(version) for version in dropped])
        # A reader that pinned one of them, and found it there, did so before it was deleted.
        orphans -= self._named(store, in_use().intersection(dropped))
        orphans |= set(superseded)
        self._files.delete(orphans)
        store.forget(orphans)
        for version in dropped:
            self._known.pop(version, None)
            self._files_of.pop(version, None)
        return len(orphans)

    def collect_orphans(self, store: SegmentStore, spared: Collection[str] = ()) -> int:
        """Delete files that no manifest names; only while no other process can write.

        Files whose names begin with one of those `spared` belong to a copy under way.
        """
        versions = self.versions()
        if not self._files.pinned().issubset(versions):
            return 0  # somebody reads a state whose files nobody can name any more
        named = self._named(store, versions)
        begun = tuple(f"{DATA}/{prefix}" for prefix in spared)
        found = filter(OWN_NAME.fullmatch, self._files.abandoned(DATA) - named)
        orphans = {name for name in found if not name.startswith(begun)}
        self._files.delete(orphans)
        return len(orphans)

    def _named(self, store: SegmentStore, versions: Iterable[int]) -> set[str]:
        found: set[str] = set()
        for version in versions:
            # What only a damaged manifest names, nobody can find any more.
            with suppress(MirrorDamagedError):
                if version not in self._files_of:
                    self._files_of[version] = frozenset(store.files_of(self.read(version)))
                found |= self._files_of[version]
        return found

    def _lost(self, name: str, fault: str) -> MirrorDamagedError:
        return MirrorDamagedError(
            f"mirror {self._files.root!r}: its newest manifest {name!r} {fault}",
            file=name,
            hint="restore it, or run 'rhei repair' with any table: the mirror then returns to its "
            "state before that, and the next sync brings it up to date",
        )


def _name(version: int) -> str:
    return f"{_FOLDER}/{version:012d}{_SUFFIX}"
