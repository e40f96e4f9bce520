"""Opens several mirrors, each at one committed state, for a query over all of them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from rhei_pipeline.errors import RheiError, SettingsError, needs_extra
from rhei_pipeline.mirrors.duckdb.joint import JointDuckDB
from rhei_pipeline.mirrors.joining import Part
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.settings.mirror import MirrorSettings
from rhei_pipeline.wiring.mirror import read_files, refuse_unread

if TYPE_CHECKING:
    from rhei_pipeline.mirrors.datafusion.reader import MirrorReader


class JointMirrors(Protocol):
    """Several mirrors that one statement reads, each at one committed state.

    One that cannot be read is left out: what is told of each is told of the others, in their order.

    Attributes:
        mirror_ids: The id of each.
        left_out: Why those that are left out cannot be read, by their places among all.
    """

    mirror_ids: list[str]
    left_out: dict[int, RheiError]

    def tables(self) -> list[dict[str, Table]]:
        """Return the tables of each, in their order, by quoted name."""

    def ledgers(self) -> list[Ledger]:
        """Return what each mirror has recorded, in their order."""

    def dead_letters(self) -> list[pa.Table]:
        """Return the open dead letters of each mirror, in their order."""

    def query(
        self,
        sql: str,
        params: Sequence[Any] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement over all mirrors, in their SQL."""

    def close(self) -> None:
        """Release all states; safe to repeat."""


def read_together(mirrors: Sequence[tuple[Part, MirrorSettings, Path | None]]) -> JointMirrors:
    """Open mirrors for reading alone; whoever opened them closes them.

    Args:
        mirrors: Each with how it is shown, and the copy of a DuckDB file to be read instead.

    Raises:
        RheiError: None can be read: why the first one cannot.
        SettingsError: They are of two kinds.
    """
    kinds = {mirror.kind for _, mirror, _ in mirrors}
    if len(kinds) > 1:
        raise SettingsError(
            "mirrors of DuckDB and of files are read by two engines",
            hint="give all of them one 'mirror.kind', or ask each by a reader of its own",
        )
    if kinds == {"duckdb"}:
        return _databases(mirrors)
    with needs_extra("datafusion", "these mirrors"), ExitStack() as opened:
        from rhei_pipeline.mirrors.datafusion.joint import JointFiles

        read = list[tuple[Part, "MirrorReader"]]()
        left_out = dict[int, RheiError]()
        for place, (part, mirror, _) in enumerate(mirrors):
            try:
                refuse_unread(mirror)
                reader = read_files(mirror)
                opened.callback(reader.close)
                reader.dead_letters()  # of which each answer tells
                read.append((part, reader))
            except RheiError as error:
                left_out[place] = error
        if not read:
            raise next(iter(left_out.values()))
        joint = JointFiles(read, left_out)
        opened.pop_all()
    return joint


def _databases(mirrors: Sequence[tuple[Part, MirrorSettings, Path | None]]) -> JointDuckDB:
    for _, mirror, _ in mirrors:
        if mirror.in_memory:
            refuse_unread(mirror)
    files = [(part, copy or mirror.path) for part, mirror, copy in mirrors]
    copies = {copy: mirror.path for _, mirror, copy in mirrors if copy is not None}
    return JointDuckDB(files, mirrors[0][1].memory_limit, copies)
