"""Queries over several mirrors of files at once, each at one committed state of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import pyarrow as pa
from datafusion.catalog import Catalog, Schema

from rhei_pipeline.errors import RheiError
from rhei_pipeline.mirrors.datafusion.manifest import Manifest
from rhei_pipeline.mirrors.datafusion.reader import MirrorReader
from rhei_pipeline.mirrors.datafusion.session import CATALOGUE, Frame, ReadingSession
from rhei_pipeline.mirrors.datafusion.views import MAIN, relations_of
from rhei_pipeline.mirrors.joining import Part
from rhei_pipeline.model.cancellation import Cancel
from rhei_pipeline.model.progress import Ledger
from rhei_pipeline.model.query_limits import NO_LIMITS, AnswerLimits
from rhei_pipeline.model.schema import Table
from rhei_pipeline.model.streaming import Begun
from rhei_pipeline.sql.text import quote


class JointFiles:
    """Several mirrors of files under one session; whoever opened it closes it.

    Args:
        mirrors: Each mirror, as it is shown; all are closed with this.
        left_out: Why others cannot be read, by their places among all.
    """

    def __init__(
        self, mirrors: Sequence[tuple[Part, MirrorReader]], left_out: Mapping[int, RheiError]
    ) -> None:
        self._mirrors = mirrors
        self._opened = ExitStack()
        for _, mirror in mirrors:
            self._opened.callback(mirror.close)
        self._session = _JointSession(mirrors)
        #: The id of each mirror, in their order.
        self.mirror_ids: list[str] = [mirror.mirror_id for _, mirror in mirrors]
        #: Why others cannot be read, by their places among all.
        self.left_out = dict(left_out)

    def tables(self) -> list[dict[str, Table]]:
        """Return the tables of each mirror, in their order, by quoted name."""
        return [mirror.tables() for _, mirror in self._mirrors]

    def ledgers(self) -> list[Ledger]:
        """Return what each mirror's state has recorded, in their order."""
        return [mirror.ledger() for _, mirror in self._mirrors]

    def dead_letters(self) -> list[pa.Table]:
        """Return the open dead letters of each mirror, in their order."""
        return [mirror.dead_letters() for _, mirror in self._mirrors]

    def query(
        self,
        sql: str,
        params: Sequence[object] = (),
        begun: Begun | None = None,
        limits: AnswerLimits = NO_LIMITS,
    ) -> pa.Table:
        """Run one read-only statement over all mirrors.

        Raises:
            QueryError: Not one read-only statement, or DataFusion refuses it.
            QueryLimitError: The answer is larger than `limits` allow.
            MirrorBusyError: A mirror no longer holds the state that is read.
        """
        cancel = None if begun is None else Cancel.given(begun)
        with ExitStack() as kept:
            for _, mirror in self._mirrors:
                kept.enter_context(mirror.kept())
            # Where no table is found, the error names the first mirror, if that is still empty.
            return self._session.query(sql, params, self._mirrors[0][1].manifest, cancel, limits)

    def close(self) -> None:
        """Release all states; safe to repeat."""
        self._opened.close()


class _JointSession(ReadingSession):
    """A session that shows the views of other sessions, so that filters reach their files."""

    def __init__(self, mirrors: Sequence[tuple[Part, MirrorReader]]) -> None:
        super().__init__(mirrors[0][1].store)
        self._mirrors = mirrors
        self._joined: set[str] = set()
        self._catalogues = {CATALOGUE}
        for _, mirror in mirrors:
            mirror.files.register(self._context)

    def proof(self, words: set[str] | None) -> Callable[[], None]:
        """Return what raises an error if a mirror's file was lost or replaced."""
        proofs = [mirror.session.proof(words) for _, mirror in self._mirrors]

        def prove() -> None:
            for proof in proofs:
                proof()

        return prove

    def _relations(self, _manifest: Manifest) -> set[str]:
        return {name for _, mirror in self._mirrors for name in relations_of(mirror.manifest)}

    def _show(self, _manifest: Manifest, words: set[str] | None) -> None:
        self.damaged = {}
        for part, mirror in self._mirrors:
            for frame in mirror.session.frames(mirror.manifest, words):
                table = frame[1]
                if not table.is_mirrored or part.takes(mirror.manifest.name_of(table)):
                    self._show_frame(part, frame)
            self.damaged.update(mirror.session.damaged)

    def _show_frame(self, part: Part, frame: Frame) -> None:
        view, _, rows = frame
        namespace, relation = (name.replace('""', '"') for name in view[1:-1].split('"."', 1))
        for place in _places(part.schema, namespace):
            name = ".".join(map(quote, (*place, relation)))
            if name not in self._joined:
                self._create_place(*place)
                self._context.register_table(name, rows.into_view())
                self._joined.add(name)

    def _create_place(self, catalogue: str, schema: str) -> None:
        if catalogue not in self._catalogues:
            self._context.register_catalog_provider(catalogue, Catalog.memory_catalog())
            self._catalogues.add(catalogue)
        known = self._context.catalog(catalogue)
        if schema not in known.schema_names():
            known.register_schema(schema, Schema.memory_schema())


def _places(schema: str | None, namespace: str) -> list[tuple[str, str]]:
    """Return the catalogue and schema under which a mirror's namespace is found.

    `shop.orders` is in a schema of that name, `shop.sales.orders` in a catalogue.
    """
    if schema is None:
        return [(CATALOGUE, namespace)]
    # DataFusion lower-cases what is not quoted.
    forms = dict.fromkeys((schema, schema.lower()))
    own = [(CATALOGUE, form) for form in forms] if namespace == MAIN else []
    return [*own, *((form, namespace) for form in forms)]
