"""Where the declaration names a table, and a short text that changes with what it says of it."""

import hashlib
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from rhei_pipeline import __version__
from rhei_pipeline.model.schema import Table
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.schema_registry import StoredRegistrations
from rhei_pipeline.wiring.table_options import poll_options, table_options


def code_references(settings: Settings, table: Table | None) -> dict[str, Any]:
    """Return the metadata that lead from an asset to the declaration's line, where it is a file."""
    file = settings.file
    if file is None or not file.is_file():
        return {}
    lines = _lines(file, file.stat().st_mtime_ns)
    line = lines.get("tables", 1)
    if table is not None:
        names = (table.name, table.schema.full_name, table.name.lower())
        line = next((lines[f"tables.{n}"] for n in names if f"tables.{n}" in lines), line)
    with warnings.catch_warnings():
        # In use for years, and still called a beta.
        warnings.simplefilter("ignore", dg.BetaWarning)
        reference = dg.LocalFileCodeReference(
            file_path=str(file), line_number=line, label="declaration"
        )
        value = dg.CodeReferencesMetadataValue(code_references=[reference])
    return {"dagster/code_references": value}


@lru_cache(maxsize=8)
def _lines(file: Path, _changed: int) -> dict[str, int]:
    """Return the line of each section, and that of each table under `tables.<name>`."""
    root = yaml.compose(file.read_text("utf-8"))
    if not isinstance(root, yaml.MappingNode):
        return {}
    found = {key.value: key.start_mark.line + 1 for key, _ in root.value}
    for title, section in root.value:
        if title.value == "tables" and isinstance(section, yaml.SequenceNode):
            for entry in section.value:
                named = entry.value if isinstance(entry, yaml.MappingNode) else ()
                line = entry.start_mark.line + 1
                for name in (value.value for key, value in named if key.value == "name"):
                    found[f"tables.{name}"] = line
                    found.setdefault(f"tables.{name.lower()}", line)
    return found


def code_version(settings: Settings, table: Table) -> str:
    """Return a text that differs where this package, or what is declared of a table, does."""
    said = StoredRegistrations(settings.registry.path)
    declared = (
        table.mode.value,
        table_options(settings, said).get(table.name),
        poll_options(settings, said).get(table.name),
        settings.capture_method,
        settings.mirror.kind,
    )
    return f"{__version__}-{hashlib.sha256(repr(declared).encode()).hexdigest()[:8]}"
