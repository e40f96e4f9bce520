"""Finds two rows that had one key at once, in a part of the log that names whole rows.

With a full replica identity, rows are changed and deleted without any key. So while a table's key
is dropped, or is checked at commit only, two rows can have the same one, and the log does not say
which of them a key means.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from rhei_pipeline.changes.compaction import key_codes
from rhei_pipeline.model.schema import Column
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.logical import pgoutput
from rhei_pipeline.sources.postgres.types import admit_text

_UNIQUE = """
select i.indimmediate, i.indexrelid::bigint, (
    select v.oid::bigint from pg_constraint v
    where v.conrelid = i.indrelid and v.conindid = i.indexrelid and v.contype in ('p', 'u')
), array(select a.attname::text from unnest(i.indkey::int2[]) with ordinality k(attnum, place)
         join pg_attribute a on a.attrelid = i.indrelid and a.attnum = k.attnum
         where k.place <= i.indnkeyatts)
from pg_class c left join pg_index i on i.indrelid = c.oid and i.indisunique and i.indisvalid
    and i.indpred is null and i.indexprs is null
where c.oid = %s
"""


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A unique index of a table.

    Attributes:
        oids: Its number, and its constraint's. One that is made again has others.
        is_immediate: It is checked as each row is written, and not at commit.
    """

    names: frozenset[str]
    oids: frozenset[int]
    is_immediate: bool


def read_unique(connection: Connection, oid: int) -> Sequence[UniqueKey] | None:
    """Return the unique indexes of a table; None where the table is gone."""
    found = connection.execute(_UNIQUE.encode(), (oid,)).fetchall()
    keys = [
        UniqueKey(frozenset(names), frozenset(filter(None, oids)), is_immediate)
        for is_immediate, *oids, names in found
        if is_immediate is not None
    ]
    return keys if found else None


class Uniqueness(Enum):
    """When a key told rows apart, from a position on.

    AT_COMMITS: Within a transaction, two rows may have shared it.
    UNKNOWN: It was made unique since; the changes themselves have to tell.
    NEVER: Nothing makes it unique now.
    """

    ALWAYS = auto()
    AT_COMMITS = auto()
    UNKNOWN = auto()
    NEVER = auto()


def uniqueness(
    held: Sequence[UniqueKey] | None, key: Collection[str], since: Collection[int]
) -> Uniqueness:
    """Return when a key told rows apart from a position on.

    Args:
        held: The table's unique indexes as they are now; None where it is gone.
        key: The key's columns.
        since: The numbers of what made it unique at the position.
    """
    if held is None:
        return Uniqueness.ALWAYS
    own = [each for each in held if each.names <= {*key}]
    lasting = [each for each in own if each.oids.intersection(since)]
    if any(each.is_immediate for each in lasting):
        return Uniqueness.ALWAYS
    if lasting:
        return Uniqueness.AT_COMMITS
    return Uniqueness.UNKNOWN if own else Uniqueness.NEVER


class LoggedPart(NamedTuple):
    """Changes of a table that were logged in one way.

    Attributes:
        is_by_key: They name rows by the key itself. Then it was unique as each row was written.
    """

    buffer: bytes
    run: pgoutput.Run
    is_by_key: bool


@dataclass(frozen=True, slots=True)
class _Steps:
    """Rows that came, or rows that went.

    Attributes:
        order: Their order in the log.
        came: Whether it came.
        xid: Its transaction.
        key: Its key, as the mirror has it: texts that differ may be one.
        row: The texts of all that it held.
        is_told: Whether the log says all that it held.
        is_alone: Whether no other row had its key then.
    """

    order: np.ndarray
    came: np.ndarray
    xid: np.ndarray
    key: pa.Table
    row: pa.Table
    is_told: np.ndarray
    is_alone: np.ndarray


def are_told_apart(
    parts: Iterable[LoggedPart],
    key: Sequence[Column],
    unique: Uniqueness,
    *,
    is_whole: bool,
) -> bool:
    """Return whether a key tells the rows of all changes apart; what is sure is not looked for.

    `is_whole`: Some changes name rows by all that they hold.
    """
    if unique is Uniqueness.ALWAYS:
        return True
    if unique is Uniqueness.NEVER and is_whole:
        return False
    return not share_a_key(parts, key, at_commits=unique is Uniqueness.AT_COMMITS)


def share_a_key(parts: Iterable[LoggedPart], key: Sequence[Column], *, at_commits: bool) -> bool:
    """Return whether two rows had the same key at once, as far as changes tell, or may have had.

    Each key had one row before them, or none, and so it has behind them; with `at_commits`, behind
    each transaction. Where a row came first and one went last, another may have been there all
    along, unless the key was unique when it came.
    """
    steps: list[_Steps] = []
    emptied: list[int] = []
    for part in parts:
        if part.run.truncate:
            emptied += part.run.order.tolist()
        else:
            steps += _steps(part, key)
    if not steps:
        return False
    order, came, xid, told, alone = (
        np.concatenate([getattr(each, name) for each in steps])
        for name in ("order", "came", "xid", "is_told", "is_alone")
    )
    keys = key_codes(_together(each.key for each in steps))
    rows = key_codes(_together(each.row for each in steps))
    epoch = np.searchsorted(2 * np.sort(np.array(emptied, np.int64)), order)
    # An emptied table has no other row, until a transaction before this one has brought it.
    may_have = np.full(len(order), fill_value=True) if at_commits else epoch == 0
    may_have &= ~alone
    group = xid if at_commits else epoch
    place = np.lexsort((order, keys, group))
    came, keys, rows, group, told, may_have = (
        each[place] for each in (came, keys, rows, group, told, may_have)
    )
    follows = (keys[1:] == keys[:-1]) & (group[1:] == group[:-1])
    is_other = came[:-1] & ~came[1:] & told[1:] & told[:-1] & (rows[1:] != rows[:-1])
    is_shared = follows & ((came[1:] == came[:-1]) | is_other)
    first, last = np.append(True, ~follows), np.append(~follows, True)
    may_stand = came[first] & ~came[last] & may_have[first]
    return bool(is_shared.any() or may_stand.any())


def _steps(part: LoggedPart, key: Sequence[Column]) -> Iterable[_Steps]:
    """Return the rows of changes that went, and those that came."""
    changes = pgoutput.decode(part.buffer, part.run)
    gone = np.flatnonzero(~changes.has_new | changes.has_old | changes.is_update)
    live = np.flatnonzero(changes.has_new)
    names = changes.run.relation.columns
    became = {name: _became(changes, name) for name in names}
    was = {
        name: changes.texts(changes.old, name).but(~changes.has_old, became[name]) for name in names
    }
    for rows, texts, came in ((gone, was, False), (live, became, True)):
        whole = pa.table([texts[name].at(rows).read(changes.buffer) for name in names], names)
        yield _Steps(
            2 * changes.run.order[rows] + came,
            np.full(len(rows), came),
            changes.run.xid[rows],
            _key_of(whole, key),
            whole,
            changes.has_whole[rows] | came,
            np.full(len(rows), part.is_by_key),
        )


def _key_of(rows: pa.Table, key: Sequence[Column]) -> pa.Table:
    """Return the keys of rows; null what cannot be one."""
    own = [column for column in key if column.name in rows.column_names]
    found = (admit_text(rows[column.name].combine_chunks(), column)[0] for column in own)
    return pa.table([*found], [column.name for column in own])


def _became(changes: pgoutput.Changes, name: str) -> pgoutput.Texts:
    """Return a column of the new rows, of which the old ones have what was not sent again."""
    texts = changes.texts(changes.new, name)
    not_sent = changes.new.unchanged.get(name)
    return texts if not_sent is None else texts.but(not_sent, changes.texts(changes.old, name))


def _together(parts: Iterable[pa.Table]) -> pa.Table:
    """Return texts of rows that may have been logged with other columns."""
    return pa.concat_tables(parts, promote_options="default")
