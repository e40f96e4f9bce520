"""Nothing of ours opens a database file that this process may have open through an engine.

Closing any descriptor of a file gives up all POSIX record locks that the process has on it, those
of SQLite, DuckDB and RocksDB among them (`man 2 fcntl`; sqlite.org/howtocorrupt.html, 2.2). So
every call that opens a file's bytes is either in this list, with the reason why its file is no
open database, or done by a process of its own. Asking for a size or a time opens nothing.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ROOMS = (
    *("rhei_pipeline", "assets", "resources", "sensors", "config"),
    *("examples", "tests", "benchmarks"),
)
#: What opens a file's bytes. Text is no database, so `read_text` and `write_text` are left out.
OPENING = {
    *("open", "fdopen", "read_bytes", "write_bytes", "touch", "truncate", "mkstemp", "FileIO"),
    *("memory_map", "OSFile", "memmap", "fromfile", "sendfile", "ZipFile", "TarFile"),
}
COPYING = {"copy", "copy2", "copyfile", "copytree", "copyfileobj", "move"}
#: Their `open` is an engine's, and their `touch` reports a key.
ENGINES = {"rhei", "olap", "table", "source", "pipeline", "_source", "_inner"}

FILES = "files of a DataFusion mirror; no engine locks them"
OWN = "a file that this module alone writes, and no engine"
BEFORE = "nothing has it open yet"
AFTER = "the mirror is closed, or the buffer"
ARCHIVE = "an archive of files"
ALLOWED = {
    "rhei_pipeline/buffer/confirmation.py": OWN,
    "rhei_pipeline/sync/schema_registry.py": OWN,
    "rhei_pipeline/mirrors/duckdb/copy_program.py": "a program that has nothing else open",
    "rhei_pipeline/holder/search_program.py": "a program that has nothing else open",
    "rhei_pipeline/mirrors/duckdb/last_commit.py": OWN,
    "rhei_pipeline/sources/postgres/refusals.py": "a file in memory",
    "rhei_pipeline/mirrors/datafusion/local_files.py": FILES,
    "rhei_pipeline/model/forking.py": "the null device",
    "rhei_pipeline/model/durable.py": "files of ours; of a database its directory alone",
    "rhei_pipeline/mirrors/datafusion/checksums.py": FILES,
    "rhei_pipeline/mirrors/datafusion/object_store.py": FILES,
    "rhei_pipeline/mirrors/datafusion/store_cache.py": "a directory, held by flock",
    "rhei_pipeline/mirrors/locking.py": "a lock's file, held by flock, which closing leaves alone",
    "rhei_pipeline/holder/turn.py:refuse_turn": "a lock's file, held by flock",
    "rhei_pipeline/cli/commands/declaring.py:_keep_secret": "a file of variables, made anew",
    "rhei_pipeline/cli/prompt.py:_history": "the shell's history",
    "rhei_pipeline/cli/main.py:main": "the null device",
    "rhei_pipeline/cli/written_file.py": "a file that a user names, and none of the pipeline's",
    "rhei_pipeline/server/serve.py": "a certificate and its key",
    "rhei_pipeline/wiring/engine.py:open_oltp": "it opens no file that exists",
    "rhei_pipeline/dagster/relay.py:content": "a declaration",
    "examples/airline/data.py": "the example's rows, as they are shipped",
    "assets/flight_changes.py:_alone": "a lock's file",
    "examples/airline/browser.py": "a browser's files",
    "examples/airline/home.py": "a file of settings, and a lock's file",
    "examples/json_lines.py:append": "a file of text",
    "tests/behaviour/cli/test_unusable_places.py": "nothing has them open between commands",
    "tests/support/forked.py": "pipes",
    "tests/support/dagster_deployment.py": "settings, and logs of processes",
    "tests/support/pods.py": "logs of processes",
    "tests/support/sail_cluster.py": "logs of processes",
    "tests/support/spark_server.py": "logs of processes",
    "tests/behaviour/mirrors/test_shards_that_cannot_be_read.py:damaged": AFTER,
    "tests/behaviour/mirrors/test_shards_that_cannot_be_read.py:"
    "test_dead_letters_that_cannot_be_read_leave_out_their_shard_alone": FILES,
    "tests/behaviour/mirrors/test_opened_again.py:test_logged_bytes_count_where_no_file_grows": (
        "files of text, and no database"
    ),
    "tests/behaviour/cli/test_daily_use.py": BEFORE,
    "tests/behaviour/mirrors/test_foreign_tables.py": BEFORE,
    "tests/behaviour/mirrors/test_odd_places.py:"
    "test_a_buffer_without_one_of_its_files_is_whole_once_that_is_put_back": AFTER,
    "tests/behaviour/mirrors/test_collected_files.py": FILES,
    "tests/support/altered_tables.py:_copy": AFTER,
    "tests/behaviour/mirrors/test_opening.py": AFTER,
    "tests/dagster/conftest.py:engine": BEFORE,
    "tests/docs/test_dagster_page.py": BEFORE,
    "tests/dagster/test_unfinished_sessions.py": AFTER,
    "tests/dagster/test_live_costs.py": "a number that another process has written",
    "tests/behaviour/faults/test_bad_input.py": BEFORE,
    "tests/behaviour/faults/test_failing_disks.py": "the mirror is closed, or it is a device",
    "tests/behaviour/faults/test_two_sides.py:_damaged_database": AFTER,
    "tests/behaviour/faults/test_two_sides.py:_damaged_files": FILES,
    "tests/ways/test_files.py": "every engine that had the file open was closed before",
    "tests/ways/test_pipelines.py": BEFORE,
    "tests/behaviour/privacy/test_forgetting.py:holding": AFTER,
    "tests/behaviour/capture/test_buffer.py:damage": "the process that had it open has died",
    "tests/behaviour/capture/test_buffer.py:left_by_a_process_that_died": AFTER,
    "tests/behaviour/capture/test_buffer.py:test_damaged_files_are_named_or_made_good": AFTER,
    "tests/behaviour/copy/test_copy_ranges.py": FILES,
    "tests/behaviour/copy/test_range_faults.py": FILES,
    "tests/behaviour/mirrors/test_damage.py": AFTER,
    "tests/behaviour/mirrors/test_damaged_files.py": AFTER,
    "tests/behaviour/mirrors/test_delta.py": FILES,
    "tests/behaviour/mirrors/test_delta_of_others.py:contents": FILES,
    "tests/unit/test_formats.py": FILES,
    "tests/unit/test_buffered_cycle.py": AFTER,
    "tests/behaviour/query/test_cluster_snapshots.py": FILES,
    "tests/behaviour/copy/test_large_values.py": FILES,
    "tests/behaviour/mirrors/test_files.py": FILES,
    "tests/behaviour/server/test_flight.py": "a certificate and its key",
    "tests/behaviour/sqlite/test_file_locks.py:lose_lock_of": "it does the harm on purpose",
    "tests/behaviour/rows/test_nan.py": FILES,
    "tests/behaviour/mirrors/test_ownership.py:rewrite_manifest": FILES,
    "tests/behaviour/faults/test_ways_out.py": BEFORE,
    "tests/behaviour/mirrors/test_states_of_older_versions.py:declared": ARCHIVE,
    "tests/contract/test_database.py:database": BEFORE,
    "tests/stored/write_states.py": ARCHIVE,
    "tests/support/damage.py": AFTER,
    "tests/support/installed_postgres.py": "a server's settings, before it starts",
}


def opened(tree: ast.AST, inside: str = "") -> Iterator[tuple[str, int]]:
    """Yield the function and the line of each call that opens a file's bytes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and opens(node.func):
            yield inside, node.lineno
        name = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else inside
        yield from opened(node, name)


def named(called: ast.expr) -> str:
    """Return what a call names last: `open` of `path.open`."""
    return getattr(called, "attr", getattr(called, "id", ""))


def opens(called: ast.expr) -> bool:
    # Writing an expression out takes most of the time: it is done for the few that may be one.
    if named(called) not in OPENING | COPYING:
        return False
    owner, _, name = ast.unparse(called).rpartition(".")
    owner = owner.rpartition(".")[2]
    return (owner == "shutil" and name in COPYING) or (name in OPENING and owner not in ENGINES)


@pytest.mark.long
def test_nothing_opens_a_database_file_that_an_engine_may_have_open() -> None:
    found = {
        (str(path.relative_to(PROJECT)), function, line)
        for room in ROOMS
        for path in sorted((PROJECT / room).rglob("*.py"))
        for function, line in opened(ast.parse(path.read_text()))
    }
    unknown = [
        f"{file}:{line} in {function or 'the module'}"
        for file, function, line in sorted(found)
        if not {file, f"{file}:{function}"} & ALLOWED.keys()
    ]
    assert not unknown, "give a reason in ALLOWED, or have another process open it"
    used = {name for file, function, _ in found for name in (file, f"{file}:{function}")}
    assert ALLOWED.keys() <= used, "what is not needed any more is taken out"


def test_the_search_finds_every_way_to_open_a_file() -> None:
    code = """
def f(path):
    open(path); path.open("rb"); os.open(path, 0); path.read_bytes(); shutil.copyfile(path, "x")
    with pa.memory_map(path): shutil.copy2(path, "x")
    rhei.open(path); olap.open(); numbers.copy(); path.stat()
"""
    assert [line for _, line in opened(ast.parse(code))] == [3] * 5 + [4] * 2


@pytest.mark.long
def test_no_module_but_the_engines_own_opens_duckdb_or_sqlite() -> None:
    """Two of one library in a process break each other's locks; here, one module opens each."""
    engines = {
        "sqlite3": "rhei_pipeline/sources/sqlite/database.py",
        "duckdb": "rhei_pipeline/mirrors/duckdb/connecting.py",
    }
    others = {
        "rhei_pipeline/cli/demo.py": "the demo's application",
        "rhei_pipeline/dagster/resources.py": "a connection that an asset asks for",
        **dict.fromkeys(engines.values()),
    }
    others["rhei_pipeline/mirrors/duckdb/published_copy.py"] = (
        "a copy that nobody else knows of yet"
    )
    others["rhei_pipeline/mirrors/duckdb/forgetting.py"] = (
        "a new file that nobody else knows of yet, beside one that is closed"
    )
    others["rhei_pipeline/mirrors/duckdb/joint.py"] = "it is in memory, and attaches to read alone"
    others["rhei_pipeline/testing/stub_mirror.py"] = "it is in memory, and may open no file"
    opening = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "rhei_pipeline").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and named(node.func) == "connect"
        if ast.unparse(node.func).rpartition(".")[0] in engines
    }
    assert opening - others.keys() == set()
    assert set(engines.values()) <= opening
