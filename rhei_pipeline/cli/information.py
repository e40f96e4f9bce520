"""`rhei info`: what is installed and declared, and how much room it takes; nothing is opened."""

import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rhei_pipeline.cli.written_file import beside, own_places
from rhei_pipeline.errors import RheiError, extras_installed

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings


def information(settings: "Settings") -> dict[str, Any]:
    """Return it as `--json` prints it; files of the pipeline are measured, and only one is read."""
    tables, problem = _tables(settings)
    return {
        "version": version("rhei-pipeline"),
        "python": platform.python_version(),
        "extras": extras_installed(),
        "declaration": None if settings.file is None else str(settings.file),
        "name": settings.name,
        "source": {
            "kind": settings.source.kind,
            "capture": settings.capture_method,
            "place": _source_place(settings),
        },
        "mirror": {
            "kind": settings.mirror.kind,
            "storage": settings.mirror.storage,
            "place": settings.mirror.url or str(settings.mirror.path),
        },
        "tables": [{"table": name, "mode": mode} for name, mode in sorted(tables.items())],
        "storage": list(_storage(settings)),
        "problem": problem,
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is said above the tables."""
    source, mirror = found["source"], found["mirror"]
    yield f"rhei {found['version']}, Python {found['python']}"
    yield f"extras       {', '.join(found['extras']) or 'none'}"
    yield f"declaration  {found['declaration']}"
    yield f"source       {source['kind']}, capture by {source['capture']}: {source['place']}"
    kind = " ".join(filter(None, (mirror["kind"], mirror["storage"])))
    yield f"mirror       {kind}: {mirror['place']}"


def _tables(settings: "Settings") -> tuple[dict[str, str], str | None]:
    """Return the tables that are declared or were mirrored, by mode; and why not all are known."""
    from rhei_pipeline.sync.schema_registry import Registry, mirror_id_of

    found = {each.name: (each.mode or settings.mode).value for each in settings.tables or ()}
    path = settings.registry.path
    try:
        registry = Registry(path, mirror_id_of(path) or "")
    except RheiError as error:
        return found, str(error)
    followed = registry.tables.keys() - registry.not_followed.keys()
    return found | {name: registry.tables[name].mode.value for name in followed}, None


def _source_place(settings: "Settings") -> str | None:
    """Return where the source is, without user and password; None where that cannot be told."""
    if settings.source.kind != "postgres":
        return str(settings.source.path)
    with suppress(ImportError):
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        with suppress(ProgrammingError):
            parts = conninfo_to_dict(settings.source.dsn.get_secret_value())
            host, port = parts.get("host", "localhost"), parts.get("port", 5432)
            return f"{host}:{port}/{parts.get('dbname', '')}"
    return None


def _storage(settings: "Settings") -> Iterator[dict[str, Any]]:
    for part, place in own_places(settings):
        files = [kept for kept in beside(place) if kept.exists()]
        size = sum(map(_bytes, files)) if files else None
        yield {"part": part, "path": str(place), "bytes": size}


def _bytes(place: Path) -> int:
    """Return the bytes of a file, or of all files in a directory; some may go meanwhile."""
    size = 0
    for file in place.rglob("*") if place.is_dir() else (place,):
        with suppress(FileNotFoundError):
            size += file.stat().st_size if file.is_file() else 0
    return size
