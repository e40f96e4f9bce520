"""An S3 server for tests (moto's), as a process of its own whose answers take a set time."""

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

#: A path that no bucket has: its last part is the new delay in milliseconds.
_CONTROL = "/~delay/"


class SlowStore:
    """A bucket in a server whose answers can be delayed, and which counts what it is asked."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.slow_store"], stdout=subprocess.PIPE, text=True
        )
        self._port = int(self._process.stdout.readline()) if self._process.stdout else 0
        self.endpoint = f"http://127.0.0.1:{self._port}"
        self._ask("PUT", "/bucket")

    def settings(self, folder: str) -> dict[str, Any]:
        """Return the declaration of a mirror in that folder of the bucket."""
        return {
            "kind": "datafusion",
            "storage": "parquet",
            "path": f"s3://bucket/{folder}",
            "object_store": {
                "endpoint": self.endpoint,
                "region": "us-east-1",
                "allow_http": True,
                "access_key_id": "somebody",
                "secret_access_key": "hush",
            },
        }

    def delay(self, milliseconds: int) -> dict[str, int]:
        """Set how long each answer takes; return how many requests there were since the last call.

        They are by method, and under `bytes` what was put.
        """
        found: dict[str, int] = json.loads(self._ask("GET", f"{_CONTROL}{milliseconds}"))
        return found

    def _ask(self, method: str, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        connection.request(method, path)
        answer = connection.getresponse().read()
        connection.close()
        return answer

    def stop(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class _Delaying:
    """Delays and counts what another application answers."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._seconds = 0.0
        self._counts: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., object]) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if path.startswith(_CONTROL):
            counts, self._counts = self._counts, {}
            self._seconds = int(path.removeprefix(_CONTROL)) / 1000
            start("200 OK", [("content-type", "application/json")])
            return [json.dumps(counts).encode()]
        method = environ["REQUEST_METHOD"]
        self._counts[method] = self._counts.get(method, 0) + 1
        length = int(environ.get("CONTENT_LENGTH") or 0) if method == "PUT" else 0
        self._counts["bytes"] = self._counts.get("bytes", 0) + length
        time.sleep(self._seconds)
        return self._application(environ, start)


def _serve() -> None:
    from moto.moto_server.werkzeug_app import (  # noqa: PLC0415  (imports for seconds)
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415  (moto's)

    # An answer in two packets would wait 40 ms for the acknowledgement of the first.
    class Handler(WSGIRequestHandler):
        disable_nagle_algorithm = True
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Tell nothing."""

    application = _Delaying(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
