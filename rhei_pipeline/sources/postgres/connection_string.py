"""Connection strings: some are refused, and what none says of dead networks is added.

None is quoted: it may hold a password, and a piece of one that is not escaped is taken for another
part.
"""

import re

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from rhei_pipeline.errors import SettingsError

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_URL = re.compile(r"postgres(?:ql)?://([^/?]*)", re.IGNORECASE)
ESCAPED = (
    "write it as postgresql://user:password@host:5432/database; within user and password,"
    " write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23 and % as %25"
)

#: Without these, what waits for an answer waits for two hours once the network is gone, and what
#: has sent something, for a quarter of one.
_KEEPALIVES = {
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def with_keepalives(dsn: str) -> str:
    """Return a connection string whose connections end a minute after their network has.

    What it says itself of that stays.
    """
    said = conninfo_to_dict(dsn)
    return make_conninfo(dsn, **{name: n for name, n in _KEEPALIVES.items() if name not in said})


def refuse_unreadable(dsn: str, field: str) -> None:
    """Refuse a connection string that cannot be read, or is read otherwise than it was meant.

    Args:
        dsn: The connection string.
        field: Where it is declared, for the message.

    Raises:
        SettingsError: It is one.
    """
    try:
        parts = conninfo_to_dict(dsn)
    except psycopg.Error:
        raise SettingsError(
            f"{field} cannot be read as a connection string", hint=ESCAPED
        ) from None  # its text may quote a piece of the password
    url = _URL.match(dsn)
    ports = str(parts.get("port") or "").split(",")
    if (url and url[1].count("@") > 1) or not all(port.isdigit() or not port for port in ports):
        raise SettingsError(
            f"{field} cannot be read as it was meant: a character in it needs to be escaped",
            hint=ESCAPED,
        )
    mode = parts.get("sslmode")
    if mode is not None and mode not in _SSL_MODES:
        raise SettingsError(
            f"{field}: its sslmode is not known", hint=f"use one of {', '.join(_SSL_MODES)}"
        )
