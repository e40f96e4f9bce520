"""Where in the log a copy begins: before all that its snapshots do not see."""

from rhei_pipeline.sources.postgres.connection import Connection
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.logical import slots
from rhei_pipeline.sources.postgres.logical.moment import lsn_number
from rhei_pipeline.sources.waiting import wait_until

_HEAD = "select pg_current_wal_flush_lsn()::text"
#: For a standby it waits no more than for a transaction that has written nothing.
_AT_ONCE = {"synchronous_commit": "local"}
#: A transaction of its own: a snapshot's end would leave out one that runs and is the newest.
#: With a message, which no reader asks for, its commit is flushed at once: a state of rows is read
#: next, and would wait until the server flushes the log by itself, for a fifth of a second.
_NEWEST = "select pg_current_xact_id()::text::bigint from pg_logical_emit_message(true, 'rhei', '')"
_OLDEST_RUNNING = "select pg_snapshot_xmin(pg_current_snapshot())::text::bigint"


class CopyStart:
    """Waits until every transaction that was running at a place of the log has ended.

    Their commits may be in the log already although no snapshot sees them yet. Afterwards
    everything that a snapshot does not see is in the log after that place. Where one of them takes
    longer than a copy waits, the place is kept: a later try, which finds them ended, begins there,
    whatever has begun since.
    """

    def __init__(self) -> None:
        self._place: tuple[int, int] | None = None  # in the log, and the transactions before it
        self._is_settled = False

    @property
    def needed_from(self) -> int | None:
        """From where a copy that still waits needs the log; None where none does."""
        return None if self._place is None else self._place[0]

    def wait(self, connection: Connection, seconds: float) -> int:
        """Return the place in the log; wait so long only where no try has waited before.

        Raises:
            TableBusyError: One of the transactions has not ended.
        """
        if self._place is None:
            (head,) = one(connection, _HEAD)
            with connection.atomic(settings={**connection.settings, **_AT_ONCE}):
                (newest,) = one(connection, _NEWEST)
            self._place = lsn_number(head), newest
        else:
            seconds = 0.0
        start, newest = self._place

        def ended() -> bool:
            (oldest,) = one(connection, _OLDEST_RUNNING)
            return bool(oldest >= newest)

        self._is_settled = self._is_settled or wait_until(ended, seconds)
        if not self._is_settled:
            raise slots.older_transaction(connection)
        return start

    def let_go(self) -> None:
        """Forget a place at which a copy has begun: the copy now keeps the log from there."""
        if self._is_settled:
            self.forget()

    def forget(self) -> None:
        """Forget the place, also where a copy waits."""
        self._place, self._is_settled = None, False
