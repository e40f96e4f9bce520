"""The server's sessions for capture from its log: one is asked, in the other the log is decoded.

A session in which the server decodes its log forgets all that it knew of the catalogue, and plans
each of its statements again. What every cycle asks is asked elsewhere, where its plans are kept.
"""

from collections.abc import Callable

from rhei_pipeline.errors import SourceFullError
from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.database import PostgresDatabase
from rhei_pipeline.sources.postgres.identity import another_server, origin, refuse_standby

#: Each question is planned once. Its values are names and oids, and no value makes another plan
#: better; but the server takes one for all for dearer than it is, and would plan again each time.
_PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}


class LogSessions:
    """The two sessions; they are one behind a pooler, and where the server has only one free.

    Args:
        database: The source.
        opened: Called with a new session for questions, before anything is asked in it.
    """

    def __init__(self, database: PostgresDatabase, opened: Callable[[Connection], None]) -> None:
        self._database = database
        self._opened = opened
        self._asked: Connection | None = None
        self._decoding: Connection | None = None

    @property
    def asked(self) -> Connection:
        """The session for questions; a new one if the server closed the last.

        Raises:
            SourceBusyError: The server is a standby.
        """
        if self._asked is None or self._asked.closed:
            self.close()  # the other one as well, which may be another server's by now
            self._asked = self._database.connect()
            refuse_standby(self._asked)
            if not self._asked.is_pooled:
                self._asked.also_set(_PLANNED_ONCE)
            self._opened(self._asked)
        return self._asked

    @property
    def decoding(self) -> Connection:
        """The session in which the log is decoded, of the same server.

        Raises:
            SourceBusyError: Another server answers by now.
        """
        asked = self.asked
        if asked.is_pooled:
            return asked
        if self._decoding is None or self._decoding.closed:
            try:
                self._decoding = self._database.connect()
            except SourceFullError:
                self._decoding = asked  # dearer, and what there is
                return asked
            if origin(self._decoding) != origin(asked):
                self.close()
                raise another_server()
        return self._decoding

    def give_back(self) -> bool:
        """Decode in the session for questions from now on; return whether that frees a session."""
        if self._decoding is None or self._decoding is self._asked:
            return False
        self._decoding.close()
        self._decoding = self._asked
        return True

    def close(self) -> None:
        """Close both; safe to repeat."""
        for connection in (self._asked, self._decoding):
            if connection is not None:
                connection.close()
