"""The records of capture as they were read last: only those that changed are read again."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.triggers import registry
from rhei_pipeline.sources.postgres.triggers.logs import Generation
from rhei_pipeline.sources.postgres.triggers.registry import Registered
from rhei_pipeline.sources.postgres.triggers.retired_logs import read_formers


class KnownLogs:
    """Records of tables' capture, by the table's oid.

    A record that is as it was stays the same object, and with it what was found out of it.
    """

    def __init__(self) -> None:
        self._found: dict[int, Registered] = {}
        self._marks: dict[int, str] = {}

    def get(self, relation: int) -> Registered | None:
        """Return a table's record; None if it has none."""
        return self._found.get(relation)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the tables."""
        return iter(self._found)

    def with_log(self, identity: str) -> Registered | None:
        """Return the record that keeps a log of this identity."""
        return next((found for found in self._found.values() if found.has(identity)), None)

    def put(self, relation: int, found: Registered | None) -> None:
        """Keep what was read of one table alone."""
        self._marks.pop(relation, None)
        if found is None:
            self._found.pop(relation, None)
        else:
            self._found[relation] = self._as_known(found, found.formers)

    def read(
        self, connection: Connection, server: str, oids: Sequence[int], mirror: str
    ) -> Collection[Registered]:
        """Return the records of tables, and of all that a mirror has read."""
        marks = {relation: self._marks[relation] for relation in self._found.keys() & self._marks}
        count, changed = registry.changed(connection, server, oids, mirror, marks.values())
        found = {relation: self._found[relation] for relation in marks}
        found |= {one.relation: one for _, one in changed}
        if count != len(found):  # one of them has no record any more
            marks = {}
            count, changed = registry.changed(connection, server, oids, mirror, ())
            found = {one.relation: one for _, one in changed}
        formers = read_formers(connection, list(found)) if found else {}
        self._found = {
            relation: self._as_known(one, formers.get(relation, ()))
            for relation, one in found.items()
        }
        self._marks = marks | {one.relation: mark for mark, one in changed}
        return self._found.values()

    def _as_known(self, found: Registered, formers: tuple[Generation, ...]) -> Registered:
        before = self._found.get(found.relation)
        if found.formers != formers:
            found = replace(found, formers=formers)
        return before if before is not None and before.is_same(found) else found
