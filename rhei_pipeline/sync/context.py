"""What the parts of one pipeline share: its two sides, its tables, its lock."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

from rhei_pipeline.errors import PermanentError, SourceBusyError
from rhei_pipeline.model.schema import Table
from rhei_pipeline.protocols import ChangeSource, Mirror, OnStep
from rhei_pipeline.sync.kept_history import find_mirrored, not_followed
from rhei_pipeline.sync.naming import find_table
from rhei_pipeline.sync.options import SyncOptions
from rhei_pipeline.sync.participants import Participants
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.sync.schema_watch import SchemaWatch


@dataclass(frozen=True, slots=True)
class PipelineContext:
    """What the parts of a pipeline work on.

    Attributes:
        lock: Held during a piece of work; one at a time.
        source, mirror, registry: Where changes come from, where they go, what they looked like.
        parts: The tables that take part, and those that are left out.
        watch: Follows the source's schema, and installs capture.
        options: How much at once.
        on_step: Called at each named step.
    """

    lock: AbstractContextManager[object]
    source: ChangeSource
    mirror: Mirror
    registry: Registry
    parts: Participants
    watch: SchemaWatch
    options: SyncOptions
    on_step: OnStep

    @property
    def not_followed(self) -> Mapping[str, datetime]:
        """The tables of the mirror that no sync brings up to date any more, and since when."""
        return not_followed(self.mirror.ledger(), self.parts.tables.keys())

    def table(self, name: str) -> Table:
        """Return a table that takes part by its name, in any case.

        Raises:
            SchemaError: It is not one of the pipeline's.
            PermanentError: It is left out; why.
        """
        return find_table(name, self.parts.tables, self.parts.left_out.errors)

    def mirrored(self, name: str) -> Table:
        """Return a table of the mirror; one that is not followed is as the mirror has it.

        Raises:
            SchemaError: It is not in the mirror either.
        """
        try:
            return self.table(name)
        except PermanentError:
            found = find_mirrored(name, self.mirror)
            if found is None:
                raise
            return found


def keeps_changing() -> SourceBusyError:
    """Return the error for a source whose schema was another one at each attempt."""
    return SourceBusyError(
        "the source's schema keeps changing", hint="sync again once migrations are done"
    )
