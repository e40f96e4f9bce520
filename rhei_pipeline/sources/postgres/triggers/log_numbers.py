"""Which trigger logs nobody has written to, known without reading them.

A log numbers its entries by a sequence, whose last number tells of all that were made, also of
those that are not seen yet. Whoever takes a number has changed a row, and so is a transaction
with a number of its own by then. Once all are over that had begun when the last number was read,
and the log has nothing new then, nothing comes into it under that number or a smaller one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.identity import array_of
from rhei_pipeline.sources.postgres.triggers.logs import Generation
from rhei_pipeline.sources.postgres.triggers.position import VisibleText

#: Who may not ask a sequence reads the log itself; and so where a session takes more numbers at
#: once than it gives, whose last number does not change with each.
_SEQUENCES = """
select name, sequence::oid::bigint from unnest(%s::text[]) name
cross join lateral (select pg_get_serial_sequence(name, 'seq')::regclass) found(sequence)
join pg_catalog.pg_sequence on seqrelid = sequence
where seqcache = 1 and has_sequence_privilege(sequence, 'select')
"""
#: With the sequence's file, which is another one where it was altered, or made to count from its
#: start again; how many transactions have begun since the first, of which only 32 bits are told;
#: and since when the server runs: behind a pooler, a session outlives it.
_LAST_NUMBERS = """
select s::bigint, pg_sequence_last_value(s), pg_relation_filenode(s)::bigint,
    (select age('3'::xid)),
    (select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint)
from unnest(%s::oid[]) s
"""
_FIRST, _ROUND = 3, 1 << 32


@dataclass(slots=True)
class _Counted:
    """What is known of a log's numbers.

    Attributes:
        log: Its identity.
        sequence: The oid of the sequence that numbers its entries.
        position: The proof of the position behind which entries are looked for.
        last: The last number that was given, as it was read, and the file; None if unknown.
        begun: The id of the next transaction to begin, as read after `last`: whoever has taken a
            number up to that one has a smaller id. None until the next snapshot, which asks for it.
        is_quiet: All transactions with a smaller id are over, and there was nothing new.
    """

    log: str
    sequence: int
    position: str
    last: tuple[int, int] | None = None
    begun: int | None = None
    is_quiet: bool = False


class LogNumbers:
    """The numbers of logs as they were read last; losing them only costs reads."""

    def __init__(self) -> None:
        self._known: dict[str, _Counted] = {}
        self._started: int | None = None

    def forget(self) -> None:
        """Forget all: another server, or an older state of one, may give the same numbers."""
        self._known.clear()
        self._started = None

    def untouched(
        self,
        connection: Connection,
        visible: VisibleText,
        logs: Mapping[str, tuple[Generation, str]],
    ) -> Collection[str]:
        """Return the tables of whose logs nothing can be new behind a position.

        `logs` are the log and the position's proof of each table, to be asked once a snapshot.
        """
        self._follow(connection, logs)
        known = {name: self._known[name] for name in logs if name in self._known}
        asked = array_of([counted.sequence for counted in known.values()])
        rows = connection.execute(_LAST_NUMBERS.encode(), (asked,)).fetchall()
        if not rows:
            return []
        *_, age, started = rows[0]
        if self._started not in {None, started}:
            self.forget()
            return []
        self._started = started
        given = {of: (number, file) for of, number, file, *_ in rows if number is not None}
        begun = visible.high + (_FIRST + age - visible.high) % _ROUND
        for name, counted in known.items():
            last = given.get(counted.sequence)
            if last is not None and counted.last is not None and last[1] != counted.last[1]:
                del self._known[name]
                counted.is_quiet = False
            elif last is None or last != counted.last:
                counted.last, counted.begun, counted.is_quiet = last, None, False
            elif counted.begun is None:
                counted.begun = begun
        return [name for name, counted in known.items() if counted.is_quiet]

    def note_quiet(self, table: str, visible: VisibleText) -> None:
        """Note that a snapshot sees nothing new in a table's log."""
        counted = self._known.get(table)
        if counted is not None and counted.begun is not None:
            counted.is_quiet = visible.low >= counted.begun

    def _follow(self, connection: Connection, logs: Mapping[str, tuple[Generation, str]]) -> None:
        """Forget what is known of tables whose log or position is another one."""
        new = {}
        for name, (log, position) in logs.items():
            counted = self._known.get(name)
            if counted is None or counted.log != log.identity:
                new[log.name] = name
            elif counted.position != position:
                self._known[name] = _Counted(log.identity, counted.sequence, position)
        if new:
            names = f"{{{','.join(new)}}}"
            for log_name, sequence in connection.execute(_SEQUENCES.encode(), (names,)).fetchall():
                log, position = logs[name := new.pop(log_name)]
                self._known[name] = _Counted(log.identity, sequence, position)
            for name in new.values():
                self._known.pop(name, None)
