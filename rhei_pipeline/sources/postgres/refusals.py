"""Why a server refuses a connection, by its code: its words are in the language that it is set to.

The driver tells the words alone of a connection that was never made. What the library beneath it
read from the server, it traces to a file if asked; so one more try has the code.
"""

import os
import re
import select
import sys
import time

import psycopg
from psycopg import pq

#: Too many connections: of a role, of a database, or at all.
FULL = "53300"
#: No such role, or it may not connect, maybe to this database alone; a wrong password; no such
#: database.
DENIED = frozenset({"28000", "28P01", "3D000", "42501"})
#: What lets the user in, where it is no matter of the settings alone.
WAYS_IN = {
    "28000": "correct the user of source.dsn; or let it in: 'alter role ... login', and an entry of"
    " the server's pg_hba.conf that fits",
    "42501": "correct the database or the user of source.dsn, or let it in: 'grant connect on"
    " database ... to ...'",
}
#: Between a message's severity and its words, in every language.
_ANSWERED = ":  "
_CODE = re.compile(rb'\tErrorResponse\t.*? C "(\w{5})"')
_OVER = (pq.PollingStatus.OK, pq.PollingStatus.FAILED)


class Refusals:
    """Finds the codes of refused connections; the same words are looked into once.

    That spares a server that is full the second try, and us a few KB that the driver never frees.
    """

    def __init__(self) -> None:
        self._known = ("", "")

    def name(self, error: psycopg.OperationalError, dsn: str, seconds: float) -> None:
        """Give an error the code of why the connection was refused, if a server said why.

        Args:
            error: What the driver raised; where no server answered, none is asked again.
            dsn: What it was to connect to.
            seconds: How long to wait at most.
        """
        _, is_answer, words = str(error).partition(_ANSWERED)
        if error.sqlstate is not None or not is_answer:
            return
        known, code = self._known
        if words != known:
            code = _code(dsn, time.monotonic() + seconds)
        if code:
            self._known = (words, code)
            error.sqlstate = code


def _code(dsn: str, deadline: float) -> str:
    if sys.platform != "linux":  # nowhere else does the driver trace
        return ""
    with os.fdopen(os.memfd_create("rhei"), "r+b") as traced:
        _try(dsn, traced.fileno(), deadline)
        traced.seek(0)
        codes = _CODE.findall(traced.read())
    return codes[-1].decode() if codes else ""


def _try(dsn: str, traced: int, deadline: float) -> None:
    connection = pq.PGconn.connect_start(dsn.encode())
    try:
        connection.trace(traced)
        while connection.status != pq.ConnStatus.BAD and time.monotonic() < deadline:
            polled = connection.connect_poll()
            if polled in _OVER:
                break
            waiting = select.poll()
            waits_for = select.POLLIN if polled == pq.PollingStatus.READING else select.POLLOUT
            waiting.register(connection.socket, waits_for)
            waiting.poll(1000 * max(deadline - time.monotonic(), 0))
        connection.untrace()
    finally:
        connection.finish()
