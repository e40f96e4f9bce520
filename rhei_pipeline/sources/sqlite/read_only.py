"""What a query may do on a SQLite connection: nothing but what is on a list, whatever its text.

SQLite asks an authorizer for everything that a statement is compiled to. The connection can also
not write: its file is opened for reading, and `query_only` holds for temporary tables too.
"""

import sqlite3

from rhei_pipeline.sql.read_only import READ_PRAGMAS, SETTING_PRAGMAS

#: Functions of SQLite, by its versions up to 3.51, that only work out values.
ALLOWED_FUNCTIONS = frozenset(
    """
    -> ->> abs acos acosh asin asinh atan atan2 atanh avg bm25 ceil ceiling changes char coalesce
    concat concat_ws cos cosh count cume_dist current_date current_time current_timestamp date
    datetime degrees dense_rank exp first_value floor format glob group_concat hex highlight if
    ifnull iif instr json json_array json_array_length json_error_position json_extract
    json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
    json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_extract
    jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch jsonb_remove
    jsonb_replace jsonb_set julianday lag last_insert_rowid last_value lead length like likelihood
    likely ln log log10 log2 lower ltrim match matchinfo max median min mod nth_value ntile nullif
    octet_length offsets percent_rank percentile percentile_cont percentile_disc pi pow power
    printf quote radians random randomblob rank regexp replace round row_number rtrim sign sin
    sinh snippet soundex sqlite_compileoption_get sqlite_compileoption_used sqlite_source_id
    sqlite_version sqrt strftime string_agg substr substring subtype sum tan tanh time timediff
    total total_changes trim trunc typeof unhex unicode unistr unistr_quote unixepoch unlikely
    upper zeroblob
    """.split()  # noqa: SIM905  (as words it can be read)
)
#: What loads code, reads or writes files, writes, or hands out pointers.
REFUSED_FUNCTIONS = frozenset(
    """
    edit fts3_tokenizer fts5 fts5_get_locale fts5_insttoken fts5_locale fts5_source_id
    geopoly_debug load_extension optimize readfile rtreecheck rtreedepth rtreenode sqlite_log
    writefile
    """.split()  # noqa: SIM905
)
#: Tables that are functions, besides those of the pragmas above.
ALLOWED_TABLES = frozenset(
    {"generate_series", "json_each", "json_tree", "jsonb_each", "jsonb_tree"}
)
#: What full-text tables ask of the file they are in.
_PRAGMAS_OF_TABLES = {"data_version", "page_size"}
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_CATALOGUES = {"sqlite_master", "sqlite_schema"}
#: SQLite takes a limit in 32 bits, and keeps to its own where that is less.
_MOST_BYTES = 2**31 - 1
#: The tables that hold an R-tree; statements that would change them are compiled with a read.
_OF_TREES = ("_node", "_parent", "_rowid")


def lock_down(connection: sqlite3.Connection, value_bytes: int | None = None) -> None:
    """Let a connection compile nothing but reads, whatever the text.

    Args:
        connection: Opened for reading alone.
        value_bytes: The longest text or blob that it makes; left out: SQLite's own limit.
    """
    if value_bytes is not None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, min(value_bytes, _MOST_BYTES))
    connection.execute("pragma query_only = on")
    built_in = {name for (name,) in connection.execute("pragma module_list")}
    # A user's own table may have the name of a module, and is read instead of it.
    own = {name.lower() for (name,) in connection.execute("select name from sqlite_master")}
    connection.set_authorizer(_Authorizer(built_in - ALLOWED_TABLES - own).allow)


class _Authorizer:
    """Answers SQLite; keeps no reference to its connection, which keeps one to this."""

    def __init__(self, hidden: set[str]) -> None:
        self._hidden = {name for name in hidden if not name.startswith("pragma_")}

    def allow(
        self,
        action: int,
        first: str | None,
        second: str | None,
        schema: str | None,
        _within: str | None,
    ) -> int:
        """Return whether an action may be compiled."""
        if action == sqlite3.SQLITE_FUNCTION:
            may = (second or "").lower() in ALLOWED_FUNCTIONS
        elif action == sqlite3.SQLITE_PRAGMA:
            may = _may_ask((first or "").lower(), second, schema)
        elif action in _READS:
            may = action != sqlite3.SQLITE_READ or (first or "").lower() not in self._hidden
        else:
            may = _belongs_to_reading(action, first or "", schema)
        return sqlite3.SQLITE_OK if may else sqlite3.SQLITE_DENY


def _may_ask(pragma: str, value: str | None, schema: str | None) -> bool:
    if pragma in SETTING_PRAGMAS or pragma in _PRAGMAS_OF_TABLES:
        of_tables = pragma in _PRAGMAS_OF_TABLES and schema == "main"
        return value is None and (pragma in READ_PRAGMAS or of_tables)
    return pragma in READ_PRAGMAS


def _belongs_to_reading(action: int, table: str, schema: str | None) -> bool:
    """Return whether a change is what SQLite compiles, and never runs, to read a virtual table."""
    if action == sqlite3.SQLITE_UPDATE:
        return table in _CATALOGUES and schema == "main"
    return action in {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_DELETE} and table.endswith(_OF_TREES)
