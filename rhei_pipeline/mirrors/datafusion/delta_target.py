"""One Delta table, as its log says that it is, and the commits that change it.

To open a table is to read its log. Who has committed last knows what it left; it looks whether the
log's newest entry is still its own, and reads no more.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltalake import DeltaTable, Schema

from rhei_pipeline.errors import RheiError
from rhei_pipeline.mirrors.datafusion.delta_log import (
    LOG,
    Action,
    DeltaState,
    NamedFile,
    entry,
    inside,
    now,
    read_log,
    written,
)
from rhei_pipeline.mirrors.datafusion.files import Files, Mark

#: What readers must be able to do: leave removed rows out, and hold instants without a zone.
VECTORS, _LOCAL_TIMES = "deletionVectors", "timestampNtz"
_LOCAL_TIME = "timestamp_ntz"
_VECTORS_ENABLED = "delta.enableDeletionVectors"
#: How all who publish a mirror note themselves in a table.
APPLICATION = "rhei-"
#: What the files here are called; others in the folder are not ours to delete.
OWN_NAME = re.compile(r"([0-9a-f]{32})+-[0-9a-f]{16}\.parquet|deletion_vector_[0-9a-f-]{36}\.bin")
#: After how many commits a checkpoint tells what they left. Whoever opens a table reads the log
#: from there on.
_CHECKPOINT_COMMITS = 10
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Note:
    """What a commit tells of itself.

    Attributes:
        told: Whatever its history shows.
        application: Who notes `version` in the table.
    """

    told: Mapping[str, Any]
    application: str
    version: int


class DeltaTarget:
    """A Delta table as it is, and what it holds."""

    def __init__(self, files: Files, folder: str) -> None:
        self.folder = folder
        self._files = files
        found = _read(files, folder)
        self._is_there = found is not None
        self._state = found or DeltaState()
        self._mark: Mark | None = None

    @property
    def version(self) -> int:
        """The version of the table as it was read or committed last."""
        return self._state.version

    @property
    def removes_by_vectors(self) -> bool:
        """Whether readers of the table have to leave removed rows out."""
        return VECTORS in self._state.features

    @property
    def is_of_others(self) -> bool:
        """Whether there is a table that no mirror has ever been published to."""
        return self._is_there and not any(
            name.startswith(APPLICATION) for name in self._state.applied
        )

    @property
    def told(self) -> set[str]:
        """The names of all files that its log tells of, whoever wrote them."""
        return self._state.told

    def leave(self) -> None:
        """Note by what the newest entry of the log is known again."""
        self._mark = self._files.mark(entry(self.folder, self.version))

    def is_as_left(self) -> bool:
        """Return whether the log's newest entry is still the one that was left."""
        newest, following = (entry(self.folder, self.version + more) for more in (0, 1))
        found: dict[str, Mark | None] = {}

        def look(name: str) -> None:
            found[name] = self._files.mark(name)

        self._files.each([newest, following], look)
        return self._mark is not None and found == {newest: self._mark, following: None}

    def held_in(self, schema: Schema) -> Mapping[str, NamedFile]:
        """Return the files that its version names; none where the schema is another one."""
        return self._state.files if self._has(schema) else {}

    def _has(self, schema: Schema) -> bool:
        if not self._is_there or self._state.partitioned_by:
            return False
        return Schema.from_json(self._state.schema) == schema

    def shows(self, wanted: Mapping[str, str], schema: Schema, *, vectors: bool) -> bool:
        """Return whether the table has just these files, made of this, and this schema."""
        if not self._has(schema) or self.removes_by_vectors is not vectors:
            return False
        return {name: file.made_of for name, file in self._state.files.items()} == wanted

    def version_of(self, application: str) -> int | None:
        """Return the version that an application has noted in the table."""
        return self._state.applied.get(application)

    def commit(
        self,
        wanted: Mapping[str, NamedFile],
        schema: Schema,
        note: Note,
        configuration: Mapping[str, str],
        *,
        vectors: bool,
    ) -> None:
        """Commit one version of the table that names exactly the wanted files.

        Raises:
            MirrorBusyError: Another process has committed since it was read.
        """
        # A table that asked readers for something goes on to: earlier versions of it need that.
        features = _features(schema, vectors=vectors) | self._state.features
        if vectors:
            configuration = {**configuration, _VECTORS_ENABLED: "true"}
        actions = [_told(note), *self._shaped(schema, features, configuration)]
        held = self._state.files
        stay = {file.identity for file in wanted.values()}
        actions += [file.removed() for file in held.values() if file.identity not in stay]
        actions += [file.added() for name, file in wanted.items() if file != held.get(name)]
        actions.append(
            {"txn": {"appId": note.application, "version": note.version, "lastUpdated": now()}}
        )
        version = self.version + 1
        self._files.create(entry(self.folder, version), written(actions))
        self._state.apply(actions)
        self._state.version, self._is_there = version, True

    def _shaped(
        self, schema: Schema, features: frozenset[str], configuration: Mapping[str, str]
    ) -> Iterable[Action]:
        """Yield what a commit has to say of readers and columns, where that is not said yet."""
        state = self._state
        if not self._is_there or features != state.features:
            yield {"protocol": _protocol(features)}
        if not self._has(schema) or configuration != state.configuration:
            yield {
                "metaData": {
                    "id": state.table_id or str(uuid.uuid4()),
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": schema.to_json(),
                    "partitionColumns": [],
                    "configuration": dict(configuration),
                    "createdTime": now(),
                }
            }

    def checkpoint(self) -> None:
        """Write a checkpoint of what ten commits left, and delete entries that are older."""
        if self.version - self._state.checkpoint >= _CHECKPOINT_COMMITS:
            uri, options = f"{self._files.url}/{self.folder}", self._files.storage_options
            table = DeltaTable(uri, storage_options=options)
            table.create_checkpoint()
            table.cleanup_metadata()
            self._state.checkpoint = self.version

    def vacuum(self, retention_hours: int, *, full: bool) -> None:
        """Delete files that no version younger than these hours names; `full`: unknown ones too."""
        standing, left = self._state.standing, self._state.left
        before = now() - retention_hours * _HOUR_MS
        gone = {name for name, at in left.items() if at <= before}
        self._state.left = {name: at for name, at in left.items() if name not in gone}
        places = {f"{self.folder}/{name}" for name in inside(gone) - inside(standing)}
        if full:
            lead = f"{self.folder}/"
            unknown = {name.removeprefix(lead) for name in self._files.abandoned(self.folder)}
            unknown = set(filter(OWN_NAME.fullmatch, unknown)) - standing - left.keys()
            places |= {lead + name for name in unknown}
        self._files.delete(sorted(places))


def _read(files: Files, folder: str) -> DeltaState | None:
    """Return what a log says; of one that cannot be read and has no trace of a mirror, nothing."""
    try:
        return read_log(files, folder)
    except RheiError:
        raise
    except Exception:  # what a damaged log leads to is of many kinds
        if _has_trace_of_ours(files, folder):
            raise
        return DeltaState()


def _has_trace_of_ours(files: Files, folder: str) -> bool:
    names = (name.rpartition("/")[2] for name in files.names(folder))
    if any(map(OWN_NAME.fullmatch, names)):
        return True
    trace = f'"{APPLICATION}'.encode()
    return any(trace in files.get(name).to_pybytes() for name in files.names(f"{folder}/{LOG}"))


def _features(schema: Schema, *, vectors: bool) -> frozenset[str]:
    wanted = {VECTORS} if vectors else set()
    return frozenset(wanted | ({_LOCAL_TIMES} if _LOCAL_TIME in schema.to_json() else set()))


def _protocol(features: frozenset[str]) -> Action:
    if not features:
        return {"minReaderVersion": 1, "minWriterVersion": 2}
    listed = sorted(features)
    return {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": listed,
        "writerFeatures": listed,
    }


def _told(note: Note) -> Action:
    told = {
        "timestamp": now(),
        "operation": "WRITE",
        "operationParameters": {"mode": "Append"},
        "engineInfo": "rhei-pipeline",
    }
    return {"commitInfo": {**told, **note.told}}
