"""The log of a Delta table: what its newest version names, and the entries that change it.

An entry is created under the next number, and only if that number is free. delta-rs commits no
deletion vectors, so entries are written here, and read here for what it does not tell of them.
"""

import json
import re
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rhei_pipeline.mirrors.datafusion.delta_vectors import DeltaVector
from rhei_pipeline.mirrors.datafusion.files import Files

#: The folder of a table's log.
LOG = "_delta_log"
_ENTRY = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
#: Checkpoints in parts, or of a newer kind, which others write.
_OF_OTHER_KINDS = re.compile(r"\d{20}\.checkpoint\.[0-9a-f.-]+\.(parquet|json)")
#: A file named by a whole address, or above the folder: it is not only this table's.
_OUTSIDE = re.compile(r"^/|:|(^|/)\.\.(/|$)")
#: What a checkpoint holds that concerns us.
_KINDS = ("protocol", "metaData", "txn", "remove", "add")
#: Says of what a file was made, beyond its name.
_MADE_OF = "rhei.made_of"

Action = dict[str, Any]


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file as a version of a Delta table names it.

    Attributes:
        rows: All rows in it, those included that the vector removes; None if not known.
        vector: Which of its rows are removed.
        made_of: Of what the vector or the file was made.
    """

    name: str
    size: int
    rows: int | None = None
    vector: DeltaVector | None = None
    made_of: str = ""

    @property
    def identity(self) -> tuple[str, DeltaVector | None]:
        """What tells it from all others: with another vector it is another file."""
        return self.name, self.vector

    @property
    def files(self) -> Iterator[str]:
        """The names of the files that it needs."""
        yield self.name
        if self.vector is not None:
            yield self.vector.file

    def added(self) -> Action:
        """Return the action that names it."""
        added = {
            "path": self.name,
            "partitionValues": {},
            "size": self.size,
            "modificationTime": now(),
            "dataChange": True,
            "stats": json.dumps({"numRecords": self.rows}),
            "tags": {_MADE_OF: self.made_of},
        }
        return {"add": added | self._removing()}

    def removed(self) -> Action:
        """Return the action that names it no more."""
        removed = {
            "path": self.name,
            "deletionTimestamp": now(),
            "dataChange": True,
            "extendedFileMetadata": True,
            "partitionValues": {},
            "size": self.size,
        }
        return {"remove": removed | self._removing()}

    def _removing(self) -> Action:
        return {"deletionVector": self.vector.described()} if self.vector else {}

    @classmethod
    def read(cls, action: Action) -> "NamedFile":
        """Read an action."""
        described = action.get("deletionVector")
        tags = dict(action.get("tags") or {})
        return cls(
            action["path"],
            action.get("size") or 0,
            vector=DeltaVector.read(described) if described else None,
            made_of=tags.get(_MADE_OF, ""),
        )


@dataclass(slots=True)
class DeltaState:
    """What a version of a Delta table is.

    Attributes:
        files: What it names, by their names.
        partitioned_by: The columns whose values the log has instead of the files; we have none.
        features: What readers must be able to do.
        applied: The version that each application has noted.
        left: When files were named last, in milliseconds, of those that no version names now.
        checkpoint: The newest version that a checkpoint tells of.
    """

    version: int = -1
    files: dict[str, NamedFile] = field(default_factory=dict)
    schema: str = ""
    table_id: str = ""
    configuration: Mapping[str, str] = field(default_factory=dict)
    partitioned_by: Sequence[str] = ()
    features: frozenset[str] = frozenset()
    applied: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)
    checkpoint: int = -1

    @property
    def standing(self) -> set[str]:
        """The names of all files that it needs."""
        return {name for file in self.files.values() for name in file.files}

    @property
    def told(self) -> set[str]:
        """The names of all files that it has or had in its folder, whoever wrote them."""
        return inside(self.standing | self.left.keys())

    def apply(self, actions: Iterable[Action]) -> None:
        """Change it as one entry of the log says."""
        told = list(actions)
        for protocol in _of_kind("protocol", told):
            self.features = frozenset(protocol.get("readerFeatures") or ())
        for meta in _of_kind("metaData", told):
            self.schema, self.table_id = meta["schemaString"], meta["id"]
            self.configuration = dict(meta["configuration"] or {})
            self.partitioned_by = tuple(meta.get("partitionColumns") or ())
        for noted in _of_kind("txn", told):
            self.applied[noted["appId"]] = noted["version"]
        for removed in _of_kind("remove", told):  # before it is added with another vector
            self.files.pop(removed["path"], None)
            left_at = removed.get("deletionTimestamp") or 0
            self.left |= dict.fromkeys(NamedFile.read(removed).files, left_at)
        for added in _of_kind("add", told):
            file = NamedFile.read(added)
            self.files[file.name] = file


def inside(named: Iterable[str]) -> set[str]:
    """Return the files in a table's folder of those that its log names, as they are called there.

    A log has names as parts of addresses have them.
    """
    return {name for name in map(urllib.parse.unquote, named) if _OUTSIDE.search(name) is None}


def _of_kind(kind: str, actions: Iterable[Action]) -> Iterator[Action]:
    return (action[kind] for action in actions if action.get(kind) is not None)


def read_log(files: Files, folder: str) -> DeltaState | None:
    """Return what the newest version of the table in a folder is; None where there is none.

    Raises:
        ValueError: The log cannot be read.
    """
    names = sorted(name.rpartition("/")[2] for name in files.names(f"{folder}/{LOG}"))
    entries = [int(found[1]) for name in names if (found := _ENTRY.fullmatch(name))]
    checkpoints = [int(found[1]) for name in names if (found := _CHECKPOINT.fullmatch(name))]
    if not entries and not checkpoints:
        if any(map(_OF_OTHER_KINDS.fullmatch, names)):
            raise ValueError("its log has checkpoints of another kind alone")
        return None
    state = DeltaState()
    if checkpoints:
        state.version = state.checkpoint = checkpoints[-1]
        place = f"{folder}/{LOG}/{state.version:020}.checkpoint.parquet"
        state.apply(_checkpointed(files.get(place)))
    for version in entries:
        if version <= state.version:
            continue
        if version != state.version + 1:
            raise ValueError(f"its log has no version {state.version + 1}")
        content = files.get(entry(folder, version)).to_pybytes()
        state.apply(json.loads(line) for line in content.splitlines() if line.strip())
        state.version = version
    return state


def _checkpointed(content: pa.Buffer) -> list[Action]:
    found = pq.ParquetFile(pa.BufferReader(content))
    kinds = [kind for kind in _KINDS if kind in found.schema_arrow.names]
    actions: list[Action] = found.read(kinds).to_pylist()
    return actions


def entry(folder: str, version: int) -> str:
    """Return the name of the entry that made a version."""
    return f"{folder}/{LOG}/{version:020}.json"


def written(actions: Iterable[Action]) -> bytes:
    """Return the text of an entry."""
    return "".join(f"{json.dumps(action)}\n" for action in actions).encode()


def now() -> int:
    """Return the present instant as Delta's log has it, in milliseconds."""
    return int(time.time() * 1000)
