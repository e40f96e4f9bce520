"""A process that syncs and serves: Flight SQL, metrics, and the background sync."""

import logging
import os
import signal
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from rhei_pipeline.errors import SettingsError, needs_extra
from rhei_pipeline.htap import HTAP
from rhei_pipeline.server.flight.access import Credentials, in_addresses
from rhei_pipeline.server.flight.server import FlightSqlServer, ServerOptions

_log = logging.getLogger(__name__)
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to listen; port 0 chooses any free one; without a metrics port, no metrics."""

    host: str = "127.0.0.1"
    port: int = 31337
    metrics_port: int | None = None


def access_from(environment: Mapping[str, str] | None = None) -> Credentials:
    """Read credentials from RHEI_SERVE_TOKEN, RHEI_SERVE_USER, RHEI_SERVE_PASSWORD.

    Raises:
        SettingsError: One of them is empty, or only one of user and password is set.
    """
    known = os.environ if environment is None else environment
    for name in ("RHEI_SERVE_TOKEN", "RHEI_SERVE_USER", "RHEI_SERVE_PASSWORD"):
        if not known.get(name, name).strip():
            raise SettingsError(
                f"{name} is empty: anybody could connect", hint="give it a value, or unset it"
            )
    user, password = known.get("RHEI_SERVE_USER"), known.get("RHEI_SERVE_PASSWORD")
    if (user is None) != (password is None):
        raise SettingsError(
            "RHEI_SERVE_USER and RHEI_SERVE_PASSWORD belong together", hint="set both, or neither"
        )
    return Credentials(known.get("RHEI_SERVE_TOKEN"), user, password)


def tls_from(certificate: Path | None, key: Path | None) -> tuple[bytes, bytes] | None:
    """Read a certificate and its key.

    Raises:
        SettingsError: One is missing, cannot be read, or is no such thing.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("a certificate and its key belong together", hint="give both")
    try:
        read = certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise SettingsError(f"{error.filename!r} cannot be read", hint="correct the path") from None
    try:
        # The server itself says of them only that it did not start; a password is asked of nobody.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:
        raise SettingsError(
            f"{str(certificate)!r} and {str(key)!r} are no certificate and its key",
            hint="give PEM files that belong together, the key without a password",
        ) from error
    return read


@contextmanager
def serving(
    htap: HTAP, addresses: Addresses, options: ServerOptions
) -> Iterator[tuple[int, int | None]]:
    """Serve and sync during the block; yield the ports of Flight SQL and of metrics.

    Raises:
        SettingsError: Nothing can listen at one of the addresses.
    """
    with ExitStack() as stack:
        with _listening(addresses.host, addresses.port):
            server = FlightSqlServer(htap, addresses.host, addresses.port, options)
        stack.callback(server.close)
        metrics_port = _serve_metrics(htap, addresses, stack)
        htap.start_sync()
        stack.callback(htap.stop_sync)
        yield server.port, metrics_port


def _serve_metrics(htap: HTAP, addresses: Addresses, stack: ExitStack) -> int | None:
    if addresses.metrics_port is None:
        return None
    with needs_extra("metrics", "the metrics endpoint"):
        from rhei_pipeline.monitoring.server import MonitoringServer  # noqa: PLC0415
    with _listening(addresses.host, addresses.metrics_port):
        made = MonitoringServer(htap, addresses.host, addresses.metrics_port)
    stack.enter_context(made)
    return made.port


@contextmanager
def _listening(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise SettingsError(
            f"nothing can listen at {in_addresses(host)}:{port}",
            hint="end what listens there, or give another port or an address of this machine",
        ) from error


class StopSignal:
    """SIGINT and SIGTERM, which from now on end nothing by themselves.

    An event set by a handler would not do: a signal that comes just before a thread begins to
    wait runs its handler only when the wait ends.
    """

    def __init__(self) -> None:
        self._told, self._teller = socket.socketpair()
        self._teller.settimeout(0)  # as Python asks for
        signal.set_wakeup_fd(self._teller.fileno())
        for number in _STOPPING:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Wait until the process is asked to stop."""
        while self._told.recv(1)[0] not in _STOPPING:
            continue  # another signal
        _log.info("stopping: the running cycle is finished first")
