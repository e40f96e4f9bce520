"""Authentication: bearer tokens, or a user name and password that return a token."""

import base64
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pyarrow import flight

from rhei_pipeline.errors import SettingsError

_HEADER = "authorization"
#: Tokens given to those who came with a password; the one unused for longest is forgotten first.
_MAX_SESSIONS = 1024
#: How long such a token is valid after its last use.
IDLE_SECONDS = 12 * 3600.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials that clients must present; without any, every client is accepted.

    Attributes:
        token: The bearer token.
        user, password: For basic authentication.
    """

    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether no credentials are required."""
        return self.token is None and self.password is None


def refuse_open_server(host: str, access: Credentials) -> None:
    """Refuse to serve a network without credentials.

    Raises:
        SettingsError: Other machines can reach the address, and no credentials are required.
    """
    if access.is_open and not _is_loopback(host):
        raise SettingsError(
            f"{host!r} can be reached from other machines, and the server asks nobody for a "
            f"password or token",
            hint="set RHEI_SERVE_TOKEN, or RHEI_SERVE_USER and RHEI_SERVE_PASSWORD, or serve on"
            " 127.0.0.1",
        )


def in_addresses(host: str) -> str:
    """Return a host as addresses with a port have it: in brackets, if it is one of IPv6."""
    return f"[{host}]" if ":" in host else host


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class NoHandshake(flight.ServerAuthHandler):  # type: ignore[misc]
    """Accepts every handshake: the header of each call is what is checked."""

    def authenticate(self, outgoing: object, incoming: object) -> None:
        """Do nothing."""

    def is_valid(self, _token: bytes) -> bytes:
        """Accept every token; unknown clients are refused earlier, by the middleware."""
        return b""


class _Sessions:
    """The tokens of clients that came with a password; each is valid until it lies idle."""

    def __init__(self, idle_seconds: float, clock: Callable[[], float]) -> None:
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._used: OrderedDict[str, float] = OrderedDict()  # the one unused for longest first
        self._lock = threading.Lock()

    def begin(self) -> str:
        """Return a new token."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._used[token] = self._clock()
            while len(self._used) > _MAX_SESSIONS:
                self._used.popitem(last=False)
        return token

    def use(self, token: str) -> bool:
        """Return whether a token is valid; it then is for as long again."""
        with self._lock:
            used = self._used.pop(token, None)
            now = self._clock()
            if used is None or now - used >= self._idle_seconds:
                return False
            self._used[token] = now
            return True


class AuthMiddleware(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Checks the authorization header of every call.

    Args:
        access: The credentials that clients must present.
        idle_seconds: How long a token that was given for a password is valid after its last use.
        clock: Tells the seconds.
    """

    def __init__(
        self,
        access: Credentials,
        idle_seconds: float = IDLE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._sessions = _Sessions(idle_seconds, clock)

    def start_call(
        self,
        _info: object,
        headers: Mapping[str, Sequence[str]],
    ) -> "_Answer | None":
        """Accept a call, or refuse it.

        Raises:
            flight.FlightUnauthenticatedError: The credentials are missing or wrong.
        """
        if self._access.is_open:
            return None
        given = next((values[0] for name, values in headers.items() if name.lower() == _HEADER), "")
        kind, _, secret = given.partition(" ")
        if kind.lower() == "bearer" and self._knows_token(secret):
            return None
        if kind.lower() == "basic" and self._knows_password(secret):
            return _Answer(self._sessions.begin())
        if kind.lower() == "bearer" and self._access.password is not None:
            raise flight.FlightUnauthenticatedError(
                "the token is not known, or was not used for too long: log in again with user name"
                " and password"
            )
        raise flight.FlightUnauthenticatedError("give a valid token, or a user name and password")

    def _knows_token(self, token: str) -> bool:
        if self._sessions.use(token):
            return True
        known = self._access.token
        return known is not None and hmac.compare_digest(known.encode(), token.encode())

    def _knows_password(self, encoded: str) -> bool:
        if self._access.password is None:
            return False
        try:
            # Some clients leave the padding out.
            given = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except ValueError:  # also where it is not ASCII
            return False
        wanted = f"{self._access.user or ''}:{self._access.password}".encode()
        return hmac.compare_digest(wanted, given)


class _Answer(flight.ServerMiddleware):  # type: ignore[misc]
    """Sends the token that the client uses from then on."""

    def __init__(self, token: str) -> None:
        self._token = token

    def sending_headers(self) -> dict[str, str]:
        return {_HEADER: f"Bearer {self._token}"}
