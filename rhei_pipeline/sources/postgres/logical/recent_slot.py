"""A slot for the newest part of the log, while a table needs the log from long before.

A server decodes its log from where a slot stands. The slot of a mirror keeps what a table needs
that is being copied, or is left out: so each cycle of the other tables would have all of that
decoded again. A temporary copy of the slot goes on with those tables. It ends with its session,
and with any error there.
Source: postgresql.org/docs/18/functions-admin.html#FUNCTIONS-REPLICATION.
"""

import logging
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

import psycopg

from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.logical.moment import Slot, lsn_text
from rhei_pipeline.sources.postgres.logical.sessions import LogSessions

_log = logging.getLogger(__name__)

#: Tables that are so far behind the newest position have fallen behind; others may be idle.
BEHIND_BYTES = 32 * 2**20
#: So far the slot itself may be behind the tables that it is for.
STEP_BYTES = 2**20

_COPY = b"select from pg_copy_logical_replication_slot(%s, %s, true)"
_ADVANCE = b"select from pg_replication_slot_advance(%s, %s::pg_lsn)"
_DROP = b"select pg_drop_replication_slot(%s)"
#: What a server says that has no slot left, or lets us make none, or has lost the mirror's.
_REFUSED = (
    psycopg.errors.ConfigurationLimitExceeded,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.ObjectInUse,
    psycopg.errors.ObjectNotInPrerequisiteState,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
)


class RecentSlot:
    """A temporary copy of a mirror's slot, further on in the log.

    Args:
        sessions: Where the server is asked, and decodes.
        name: The mirror's slot.

    Not for several threads at once.
    """

    def __init__(self, sessions: LogSessions, name: str) -> None:
        self._sessions, self._name = sessions, name
        self._session: Connection | None = None
        self._slot: Slot | None = None
        self._refused_in: Connection | None = None

    @property
    def slot(self) -> Slot | None:
        """The slot, and from where it has the log; None where there is none."""
        if self._session is not None and self._session is not self._sessions.decoding:
            self._session = self._slot = None  # it ended with its session
        return self._slot

    def follow(self, positions: Collection[int], confirmed: int) -> None:
        """Keep the slot where the tables need it that are not far behind; else do without.

        Args:
            positions: From where tables need the log; what committed before was visible to all.
            confirmed: From where the mirror's slot has it.
        """
        newest = max(positions)
        place = min(each for each in positions if each >= newest - BEHIND_BYTES)
        slot = self.slot
        if place - confirmed <= BEHIND_BYTES:
            self.drop()
            return
        if slot is None:
            self._slot = slot = self._copied(self._sessions.decoding, confirmed)
        if slot is not None and place - slot.confirmed > STEP_BYTES:
            try:
                self._sessions.decoding.execute(_ADVANCE, (slot.name, lsn_text(place)))
            except (
                psycopg.errors.UndefinedObject,
                # It is further on: the mirror's slot was dropped and created again before the copy.
                psycopg.errors.ObjectNotInPrerequisiteState,
            ):
                self.forget()
            else:
                self._slot = replace(slot, confirmed=place)

    def drop(self) -> None:
        """Do without it; safe to repeat."""
        slot, session = self.slot, self._session
        self._session = self._slot = self._refused_in = None
        if slot is not None and session is not None:
            with suppress(psycopg.errors.UndefinedObject):
                session.execute(_DROP, (slot.name,))

    def forget(self) -> None:
        """Note that the server has dropped it, as it does after an error in its session."""
        self._session = self._slot = None

    def _copied(self, session: Connection, confirmed: int) -> Slot | None:
        if session.is_pooled or session is self._refused_in:
            return None
        name = f"{self._name}_{session.info.backend_pid}"
        try:
            session.execute(_COPY, (self._name, name))
        except _REFUSED as error:
            _log.warning(
                "slot %r has no copy for tables that are in place: %s; each of their cycles has"
                " the log decoded from where another table needs it",
                self._name,
                type(error).__name__,
            )
            self._refused_in = session
            return None
        self._session = session
        return Slot(name, confirmed, lost=False)
