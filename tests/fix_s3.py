"""A real S3-compatible server on this machine, and a way to it that fails or is slow on demand."""

import http.client
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rhei_pipeline.olap.object_files import Access


@dataclass
class Store:
    """A bucket, reached through a proxy.

    Attributes:
        failing: What happens to the next requests of a method, each once: `503` is answered in
            the server's place; `lost` reaches the server, and its answer is an error; `slow` is
            not answered before `released` is set.
        seen: The requests, as method and path.
    """

    bucket: str
    port: int
    failing: dict[str, list[str]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Where a mirror may rest."""
        return f"s3://{self.bucket}/some/mirror"

    @property
    def access(self) -> Access:
        """How it is reached."""
        return Access(**self.settings, secrets=self.keys, timeout_seconds=1, retry_seconds=2)

    @property
    def settings(self) -> dict[str, Any]:
        """The declaration's fields that are no secrets."""
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"endpoint": endpoint, "region": "us-east-1", "allow_http": True}

    @property
    def keys(self) -> dict[str, str]:
        """The declaration's fields that are secrets."""
        return {"access_key_id": "somebody", "secret_access_key": "hush"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """Run the server; its port."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  (imports for seconds)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(s3_server: int) -> Iterator[Store]:
    """Make a bucket, and a proxy in front of the server."""
    bucket = f"b{uuid.uuid4().hex}"
    request = urllib.request.Request(f"http://127.0.0.1:{s3_server}/{bucket}", method="PUT")
    urllib.request.urlopen(request).close()  # noqa: S310  (our own server)
    store = Store(bucket, 0)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store, s3_server))
    store.port = proxy.server_address[1]
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    yield store
    store.released.set()
    proxy.shutdown()
    proxy.server_close()
    thread.join()


def _handler(store: Store, upstream: int) -> type[BaseHTTPRequestHandler]:  # noqa: C901
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            store.seen.append(f"{self.command} {self.path}")
            fault = (store.failing.get(self.command) or [""]).pop(0)
            if fault == "slow":
                store.released.wait()
            if fault in {"503", "slow"}:
                self._answer(503, {}, b"")
                return
            connection = http.client.HTTPConnection("127.0.0.1", upstream)
            connection.request(self.command, self.path, body, dict(self.headers))
            found = connection.getresponse()
            content = found.read()
            if fault == "lost":
                self._answer(500, {}, b"")
            else:
                self._answer(found.status, dict(found.getheaders()), content)
            connection.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("content-length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
