"""Who may use the server: bearer tokens, and a name with a password that is given a token."""

import base64
import hmac
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pyarrow import flight

from rhei_pipeline.errors import SettingsError

_HEADER = "authorization"
#: Tokens given to those who came with a password; the oldest is forgotten first.
_MAX_SESSIONS = 1024


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller has to know; without either, everybody is let in.

    Attributes:
        token: The bearer token.
        user, password: What basic authentication asks for.
    """

    token: str | None = field(default=None, repr=False)
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def is_open(self) -> bool:
        """Whether nothing has to be known."""
        return self.token is None and self.password is None


def refuse_open_server(host: str, access: Credentials) -> None:
    """Refuse to let everybody of a network in.

    Raises:
        SettingsError: The address is not this machine's own, and nothing has to be known.
    """
    if access.is_open and not _is_loopback(host):
        raise SettingsError(
            f"{host!r} can be reached from other machines, and nobody would have to say who it is",
            hint="set RHEI_SERVE_TOKEN, or RHEI_SERVE_USER and RHEI_SERVE_PASSWORD, or serve on"
            " 127.0.0.1",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class NoHandshake(flight.ServerAuthHandler):  # type: ignore[misc]
    """Lets the handshake through: the header, which every call carries, is what counts."""

    def authenticate(self, outgoing: object, incoming: object) -> None:
        """Ask nothing."""

    def is_valid(self, token: bytes) -> bytes:  # noqa: ARG002
        """Take everybody; who is not known never gets so far."""
        return b""


class AuthMiddleware(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Looks at the header of every call."""

    def __init__(self, access: Credentials) -> None:
        self._access = access
        self._sessions: dict[str, None] = {}

    def start_call(
        self,
        info: object,  # noqa: ARG002
        headers: Mapping[str, Sequence[str]],
    ) -> "_Answer | None":
        """Let a call in, or end it.

        Raises:
            flight.FlightUnauthenticatedError: The caller is not known.
        """
        if self._access.is_open:
            return None
        given = next((values[0] for name, values in headers.items() if name.lower() == _HEADER), "")
        kind, _, secret = given.partition(" ")
        if kind.lower() == "bearer" and self._knows_token(secret):
            return None
        if kind.lower() == "basic" and self._knows_password(secret):
            return _Answer(self._new_session())
        raise flight.FlightUnauthenticatedError("give a valid token, or name and password")

    def _knows_token(self, token: str) -> bool:
        if token in self._sessions:
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

    def _new_session(self) -> str:
        token = secrets.token_urlsafe(32)
        self._sessions[token] = None
        while len(self._sessions) > _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        return token


class _Answer(flight.ServerMiddleware):  # type: ignore[misc]
    """Sends the token to be used from now on."""

    def __init__(self, token: str) -> None:
        self._token = token

    def sending_headers(self) -> dict[str, str]:
        return {_HEADER: f"Bearer {self._token}"}
