"""Serves metrics, health, readiness and the status page over HTTP, in a thread."""

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from rhei_pipeline.model.closing import Closing
from rhei_pipeline.monitoring.metrics import Monitoring, Watched, status_of
from rhei_pipeline.monitoring.recent import Recent
from rhei_pipeline.monitoring.status_page import PAGE_POLICY, status_page

_log = logging.getLogger(__name__)
_TEXT = "text/plain; charset=utf-8"
#: How long a client may take to ask, however it does, or take nothing of its answer.
_PATIENCE_SECONDS = 10.0
#: So many are served at once; browsers and scrapes are few, and each has a thread.
_MOST_CLIENTS = 100
_Respond = Callable[[str, list[tuple[str, str]]], object]


class _Server(ThreadingWSGIServer):
    """Gives each client a thread: not to too many, and to none that asks without an end."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  (passed on)
        self._open: set[socket.socket] = set()
        self._asking: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(*args, **options)

    def verify_request(self, request: Any, client_address: object) -> bool:  # noqa: ANN401
        """Return whether one more client is served; who has asked for longest gives way to it."""
        del client_address
        with self._lock:
            if len(self._open) >= _MOST_CLIENTS:
                longest = min(self._asking, key=self._asking.__getitem__, default=None)
                if longest is None:
                    return False  # all of them wait for their answers
                self._end(longest)
            self._open.add(request)
            self._asking[request] = time.monotonic()
            return True

    def service_actions(self) -> None:
        """End the clients whose questions take too long; called twice a second."""
        super().service_actions()
        due = time.monotonic() - _Handler.timeout
        with self._lock:
            for request in [each for each, since in self._asking.items() if since < due]:
                self._end(request)

    def take_question(self, request: socket.socket) -> None:
        """Note that a client's question is whole: what takes long now is the answer."""
        with self._lock:
            self._asking.pop(request, None)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401  (as in the standard library)
        """Close a client's connection."""
        with self._lock:
            self._open.discard(request)
            self._asking.pop(request, None)
        super().shutdown_request(request)

    def _end(self, request: socket.socket) -> None:
        """Shut a client's connection down, so that its thread ends and closes it."""
        self._asking.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what failed of ours; a client that has gone, or says nothing, is no news."""
        del request, client_address
        if not isinstance(sys.exception(), OSError):
            _log.exception("a question to the status page failed")


class _ServerOfIPv6(_Server):
    address_family = socket.AF_INET6


class MonitoringServer(Closing):
    """Serves `/`, `/metrics`, `/healthz` and `/readyz` until it is closed.

    Args:
        watched: The pipeline that is shown.
        host: The address to listen on. Nobody has to authenticate there.
        port: 0 chooses any free port.
    """

    def __init__(self, watched: Watched, host: str = "127.0.0.1", port: int = 9464) -> None:
        self._watched = watched
        self._monitoring = Monitoring(watched)
        self._recent = Recent()
        watched.watch(
            lambda report: self._recent.note_sync(report, time.time()),
            lambda _side, _seconds: None,
        )
        self._metrics = make_wsgi_app(self._monitoring.registry)
        kind = _ServerOfIPv6 if ":" in host else _Server
        self._server = make_server(host, port, self._app, kind, _Handler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="rhei-metrics")
        self._thread.daemon = True
        self._thread.start()

    def close(self) -> None:
        """Stop serving; safe to repeat."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _app(self, environ: dict[str, Any], respond: _Respond) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            found: Iterable[bytes] = self._metrics(environ, respond)
            return found
        if path == "/":
            headers = [("Content-Security-Policy", PAGE_POLICY), ("Cache-Control", "no-store")]
            return _answer(respond, "200 OK", self._page(), "text/html; charset=utf-8", headers)
        if path == "/healthz":
            return _answer(respond, "200 OK", "alive\n")
        if path == "/readyz":
            reason = self._monitoring.readiness()
            status = "503 Service Unavailable" if reason else "200 OK"
            return _answer(respond, status, f"{reason or 'ready'}\n")
        known = "there are /, /metrics, /healthz and /readyz\n"
        return _answer(respond, "404 Not Found", known)

    def _page(self) -> str:
        now = time.time()
        status = status_of(self._watched)
        self._recent.note_status(status, now)
        return status_page(status, self._recent, now)


def _answer(
    respond: _Respond,
    status: str,
    text: str,
    kind: str = _TEXT,
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    body = text.encode()
    respond(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *headers])
    return [body]


class _Handler(WSGIRequestHandler):
    # Else each client that goes without a word holds a thread and a socket for ever.
    timeout = _PATIENCE_SECONDS
    server: _Server

    def get_environ(self) -> dict[str, Any]:
        """Return what was asked; from now on the client waits for us."""
        self.server.take_question(self.connection)
        return super().get_environ()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep scrapes out of the log."""
