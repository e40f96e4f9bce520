"""What a consumer of a table's changes gets, and the position that it keeps."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.errors import QueryError
from rhei_pipeline.model.changes import CHANGED_AT, Operation
from rhei_pipeline.model.schema import OPERATION, RESERVED_PREFIX, TableSchema

#: How the names of the columns begin that hold a row's values before its change. A source has no
#: such column, since the prefix is reserved.
OLD_PREFIX = f"{RESERVED_PREFIX}old_"

_FORM = re.compile(r"1-([0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{1,32})")
_NOTHING = "0"
#: Makes every number of 64 bits with a sign one without, in the same order.
_LIFT = 1 << 63


@dataclass(frozen=True, slots=True)
class ChangePosition:
    """A committed state of a temporal table in the mirror, after which a consumer goes on.

    As text it is short, and the texts of a table's positions sort as the states came.

    Attributes:
        late: How many commits had brought versions older than the newest one by then.
        newest: The latest instant at which a version had begun or ended by then, in microseconds
            since 1970; None: there was no version.
        lineage: Names who recorded that state, so that no other history is taken for it.
    """

    late: int
    newest: int | None
    lineage: str

    def __str__(self) -> str:
        lifted = 0 if self.newest is None else self.newest + _LIFT
        return f"1-{self.late:08x}-{lifted:016x}-{self.lineage or _NOTHING}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a position.

        Raises:
            QueryError: It is none.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None:
            raise QueryError(
                f"{text!r} is not a position of changes",
                hint="give the position that an earlier answer of 'changes' had, whole",
            )
        lifted, lineage = int(found[2], 16), found[3]
        newest = lifted - _LIFT if lifted else None
        return cls(int(found[1], 16), newest, "" if lineage == _NOTHING else lineage)


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What happened to a temporal table's rows since a position: at most one change a key.

    Attributes:
        table: The table's name.
        rows: `_rhei_operation` (I, U or D), the columns of the table (of a deleted row its key
            alone), `_rhei_changed_at`, and `_rhei_old_<column>` for each column outside the key.
        position: Give it to the next call: it then shows only what came later.
        snapshot: The rows are the whole table, as inserts; they replace what the consumer has.
    """

    table: str
    rows: pa.Table
    position: ChangePosition
    snapshot: bool = False

    @property
    def inserted(self) -> int:
        """Number of rows that came."""
        return self._count(Operation.INSERT)

    @property
    def updated(self) -> int:
        """Number of rows with other values than before."""
        return self._count(Operation.UPDATE)

    @property
    def deleted(self) -> int:
        """Number of rows that went."""
        return self._count(Operation.DELETE)

    def _count(self, operation: Operation) -> int:
        return int(pc.sum(pc.equal(self.rows[OPERATION], operation.value)).as_py() or 0)


@dataclass(frozen=True, slots=True)
class ChangeStream:
    """The same as `TableChanges`, in batches of bounded size.

    Attributes:
        batches: Each can be read once; closing the iterator ends the query.
        position: Keep it once all batches are applied.
        snapshot: As of `TableChanges`.
    """

    table: str
    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    position: ChangePosition
    snapshot: bool = False


def changes_schema(table: TableSchema) -> pa.Schema:
    """Return the schema of a table's changes."""
    return pa.schema(
        [
            pa.field(OPERATION, pa.string()),
            *table.arrow,
            pa.field(CHANGED_AT, pa.timestamp("us", tz="UTC")),
            *(pa.field(OLD_PREFIX + column.name, column.type) for column in table.value_columns),
        ]
    )
