"""What was measured, and on what: as markdown with charts for people, as JSON for programs."""

import json
import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.charts import chart

_LIBRARIES = ("rhei-pipeline", "duckdb", "datafusion", "pyarrow", "psycopg")

_PROOF = (
    "A chapter has failed where a mirror is not equal to its source afterwards. In `mirrors`, which"
    " has no source, the changes applied are counted."
)


@dataclass(frozen=True)
class Chapter:
    """What was measured in one process of its own, and what that took; or why it failed."""

    name: str
    figures: Sequence[tuple[str, str]] = field(default_factory=list)
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_megabytes: float = 0.0
    failure: str = ""


def conditions() -> dict[str, str]:
    """Return what the figures depend on: versions, the processor, and what else it was doing."""
    libraries = {name: version(name) for name in _LIBRARIES}
    load = ", ".join(f"{of:.1f}" for of in os.getloadavg())
    return {
        "measured": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": f"{_processor()}, {os.cpu_count()} threads",
        "memory": f"{_memory_bytes() / 2**30:.0f} GB",
        "load in 1, 5, 15 minutes": load,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **libraries,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def markdown(chapters: Sequence[Chapter], told: dict[str, str]) -> str:
    """Return the report, for people."""
    lines = ["# How fast it is on this machine", "", *_table(("condition", "value"), told.items())]
    lines += ["", _PROOF, ""]
    for chapter in chapters:
        lines += [f"## {chapter.name}", ""]
        if chapter.failure:
            lines += [f"Failed: {chapter.failure}", ""]
            continue
        lines += _table(("measured", "figure"), chapter.figures)
        if chart(chapter.figures):
            lines += ["", f"![{chapter.name}]({chapter.name}.svg)"]
        took = f"{chapter.cpu_seconds:,.0f} s of CPU, {chapter.wall_seconds:,.0f} s by the clock"
        lines += ["", f"In all {took}, at most {chapter.peak_megabytes:,.0f} MB of memory.", ""]
    return "\n".join(lines)


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> list[str]:
    return [_row(head), "|---|---|", *(_row(row) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write(chapters: Sequence[Chapter], directory: Path) -> tuple[Path, Path]:
    """Write the report in both forms, and its charts; return where the report is."""
    told = conditions()
    directory.mkdir(parents=True, exist_ok=True)
    text, data = directory / "report.md", directory / "report.json"
    text.write_text(markdown(chapters, told))
    for chapter in chapters:
        drawn = chart(chapter.figures)
        if drawn:
            (directory / f"{chapter.name}.svg").write_text(drawn)
    whole = {"conditions": told, "chapters": [asdict(chapter) for chapter in chapters]}
    data.write_text(json.dumps(whole, indent=2) + "\n")
    return text, data
