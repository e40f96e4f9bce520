"""Compares mirror and source at one state, to which the mirror is brought on trial."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

from rhei_pipeline.capabilities import snapshot_of_rows
from rhei_pipeline.errors import MirrorDamagedError
from rhei_pipeline.model.coverage import Coverage
from rhei_pipeline.model.reports import RowParity, TableVerification
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import MirrorTransaction, SourceSnapshot
from rhei_pipeline.sync.context import PipelineContext
from rhei_pipeline.sync.cycle import apply_pending
from rhei_pipeline.sync.repair_keys import Mending, RepairRange, find_differences
from rhei_pipeline.sync.verify import broken_histories, count_rows, verify_sample, verify_tables
from rhei_pipeline.sync.verify_parts import verify_part

_Found = TypeVar("_Found")


class Comparisons:
    """Compares the tables that take part with their source.

    Args:
        context: What the pipeline works on.
    """

    def __init__(self, context: PipelineContext) -> None:
        self._context = context
        self._source, self._mirror = context.source, context.mirror
        self._parts, self._watch = context.parts, context.watch
        self._options, self._on_step = context.options, context.on_step

    def verify(
        self, name: str | None, share: float | None = None
    ) -> dict[str, TableVerification] | None:
        """Compare every row of one table, or of all; those with damaged files are never equal.

        `share`: Only rows that are drawn by lot, each with that chance. None where a migration
        came between: the tables are to be synced, and looked at again.
        """
        found = self._verified(name, share)
        if found is None:
            return None
        if name is not None:
            self._context.table(name)  # raises what it was left out for
            return found
        damaged = {
            left_out: TableVerification.of_damaged(left_out, error)
            for left_out, error in self._parts.left_out.errors.items()
            if isinstance(error, MirrorDamagedError)
        }
        return found | damaged

    def _verified(
        self, name: str | None, share: float | None
    ) -> dict[str, TableVerification] | None:
        chosen = list(self._parts.tables.values()) if name is None else [self._context.table(name)]
        return self._parts.without_failing(chosen, partial(self._compared, share))

    def _compared(
        self, share: float | None, tables: Sequence[Table]
    ) -> dict[str, TableVerification] | None:
        def compare(
            snapshot: SourceSnapshot, transaction: MirrorTransaction
        ) -> dict[str, TableVerification]:
            rows, blame = self._options.batch_rows, self._parts.blame
            if share is None:
                return verify_tables(tables, snapshot, transaction, self._mirror, rows, blame)
            found = {}
            for table in tables:
                with blame.of(table.name):
                    found[table.name] = verify_sample(table, snapshot, transaction, share, rows)
            return found

        return self._at_rows_of(tables, compare)

    def verify_part(
        self, name: str, rows: int, known: Callable[[Table], Coverage]
    ) -> TableVerification | None:
        """Compare so many of a table's rows, behind those that were compared before.

        None where a migration came between.
        """
        table = self._context.table(name)

        def look(
            snapshot: SourceSnapshot, transaction: MirrorTransaction
        ) -> dict[str, TableVerification]:
            with self._parts.blame.of(table.name):
                sought = (rows, self._options.batch_rows)
                return {
                    table.name: verify_part(
                        *(table, snapshot, transaction, sought, known(table)),
                        lambda table: broken_histories(table, self._mirror),
                    )
                }

        found = self._parts.without_failing(
            [table], lambda rest: self._at_rows_of(rest, look) if rest else {}
        )
        if found is None:
            return None
        error = self._parts.left_out.errors.get(table.name)
        if isinstance(error, MirrorDamagedError):
            return TableVerification.of_damaged(table.name, error)
        self._context.table(name)  # raises what it was left out for
        return found[table.name]

    def differences(self, name: str, asked: RepairRange) -> Mending | None:
        """Find what differs in a range of keys; None where a migration came between."""
        table, rows = self._context.table(name), self._options.batch_rows
        return self._at_rows_of(
            [table],
            lambda snapshot, transaction: find_differences(
                table, snapshot, transaction, asked, rows
            ),
        )

    def parity(self, name: str) -> RowParity | None:
        """Count a table's rows on both sides; None where a migration came between."""
        table = self._context.table(name)
        return self._at_rows_of(
            [table], lambda snapshot, transaction: count_rows(table, snapshot, transaction)
        )

    def _at_rows_of(
        self,
        tables: Iterable[Table],
        look: Callable[[SourceSnapshot, MirrorTransaction], _Found],
    ) -> _Found | None:
        """Look at one source state with its rows, and the mirror as it would be at that state.

        The mirror is only tried there: what lies between there and the head is for a cycle to
        apply. None where the source has another schema by now than the tables were synced with.
        """
        with snapshot_of_rows(self._source) as snapshot:
            if snapshot.schema_version != self._watch.version:
                return None
            with self._mirror.transaction(trial=True) as transaction:
                for table in tables:
                    with self._parts.blame.of(table.name):
                        apply_pending(table, snapshot, transaction, self._options, self._on_step)
                return look(snapshot, transaction)
