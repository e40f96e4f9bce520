"""The text of a first declaration: YAML, with the reason for each choice beside it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from io import StringIO
from textwrap import fill
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from rhei_pipeline.model.schema import TableSchema

#: Columns whose past values people ask for.
_WORTH_KEEPING = {"status", "state", "price", "balance", "plan", "tier", "stage", "owner_id"}
#: A comment takes no more of a screen's 80 columns, with its sign and its place.
_WIDTH = 76
#: A value is never broken: who reads it looks for it on one line.
_LONGEST = 1_000_000
_BY_VARIABLE = (
    "PostgreSQL. Its connection string holds a password, and is not for this file: the variable"
    " RHEI__SOURCE__DSN gives it, such as from the file .env."
)
_OPEN = (
    "PostgreSQL. A connection string with a password belongs in the variable RHEI__SOURCE__DSN, or"
    " in the file .env; this one has none."
)
_BY_LOG = "The server's own log is read, through a replication slot."
_NO_LOG = (
    "The server's own log cannot be read: {}. So triggers note what is touched; one that may only"
    " be read is captured by 'polling'."
)
_BY_TRIGGERS = (
    "Triggers note which keys are touched, in the writer's own transaction: nothing is missed. A"
    " file that may only be read is captured by 'polling'."
)
_COPY = "The analytical copy; one file, made by the first sync."
_MODES = (
    "destructive: the mirror is what the source is now. temporal: it keeps every version;"
    " 'rhei as-of' looks back. Leave a table out, and it is not mirrored."
)
_LEFT_OUT = "Left out, since they cannot be mirrored:"
_ROWS = "About how many rows are in memory at once, and the pause between background syncs."
_DAYS = "History begins with the first sync, so Dagster's daily snapshots have no earlier days."
_STALE = "When the mirror is older than a query allows: 'sync' first, or ask the source ('oltp')."


def sqlite_source(path: str) -> tuple[CommentedMap, str]:
    """Return the section of a SQLite file, and what is said of it."""
    return _flow(kind="sqlite", path=_text(path)), "The application's SQLite file."


def postgres_source(dsn: str | None) -> tuple[CommentedMap, str]:
    """Return the section of a server, and what is said of it; None: a variable has the string."""
    if dsn is None:
        return _flow(kind="postgres"), _BY_VARIABLE
    return _flow(kind="postgres", dsn=_text(dsn)), _OPEN


def declaration_text(
    source: tuple[CommentedMap, str],
    method: str,
    obstacle: str | None,
    tables: Sequence[TableSchema],
    left_out: Mapping[str, str],
    today: date,
) -> str:
    """Return a declaration.

    Args:
        source: The section, and what is said of it.
        method: How changes are captured.
        obstacle: Why the server's own log cannot be read.
        tables: What is mirrored.
        left_out: What is not, with the reasons.
        today: The first day that snapshots of history can show.
    """
    why = _BY_LOG if method == "logical" else _BY_TRIGGERS
    if obstacle is not None:
        why = _NO_LOG.format(obstacle)
    omitted = [_LEFT_OUT, *(f"  {name}: {reason}" for name, reason in left_out.items())]
    sections: list[tuple[str, object, Sequence[str]]] = [
        ("source", source[0], [source[1]]),
        ("capture", _flow(method=method), [why]),
        ("mirror", _flow(kind="duckdb", path="data/mirror.duckdb"), ["", _COPY]),
        ("tables", CommentedSeq(map(_table, tables)), ["", _MODES]),
        (
            "sync",
            _flow(batch_rows=50_000, interval_seconds=1.0, prune=True),
            [*(["", *omitted] if left_out else []), "", _ROWS],
        ),
        ("queries", _flow(when_stale="sync"), [_STALE]),
        ("registry", _flow(path="data/registry.json"), []),
        ("schedule", _flow(snapshots_from=today), ["", _DAYS]),
    ]
    whole = CommentedMap({name: value for name, value, _ in sections})
    for name, _, said in sections:
        if said:
            before = "\n".join(line for text in said for line in _lines(text))
            whole.yaml_set_comment_before_after_key(name, before=before)
    return _written(whole)


def _lines(text: str) -> Iterator[str]:
    indent = "    " if text.startswith(" ") else ""
    yield from fill(text, _WIDTH, subsequent_indent=indent).splitlines() or [""]


def _table(schema: TableSchema) -> CommentedMap:
    kept = sorted(_WORTH_KEEPING & {name.lower() for name in schema.names})
    made = CommentedMap(name=_text(schema.name))
    if schema.mirror_name:
        made["mirror_name"] = _text(schema.mirror_name)
        made.yaml_add_eol_comment("another differs by case only", "mirror_name")
    made["mode"] = "temporal" if kept else "destructive"
    why = f"{', '.join(kept)}: its earlier values are often needed"
    none = "nothing in it suggests that its history is needed"
    made.yaml_add_eol_comment(why if kept else none, "mode")
    made["primary_key"] = CommentedSeq(map(_text, schema.primary_key))
    made["primary_key"].fa.set_flow_style()
    end = len(f"    primary_key: {json.dumps(schema.primary_key, ensure_ascii=False)}")
    made.yaml_add_eol_comment("as the source declares it", "primary_key", column=end + 2)
    return made


def _flow(**fields: Any) -> CommentedMap:  # noqa: ANN401  (any value that YAML has)
    made = CommentedMap(fields)
    made.fa.set_flow_style()
    return made


def _text(text: str) -> DoubleQuotedScalarString:
    """Return a text that stays one: a table may be named `on`, or `1`."""
    kept: DoubleQuotedScalarString = DoubleQuotedScalarString(text)
    return kept


def _written(whole: CommentedMap) -> str:
    yaml = YAML()
    yaml.width = _LONGEST
    yaml.indent(mapping=2, sequence=4, offset=2)
    into = StringIO()
    yaml.dump(whole, into)
    return into.getvalue()
