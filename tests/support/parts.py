"""The parts behind the public API, for what no caller of it can see or do.

The one place that reaches into objects: a test asks here, so that a part that moves is followed in
one line.
"""

from typing import Any

from rhei_pipeline import HTAP
from rhei_pipeline.mirrors.datafusion.manifest import Manifest
from rhei_pipeline.mirrors.datafusion.segment_store import SegmentStore
from rhei_pipeline.wiring.engine import Engine


def engine_of(htap: HTAP) -> Engine:
    """Return the source, the mirror and the pipeline that this process has open."""
    return htap._access.held.engine


def connection_of(part: Any) -> Any:
    """Return the connection that a source, a mirror or a transaction itself uses."""
    return part._connection


def telling_of(mirror: Any) -> dict[str, tuple[str, ...]]:
    """Return by table the columns in which a DuckDB mirror compares rows first."""
    telling: dict[str, tuple[str, ...]] = mirror._notes.telling
    return telling


def manifest_of(mirror: Any) -> Manifest:
    """Return what the committed state of a mirror of files consists of."""
    found: Manifest = mirror._manifest
    return found


def store_of(part: Any) -> SegmentStore:
    """Return the files of a mirror of files."""
    found: SegmentStore = part._store
    return found


def objects_of(mirror: Any) -> Any:
    """Return the client of the object store in which a mirror is."""
    return mirror._files._store


def session_of(htap: HTAP) -> Any:
    """Return the session with a cluster that is held for the next query asked of it by name."""
    cluster: Any = htap._cluster
    return cluster._engine._held
