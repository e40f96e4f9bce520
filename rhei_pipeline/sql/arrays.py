"""Arrays, from and to the texts that PostgreSQL writes of them, in DuckDB's SQL."""

from rhei_pipeline.model.array_texts import NEEDS_QUOTES
from rhei_pipeline.sql.text import literal


def array_sql(text: str, kind: str) -> str:
    """Return the list of this type that a text is; null, or another one, where it is none."""
    flat, nested = f"'[' || {text}[2:-2] || ']'", f"translate({text}, '{{}}', '[]')"
    return f"try_cast({nested if kind.endswith('[][]') else flat} as {kind})"


def array_text_sql(column: str, kind: str) -> str:
    """Return a list of this type as PostgreSQL writes an array."""
    shown = "e::varchar"
    if kind.endswith("[][]"):
        inner = array_text_sql("r", kind.removesuffix("[]"))
        rows = f"list_transform({column}, lambda r: {inner})"
        return f"'{{' || array_to_string({rows}, ',') || '}}'"
    if kind == "boolean[]":
        shown = "case when e then 't' when not e then 'f' end"
    elif kind == "varchar[]":
        escaped = "regexp_replace(e, '([\\\\\"])', '\\\\\\1', 'g')"
        quoted = f"'\"' || {escaped} || '\"'"
        shown = f"case when regexp_matches(e, {literal(NEEDS_QUOTES)}) then {quoted} else e end"
    elements = f"list_transform({column}, lambda e: coalesce({shown}, 'NULL'))"
    return f"'{{' || array_to_string({elements}, ',') || '}}'"
