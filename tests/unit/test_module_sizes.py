"""Modules are of a size that is read at once; a longer one says why it is not cut."""

from pathlib import Path

PROJECT = Path(__file__).parents[2]
MOST_LINES = 450

_CAPTURE = "one way of capture keeps the whole seam, and its parts stand beside it already"
#: Longer modules, each with the reason.
LONGER = {
    "rhei_pipeline/protocols.py": "the seams on one page, each with what it promises",
    "rhei_pipeline/htap.py": "each call of the library, with what it promises; it passes them on",
    "rhei_pipeline/sync/pipeline.py": "what a pipeline is asked for, all under its one lock",
    "rhei_pipeline/holder/access.py": "who holds the mirror is one state under one lock",
    "rhei_pipeline/buffer/source.py": _CAPTURE,
    "rhei_pipeline/capabilities.py": "what only some adapters can do, on one page",
    "rhei_pipeline/holder/held.py": "what the holder is asked for; it passes the calls on",
    "rhei_pipeline/mirrors/datafusion/mirror.py": "one class keeps the whole of `Mirror`",
    "rhei_pipeline/mirrors/duckdb/mirror.py": "one class keeps the whole of `Mirror`",
    "rhei_pipeline/sources/postgres/database.py": "one class keeps the whole of `Database`",
    "rhei_pipeline/sources/postgres/logical/source.py": _CAPTURE,
    "rhei_pipeline/sources/postgres/polling/snapshot.py": _CAPTURE,
    "rhei_pipeline/sources/postgres/triggers/ddl.py": "the text of the triggers: one script",
    "rhei_pipeline/sources/postgres/triggers/registry.py": "who needs what of the logs: one table",
    "rhei_pipeline/sources/postgres/triggers/snapshot.py": _CAPTURE,
    "rhei_pipeline/sources/postgres/triggers/source.py": _CAPTURE,
    "rhei_pipeline/sources/sqlite/catalog.py": "what SQLite's schema says of a table, read at once",
    "rhei_pipeline/sources/sqlite/polling/snapshot.py": _CAPTURE,
    "rhei_pipeline/sources/sqlite/database.py": "one class keeps the whole of `Database`",
    "rhei_pipeline/sources/sqlite/triggers/ddl.py": "the text of the triggers, which is one script",
    "rhei_pipeline/sources/sqlite/triggers/source.py": _CAPTURE,
}


def test_no_module_is_longer_than_is_read_at_once() -> None:
    files = sorted((PROJECT / "rhei_pipeline").rglob("*.py"))
    lines = {str(f.relative_to(PROJECT)): f.read_text().count("\n") for f in files}
    longer = {path: count for path, count in lines.items() if count > MOST_LINES}
    assert len(lines) > 100
    assert longer.keys() <= LONGER.keys(), longer
    assert LONGER.keys() <= lines.keys()
