"""A stand-in for Kubernetes: whatever asks for a pod gets a process of this machine.

Sail starts its workers as pods. It asks for one by a POST, and ends all of a session by a DELETE;
nothing else of Kubernetes is here.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: here, cluster: {{server: "http://127.0.0.1:{port}"}}}}]
users: [{{name: somebody, user: {{token: none}}}}]
contexts: [{{name: here, context: {{cluster: here, user: somebody}}}}]
"""


@dataclass
class Pods:
    """Processes that were asked for as pods.

    Attributes:
        home: Where their logs go.
        environment: What each has in its environment, beside what its pod says.
        running: The processes by their pods' names, each with its pod's labels.
    """

    home: Path
    environment: Mapping[str, str]
    running: dict[str, tuple[subprocess.Popen[bytes], Mapping[str, str]]] = field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.kubeconfig = self.home / "kubeconfig"
        self.kubeconfig.write_text(_KUBECONFIG.format(port=self._server.server_address[1]))
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def names(self) -> list[str]:
        """Return the pods whose processes run."""
        with self._lock:
            return [name for name, (process, _) in self.running.items() if process.poll() is None]

    def kill(self, name: str) -> None:
        """End a pod's process at once."""
        process, _ = self.running[name]
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()

    def close(self) -> None:
        """End all processes."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for name in list(self.running):
            self.kill(name)

    def start(self, pod: dict[str, Any]) -> None:
        """Start what a pod's only container is to run."""
        name, (container,) = pod["metadata"]["name"], pod["spec"]["containers"]
        # What has no value asks for the pod's address.
        said = {one["name"]: one.get("value", "127.0.0.1") for one in container["env"]}
        command = [sys.executable, "-m", "pysail", *container["args"]]
        with self._lock, (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**os.environ, **self.environment, **said},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            self.running[name] = process, pod["metadata"]["labels"]

    def end(self, label: str) -> None:
        """End the processes of the pods that have a label."""
        name, _, value = label.partition("=")
        with self._lock:
            found = [pod for pod, (_, labels) in self.running.items() if labels.get(name) == value]
        for pod in found:
            self.kill(pod)


def _handler(pods: Pods) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            pod = json.loads(self.rfile.read(int(self.headers["content-length"])))
            pods.start(pod)
            self._answer(pod)

        def do_DELETE(self) -> None:
            (label,) = parse_qs(urlsplit(self.path).query)["labelSelector"]
            pods.end(label)
            self._answer({"kind": "Status", "apiVersion": "v1", "status": "Success"})

        def _answer(self, found: dict[str, Any]) -> None:
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            with suppress(BrokenPipeError):  # a session that ends does not wait for its pods' end
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
