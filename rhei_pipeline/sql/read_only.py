"""The gate before every query: one statement, and one that only reads.

The text is judged by its tokens, in the dialect of the side that would run it, so that comments,
quotes and casing hide nothing. The engines' sessions are locked down as well; this gate is what
names the refused thing and the way out.
"""

import re
from collections.abc import Callable, Container, Sequence
from difflib import get_close_matches
from functools import lru_cache
from itertools import pairwise

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from rhei_pipeline.errors import QueryError
from rhei_pipeline.sql.placeholders import judged_form

#: How many texts are remembered as harmless; an application repeats its few.
_REMEMBERED = 1024

#: So many statements keep their tokens while they are looked at, if they have so few characters.
_AT_ONCE, _SHORT = 16, 20_000

#: How much alike a mistyped word is: 'selct' is so to 'select', and 'delete' is not.
_ALIKE = 0.8

#: What to do instead of what is refused.
WRITING = "use execute for writes: a sync brings them to the mirror"
SETTING = "a query only reads mirrored tables; settings belong in the declaration"
BATCHED = "give all statements of the transaction to execute_batch"
READING = "a query reads tables only"
OF_FILES = (
    "a query reads tables only: load the file into the source, or use a client of your own for it"
)
QUERYING = "ask it with 'rhei query'"
RETURNING = "use execute, or let it return rows with 'returning ...'"
_READING_WORDS = {"select", "with", "values", "("}
_MORE_READING_WORDS = {
    "sqlite": set[str](),
    "postgres": {"table", "show"},
    "datafusion": {"table", "describe", "show"},
}
_CHANGES = {"insert", "update", "delete", "merge", "replace", "truncate"}
#: Pragmas of SQLite that only read, as long as they are given nothing to set.
READ_PRAGMAS = {
    "application_id",
    "collation_list",
    "compile_options",
    "encoding",
    "foreign_key_check",
    "foreign_key_list",
    "freelist_count",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "journal_mode",
    "module_list",
    "page_count",
    "page_size",
    "pragma_list",
    "quick_check",
    "schema_version",
    "table_info",
    "table_list",
    "table_xinfo",
    "user_version",
}
#: Of these, an argument is no table to look at; it would set a value.
SETTING_PRAGMAS = {
    "application_id",
    "collation_list",
    "compile_options",
    "encoding",
    "freelist_count",
    "function_list",
    "journal_mode",
    "module_list",
    "page_count",
    "page_size",
    "pragma_list",
    "schema_version",
    "user_version",
}

#: Functions that read files or the network, write, or change the session, by dialect.
_REFUSED_FUNCTIONS = {
    "sqlite": re.compile(r"load_extension|readfile|writefile|edit|fts3_tokenizer|sqlite_log"),
    "postgres": re.compile(
        r"pg_(read|ls|stat)_(binary_)?(file|dir|.*dir)|lo_\w+|dblink\w*|set_config|setval|nextval"
        r"|pg_(try_)?advisory_\w+|pg_(terminate|cancel)_backend|pg_reload_conf|pg_rotate_logfile\w*"
        r"|pg_(create|drop|advance|copy)_\w+|pg_replication_\w+|pg_logical_\w+|pg_promote"
        r"|pg_switch_wal|pg_(backup|wal_replay)_\w+|pg_notify|pg_import_\w+|pg_export_snapshot"
        r"|query_to_xml\w*|table_to_xml\w*|cursor_to_xml\w*|database_to_xml\w*|schema_to_xml\w*"
    ),
    "datafusion": re.compile(r"read_\w+|parquet_\w+|glob|metadata_cache|statistics_cache"),
}
_EXPLAIN_OPTIONS = re.compile(
    r"\s*(query\s+plan\b|\((?!\s*(select|with|values|\())[^()]*\)|((analyze|verbose)\b\s*)*)",
    re.IGNORECASE,
)
_FILE_LIKE = re.compile(
    r"[/\\*]|^[a-z0-9]+:|\.(csv|tsv|txt|json|jsonl|ndjson|parquet|arrow|ipc|feather|avro|orc"
    r"|xlsx|db|duckdb|sqlite|gz|zst)$",
    re.IGNORECASE,
)


def of_log() -> QueryError:
    """Return the error of what only a database can do, asked of a log of events."""
    return QueryError(
        "the source is a log of events, which runs no statements",
        hint="query the mirror; write with 'append'",
    )


def returns_nothing() -> QueryError:
    """Return the error of a statement that was asked for rows and has none."""
    return QueryError("the statement returns no rows, and was undone", hint=RETURNING)


@lru_cache(maxsize=_REMEMBERED)
def refuse_writing(sql: str, dialect: str) -> None:
    """Refuse everything but one reading statement.

    Args:
        sql: As the caller gave it.
        dialect: Whose text it is: sqlite, postgres or datafusion. (DuckDB judges for itself.)

    Raises:
        QueryError: Names what is refused, and the way out.
    """
    inner = explained(sql, dialect)
    if inner is not None:
        refuse_writing(inner, dialect)
        return
    body = statement_tokens(sql, dialect)
    word = body[0].text.lower()
    if word == "pragma":
        _refuse_setting_pragma(body, dialect)
        return
    if word not in _READING_WORDS | _MORE_READING_WORDS[dialect]:
        hint = _mistyped(word) or way_out(word)
        raise QueryError(f"{word.upper()} is not a reading statement", hint=hint)
    _refuse_changes(body)
    _refuse_functions(body, dialect)


def refuse_only_reading(sql: str, dialect: str) -> None:
    """Refuse a statement that reads and does nothing else, where a write is wanted.

    A function that is not known here may write, and so may the statement that calls it.

    Raises:
        QueryError: Says so.
    """
    if only_reads(sql, dialect) and not _calls_unknown(sql, dialect):
        raise QueryError("the statement only reads, and a write is wanted here", hint=QUERYING)


def only_reads(sql: str, dialect: str) -> bool:
    """Return whether a statement changes nothing, but for functions that it may call."""
    try:
        refuse_writing(sql, dialect)
    except QueryError:
        return False
    return True


def _calls_unknown(sql: str, dialect: str) -> bool:
    if dialect == "sqlite":
        return False  # none of its functions writes
    try:
        parsed = sqlglot.parse_one(_plain(sql, dialect), dialect=_read_as(dialect))
    except SqlglotError:
        return True
    return parsed.find(exp.Anonymous) is not None


def statement_tokens(sql: str, dialect: str) -> Sequence[Token]:
    """Return the tokens of one statement, without the semicolon that may end it.

    Raises:
        QueryError: It is no statement, or more than one, or cannot be read as tokens.
    """
    return _last_tokens(sql, dialect) if len(sql) <= _SHORT else _tokens(sql, dialect)


def _tokens(sql: str, dialect: str) -> Sequence[Token]:
    try:
        tokens = sqlglot.tokenize(_plain(sql, dialect), dialect=_read_as(dialect))
    except SqlglotError as error:
        raise QueryError(
            "the statement cannot be parsed: a quote or comment is not closed", hint="close it"
        ) from error
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    if not tokens:
        raise QueryError("a query is one statement, and this is none")
    pieces = sum(token.token_type is TokenType.SEMICOLON for token in tokens) + 1
    if pieces > 1:
        raise QueryError(
            f"a query is one statement, and this is {pieces}", hint="run them one by one"
        )
    return tuple(tokens)


#: Who routes a statement looks at its tokens, and so does this gate, twice.
_last_tokens = lru_cache(maxsize=_AT_ONCE)(_tokens)


def _read_as(dialect: str) -> str:
    # sqlglot has no DataFusion; its SQL is closest to PostgreSQL's.
    return "postgres" if dialect == "datafusion" else dialect


def _plain(sql: str, dialect: str) -> str:
    return judged_form(sql) if dialect == "datafusion" else sql


def explained(sql: str, dialect: str) -> str | None:
    """Return the statement that an EXPLAIN explains; None when it is none.

    EXPLAIN ANALYZE runs what it explains, and a plain EXPLAIN reads alike: both have to pass.
    """
    first = statement_tokens(sql, dialect)[0]
    if first.text.lower() != "explain":
        return None
    return _EXPLAIN_OPTIONS.sub("", sql[first.end + 1 :], count=1)


def way_out(word: str) -> str:
    """Return what to do instead of a statement that begins with this word."""
    if word in {"begin", "commit", "rollback", "savepoint", "start", "end", "release"}:
        return BATCHED
    if word in {"set", "reset", "use"}:
        return SETTING
    if word in {"attach", "detach", "install", "load", "copy"}:
        return OF_FILES
    return WRITING


def _mistyped(word: str) -> str | None:
    close = get_close_matches(word, sorted(_READING_WORDS), n=1, cutoff=_ALIKE)
    return f"did you mean {close[0]!r}?" if close else None


def _refuse_setting_pragma(tokens: Sequence[Token], dialect: str) -> None:
    if dialect != "sqlite":
        raise QueryError("PRAGMA is not a reading statement here", hint=way_out("set"))
    texts = [token.text.lower() for token in tokens[1:]]
    if texts[1:2] == ["."]:
        texts = texts[2:]
    name = texts[0] if texts else ""
    sets = "=" in texts or (name in SETTING_PRAGMAS and len(texts) > 1)
    if name not in READ_PRAGMAS or sets:
        raise QueryError(
            f"PRAGMA {name} changes the session or the database, or does not only read",
            hint="the application that owns the database sets its pragmas",
        )


def _refuse_changes(tokens: Sequence[Token]) -> None:
    """Refuse changes in a CTE or behind one, SELECT INTO, and row locks."""
    depth = 0
    before = ""
    for place, token in enumerate(tokens):
        word = token.text.lower()
        after = tokens[place + 1].text.lower() if place + 1 < len(tokens) else ""
        if token.token_type in {TokenType.STRING, TokenType.IDENTIFIER}:
            before = ""
            continue
        depth += (word == "(") - (word == ")")
        starts = before == "(" or (depth == 0 and before == ")")
        if word in _CHANGES and starts and after not in {"(", ",", ")", "."}:
            raise QueryError(f"the query changes data by {word.upper()}", hint=WRITING)
        if word == "into":
            raise QueryError("SELECT INTO makes a table", hint=WRITING)
        if word == "for" and after in {"update", "share", "no", "key"}:
            raise QueryError(
                f"FOR {after.upper()} locks rows", hint="lock them in execute_batch's transaction"
            )
        before = word


def _refuse_functions(tokens: Sequence[Token], dialect: str) -> None:
    refused = _REFUSED_FUNCTIONS[dialect]
    for token, after in pairwise(tokens):
        if after.text != "(" or token.token_type is TokenType.STRING:
            continue
        if refused.fullmatch(token.text.lower()):
            raise QueryError(
                f"function {token.text.lower()!r} reads outside the tables, or changes something",
                hint=READING,
            )


def refuse_files(sql: str, known: Callable[[], Container[str]]) -> None:
    """Refuse a file's name in a table's place; one that is the name of a table is none.

    Args:
        sql: One statement, as DataFusion is to read it.
        known: Returns the names of the tables that there are.

    Raises:
        QueryError: Says so.
    """
    names = _file_names(sql)
    if names:
        tables = known()
        if not all(name in tables for name in names):
            raise file_refused()


@lru_cache(maxsize=_REMEMBERED)
def _file_names(sql: str) -> frozenset[str]:
    """Return the names in a table's place that may be a file's."""
    inner = explained(sql, "datafusion")
    if inner is not None:
        return _file_names(inner)
    try:
        parsed = sqlglot.parse_one(judged_form(sql), dialect=_read_as("datafusion"))
    except RecursionError:
        raise too_deep() from None
    except SqlglotError:
        # The engine reads its own dialect best, in a session that opens no files anyway.
        return frozenset(
            after.text
            for token, after in pairwise(statement_tokens(sql, "datafusion"))
            if token.text.lower() in {"from", "join"} and after.token_type is TokenType.STRING
        )
    return frozenset(table.name for table in parsed.find_all(exp.Table) if is_file_like(table.name))


def is_file_like(name: str) -> bool:
    """Return whether an engine might take a table's name for a file's."""
    return _FILE_LIKE.search(name) is not None


def no_unicode() -> QueryError:
    """Return the refusal of a text that no database takes."""
    return QueryError(
        "the statement, or a value of it, is no Unicode text", hint="correct its encoding"
    )


def too_deep() -> QueryError:
    """Return the refusal of a statement that is nested deeper than it can be read."""
    return QueryError("the statement is nested too deeply", hint="nest it less")


def file_refused() -> QueryError:
    """Return the refusal of a file in a table's place."""
    return QueryError(
        "the query names a file instead of a table",
        hint=OF_FILES,
    )
