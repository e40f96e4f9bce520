"""Maps of texts, from and to the text that PostgreSQL writes of an `hstore`, in DuckDB's SQL."""

from rhei_pipeline.sql.text import literal

_QUOTED = r'(?:[^"\\]|\\["\\])*'
_PAIR = rf'"({_QUOTED})"=>(NULL|"{_QUOTED}")(?:, |$)'


def map_sql(text: str) -> str:
    """Return the map that a text is; something else, or null, where it is none."""
    keys, items = (f"regexp_extract_all({text}, {literal(_PAIR)}, {group})" for group in (1, 2))
    names = f"list_transform({keys}, lambda k: {_plain('k')})"
    values = f"list_transform({items}, lambda v: if(v = 'NULL', null, {_plain('v[2:-2]')}))"
    return f"case when len({names}) = len(list_distinct({names})) then map({names}, {values}) end"


def map_text_sql(column: str) -> str:
    """Return a map as PostgreSQL writes it."""
    value = f"coalesce({_quoted('e.value')}, 'NULL')"
    pairs = (
        f"list_transform(map_entries({column}), lambda e: {_quoted('e.key')} || '=>' || {value})"
    )
    return f"array_to_string({pairs}, ', ')"


def _plain(text: str) -> str:
    return rf"regexp_replace({text}, '\\(.)', '\1', 'gs')"


def _quoted(text: str) -> str:
    return rf"""'"' || regexp_replace({text}, '([\\"])', '\\\1', 'g') || '"'"""
