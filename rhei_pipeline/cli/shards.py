"""Which shards of a declaration a command works on: one, the one with its table, or each in turn.

A command is written for one pipeline. It is called again for each shard that it concerns.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from rhei_pipeline.cli.failures import failures_told
from rhei_pipeline.cli.shard_choice import SeveralShardsError, choosing
from rhei_pipeline.errors import RheiError, SchemaError

if TYPE_CHECKING:
    from rhei_pipeline.settings.model import Settings
    from rhei_pipeline.settings.shards import Sharding

#: Commands that do the same for each shard.
_FOR_EACH = {
    "adopt_command",
    "bridge_command",
    "check",
    "copy",
    "dead_letters",
    "forget",
    "info",
    "maintain",
    "schema",
    "status",
    "sync",
    "verify",
}
#: Formats of which one cannot stand behind another.
_WHOLE = {"csv", "parquet"}
#: Commands that ask the source alone, which all shards have in common.
_FOR_ANY = {"execute"}
#: Commands for a table that may be in a shard whose table it is no longer: that one is meant.
_FOR_ONE = {"drop_table", "unregister"}


def run_on_shards(
    command: Callable[..., None], options: Mapping[str, Any], shard: int | None
) -> None:
    """Run a command on the shard that is given; without one, on those that it concerns.

    Raises:
        SeveralShardsError: The command is for one shard, and none is given.
    """
    try:
        with choosing(shard):
            command(**options)
    except SeveralShardsError as several:
        _run_on_all(command, options, several)


def _run_on_all(
    command: Callable[..., None], options: Mapping[str, Any], several: SeveralShardsError
) -> None:
    name, sharding = command.__name__, several.settings.sharding
    if name in _FOR_ONE:
        raise several
    if options.get("table") is not None and sharding is not None:
        _run_on_its_own(command, options, several.settings, sharding)
        return
    if name in _FOR_EACH and options.get("watch") is None and not _is_one_document(options):
        shards = list(range(1, several.count + 1))
    elif name in _FOR_ANY or options.get("hint") == "oltp":
        shards = [1]
    elif name == "query" and _can_ask_all(options):
        _query_all(options, several)
        return
    else:
        raise several
    _run_each(command, options, shards, several.count)


def _run_on_its_own(
    command: Callable[..., None],
    options: Mapping[str, Any],
    settings: "Settings",
    sharding: "Sharding",
) -> None:
    """Run a command for one table on its shard.

    Raises:
        SchemaError: No shard has it; names the nearest of all tables.
    """
    from rhei_pipeline.sync.naming import find_known
    from rhei_pipeline.wiring.source import known_tables

    name = options["table"]
    try:
        _run_each(command, options, [sharding.shard_of(name)], sharding.count)
    except SchemaError:
        # A shard knows its own tables, and a misspelt name is the shard's of its hash.
        known = {table.name for table in settings.tables or ()}
        for pipeline in settings.pipelines():
            known |= known_tables(pipeline).tables.keys()
        if known:
            find_known(name, known)
        raise


def _run_each(
    command: Callable[..., None], options: Mapping[str, Any], shards: list[int], count: int
) -> None:
    from rhei_pipeline.cli.options import FAILED
    from rhei_pipeline.cli.output import notes, print_error

    codes = []
    for shard in shards:
        if len(shards) > 1:
            notes.print(f"shard {shard} of {count}")
        try:
            with failures_told(as_json=len(shards) > 1 and options["json_"]), choosing(shard):
                command(**options)
        except typer.Exit as ended:
            codes.append(ended.exit_code)
        except RheiError as error:
            if len(shards) == 1:
                raise
            print_error(str(error))
            codes.append(FAILED)
    if any(codes):
        raise typer.Exit(FAILED if FAILED in codes else max(codes))


def _is_one_document(options: Mapping[str, Any]) -> bool:
    """Return whether rows are written to where those of one shard would replace another's."""
    return options.get("output") is not None or options.get("format_") in _WHOLE


def _can_ask_all(options: Mapping[str, Any]) -> bool:
    """Return whether a query can be answered by all mirrors as they are; no other bound is kept."""
    is_statement = options["sql"] not in (None, "-") and not options["explain"]
    is_of_mirrors = options["hint"] != "cluster" and options["max_staleness"] is None
    return is_statement and is_of_mirrors


def _query_all(options: Mapping[str, Any], several: SeveralShardsError) -> None:
    """Answer a query from the mirrors of all shards."""
    from rhei_pipeline.cli.output import name_missing
    from rhei_pipeline.cli.rows import RowWriter
    from rhei_pipeline.holder.reader import reader

    asked = {"as_json": options["json_"], "file": options["output"], "limit": options["limit"]}
    with choosing(1):  # by which the files of the others are known, too
        writer = RowWriter.asked(options["format_"], options["config"], **asked)
    with reader(several.settings) as opened:
        found = opened.query(str(options["sql"]))
    writer.write(found)
    name_missing(found)
