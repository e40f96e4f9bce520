"""Composites and ranges, from and to the texts that PostgreSQL writes of them, in DuckDB's SQL."""

import pyarrow as pa

from rhei_pipeline.model.struct_texts import needs_quotes, struct_form
from rhei_pipeline.model.type_names import NamedType, Structure
from rhei_pipeline.sql.text import duckdb_type, literal, quote


def struct_sql(text: str, kept: Structure) -> str:
    """Return the struct that a text is; something else where it is none."""
    form, groups = struct_form(kept)
    found = f"regexp_extract({text}, {literal(form)}, [{', '.join(map(literal, groups))}])"
    if kept.is_range:
        bound = kept.parts[0][1]
        values = [_value("f.p0", bound), _value("f.p1", bound)]
        values += ["f.b = '['", "f.e = ']'", "f.b = ''"]
    else:
        values = [_value(f"f.p{n}", kind) for n, (_, kind) in enumerate(kept.parts)]
    names = (quote(name) for name, _ in kept.parts)
    made = ", ".join(f"{name} := {value}" for name, value in zip(names, values, strict=True))
    whole = f"list_transform([{found}], lambda f: struct_pack({made}))[1]"
    return f"case when {text} is not null then {whole} end"


def struct_text_sql(column: str, kept: Structure) -> str:
    """Return a struct as PostgreSQL writes it."""
    parts = [(f"{column}.{quote(name)}", kind) for name, kind in kept.parts]
    if not kept.is_range:
        inner = " || ',' || ".join(_written(part, kind, of_range=False) for part, kind in parts)
        return f"case when {column} is not null then '(' || {inner} || ')' end"
    (low, kind), (high, _), (closed_low, _), (closed_high, _), (is_empty, _) = parts
    bounds = f"{_written(low, kind, of_range=True)} || ',' || {_written(high, kind, of_range=True)}"
    begins, ends = f"if({closed_low}, '[', '(')", f"if({closed_high}, ']', ')')"
    return (
        f"case when {is_empty} then 'empty'"
        f" when {column} is not null then {begins} || {bounds} || {ends} end"
    )


def _value(part: str, kind: NamedType) -> str:
    inner = rf"""replace(replace({part}[2:-2], '""', '"'), '\\', '\')"""
    plain = f"""case when {part} = '' then null when {part}[1] = '"' then {inner} else {part} end"""
    return f"try_cast({plain} as {duckdb_type(kind.type, kind.logical)})"


def _written(part: str, kind: NamedType, *, of_range: bool) -> str:
    """Return a part's text, quoted where it has to be, empty where it is null."""
    shown = f"{part}::varchar"
    if pa.types.is_boolean(kind.type):
        shown = f"case when {part} then 't' when not {part} then 'f' end"
    elif pa.types.is_decimal(kind.type):  # DuckDB writes .50
        shown = rf"regexp_replace({shown}, '^(-?)\.', '\10.')"
    elif pa.types.is_timestamp(kind.type) and kind.type.tz:
        in_utc = f"make_timestamp(epoch_us({part}))::varchar || '+00'"
        shown = f"if(isinf({part}), {shown}, {in_utc})"
    if not pa.types.is_string(kind.type) and not pa.types.is_timestamp(kind.type):
        return f"coalesce({shown}, '')"
    escaped = rf"""replace(replace({shown}, '"', '""'), '\', '\\')"""
    must = f"regexp_matches({shown}, {literal(needs_quotes(of_range=of_range))})"
    return f"""if({part} is null, '', if({must}, '"' || {escaped} || '"', {shown}))"""
