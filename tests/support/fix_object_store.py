"""A real S3-compatible server on this machine, and a way to it that fails or is slow on demand.

The way also speaks Google's dialect, as far as the two differ: the names of headers, and how to say
that nothing may stand where a file is put.
"""

import http.client
import json
import socket
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rhei_pipeline.mirrors.datafusion.object_store import StoreAccess

#: How a request is answered in the server's place.
_REFUSED = {
    **{str(status): status for status in (301, 400, 401, 403, 404, 409, 412, 429, 500, 503)},
    "slow": 503,
    "expired": 400,
    "skewed": 403,
}
#: What stores say beside the status, in part what is nobody else's business.
_WORDS = {
    "expired": b"<Error><Code>ExpiredToken</Code><Token-0>hush</Token-0></Error>",
    "skewed": b"<Error><Code>RequestTimeTooSkewed</Code></Error>",
}


@dataclass
class Store:
    """A bucket, reached through a proxy.

    Attributes:
        failing: What happens to the next requests of a method, each once: a status is
            answered in the server's place, as are `expired` and `skewed`, with S3's words;
            `cut` gets no answer; `lost` and `unsaid` reach the server, and then get an error, or
            no answer; `half` gets half of one; `twice` reaches the server twice, and gets its
            second answer; `late` gets no answer, and is `held` until it is passed on; `slow` is
            not answered before `released` is set.
        fault: Says what happens to a request, given its method and path; takes the place of
            `failing`.
        seen: The requests, as method and path.
    """

    scheme: str
    bucket: str
    port: int
    key_file: Path
    failing: dict[str, list[str]] = field(default_factory=dict)
    fault: Callable[[str, str], str] | None = None
    seen: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    held: list[Callable[[], object]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where a mirror may rest."""
        return f"{self.scheme}://{self.bucket}/some/mirror"

    @property
    def access(self) -> StoreAccess:
        """How it is reached, with the patience that no load of the machine uses up."""
        return StoreAccess(**self.settings, secrets=self.keys)

    @property
    def settings(self) -> dict[str, Any]:
        """The declaration's fields that are no secrets."""
        if self.scheme == "gs":
            return {"allow_http": True}  # the key file says where it is
        return {"endpoint": self.endpoint, "region": "us-east-1", "allow_http": True}

    @property
    def endpoint(self) -> str:
        """Where the proxy listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys(self) -> dict[str, str]:
        """The declaration's fields that are secrets."""
        if self.scheme == "gs":
            return {"service_account_path": str(self.key_file)}
        return {"access_key_id": "somebody", "secret_access_key": "hush"}

    def fault_of(self, method: str, path: str) -> str:
        """Return what happens to a request; nothing, where it is just passed on."""
        if self.fault is not None:
            return self.fault(method, path)
        return (self.failing.get(method) or [""]).pop(0)

    @property
    def storage_options(self) -> dict[str, str]:
        """How others reach it."""
        return {**self.keys, **self.settings, "allow_http": "true"}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """Run the server; its port."""
    from moto import backends  # noqa: PLC0415  (imports for seconds)
    from moto.server import ThreadedMotoServer  # noqa: PLC0415
    from werkzeug.serving import WSGIRequestHandler  # noqa: PLC0415  (moto's)

    known = [*backends.list_of_moto_modules()]
    with pytest.MonkeyPatch.context() as patch:
        # An answer in two packets would wait 40 ms for the acknowledgement of the first.
        patch.setattr(WSGIRequestHandler, "disable_nagle_algorithm", True)
        # Of each request, it looks at all folders of its package, and writes a line to nobody.
        patch.setattr(backends, "list_of_moto_modules", lambda: known)
        patch.setattr(WSGIRequestHandler, "log_request", lambda *_: None)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        yield server.get_host_and_port()[1]
        server.stop()


@pytest.fixture(params=["s3", "gs"])
def bucket(request: pytest.FixtureRequest, s3_server: int, tmp_path: Path) -> Iterator[Store]:
    """Make a bucket, and a proxy in front of the server."""
    name = f"b{uuid.uuid4().hex}"
    making = urllib.request.Request(f"http://127.0.0.1:{s3_server}/{name}", method="PUT")
    urllib.request.urlopen(making).close()  # noqa: S310  (our own server)
    store = Store(request.param, name, 0, tmp_path / "hush.json")
    open_: set[socket.socket] = set()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(store, s3_server, open_))
    store.port = proxy.server_address[1]
    unused = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    account = {"gcs_base_url": store.endpoint, "disable_oauth": True, **unused}
    store.key_file.write_text(json.dumps(account))
    thread = threading.Thread(target=proxy.serve_forever, args=[0.01])
    thread.start()
    yield store
    store.released.set()
    proxy.shutdown()
    proxy.server_close()
    thread.join()
    # Clients keep theirs for a minute and more: those of many tests would be a thousand files.
    for connection in open_.copy():
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def _handler(  # noqa: C901
    store: Store, upstream: int, open_: set[socket.socket]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # as above

        def setup(self) -> None:
            open_.add(self.request)
            super().setup()

        def finish(self) -> None:
            open_.discard(self.request)
            super().finish()

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            store.seen.append(f"{self.command} {self.path}")
            fault = store.fault_of(self.command, self.path)
            if fault == "slow":
                store.released.wait()
            if fault in _REFUSED:
                self._answer(_REFUSED[fault], {}, _WORDS.get(fault, b""))
                return
            if fault == "cut":
                self.close_connection = True
                return
            served = partial(_served, upstream, self.command, self.path, body, self._headers())
            if fault == "late":
                store.held.append(served)
                self.close_connection = True
                return
            if fault == "twice":
                served()
            status, said, content = served()
            if fault == "lost":
                self._answer(500, {}, b"")
            elif fault == "unsaid":
                self.close_connection = True
            else:
                self._answer(status, said, content, is_half=fault == "half")

        def _headers(self) -> dict[str, str]:
            said = dict(self.headers)
            return _in_amazons_words(said) if store.scheme == "gs" else said

        def _answer(
            self, status: int, headers: dict[str, str], content: bytes, *, is_half: bool = False
        ) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("content-length", length or str(len(content)))
            if is_half:
                content = content[: len(content) // 2]
                self.close_connection = True
            with suppress(ConnectionError):  # who asked may wait no longer, or be gone
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _served(
    upstream: int, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, dict[str, str], bytes]:
    """Pass a request on to the server, and return its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", upstream)
    try:
        connection.request(method, path, body, headers)
        found = connection.getresponse()
        return found.status, dict(found.getheaders()), found.read()
    finally:
        connection.close()


def _in_amazons_words(headers: dict[str, str]) -> dict[str, str]:
    """Translate a request to Google's XML interface; the server takes any signature."""
    said = {name.lower().replace("x-goog-", "x-amz-"): value for name, value in headers.items()}
    if said.pop("x-amz-if-generation-match", None) == "0":
        said["if-none-match"] = "*"
    said["authorization"] = (
        "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request,"
        " SignedHeaders=host, Signature=none"
    )
    return said
