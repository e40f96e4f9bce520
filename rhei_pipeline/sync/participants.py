"""The tables that take part in a sync; one with which work fails is left out, the rest go on."""

from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from rhei_pipeline.errors import MirrorConflictError, PermanentError, SourceUnreachableError
from rhei_pipeline.model.blame import Blame, own_fault
from rhei_pipeline.model.left_out import LeftOut
from rhei_pipeline.model.schema import Table

_Result = TypeVar("_Result")


class Participants:
    """The tables that take part, and those that are left out.

    Attributes:
        tables: Those that take part, by name.
        left_out: The others.
        blame: Which table is worked on.
        generation: Grows whenever `tables` changes.
    """

    def __init__(self) -> None:
        self.tables: dict[str, Table] = {}
        self.left_out = LeftOut()
        self.blame = Blame()
        self.generation = 0

    def without_failing(
        self,
        tables: Sequence[Table],
        work: Callable[[Sequence[Table]], _Result],
        failing: set[str] | None = None,
    ) -> _Result:
        """Do a piece of work for all tables but those with which it fails; leave these out.

        Their names are added to `failing`.
        """
        rest, is_again = tables, False
        while True:
            self.blame.clear()
            try:
                return work(rest)
            except (SourceUnreachableError, MirrorConflictError):
                # A connection that was kept may have ended with its server.
                if is_again:
                    raise
                is_again = True
                continue
            except Exception as error:  # noqa: BLE001  (one table's, or raised again)
                name = self.leave_out(error, [table.name for table in rest])
            rest = [table for table in rest if table.name != name]
            if failing is not None:
                failing.add(name)

    def leave_out(self, error: Exception, among: Collection[str]) -> str:
        """Leave out the table with which work failed; raise what is no fault of one of these.

        Returns:
            The table's name.
        """
        fault = own_fault(error, self.blame.table)
        if fault is None or fault.table is None or fault.table not in among:
            raise error
        self.drop(fault.table, fault, failed=True, at_work=True)
        return fault.table

    def drop(
        self, name: str, fault: PermanentError, *, failed: bool, at_work: bool = False
    ) -> None:
        """Leave out a table for its fault; see `LeftOut.add`."""
        self.left_out.add(name, fault, failed=failed, at_work=at_work)
        self.tables.pop(name, None)
        self.generation += 1
