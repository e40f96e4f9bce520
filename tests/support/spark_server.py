"""A Spark Connect server as processes of their own."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

_SERVER = "org.apache.spark.sql.connect.service.SparkConnectServer"
_STARTS_SECONDS = 120
_SOURCE = Path(__file__).parent / "spark_source"


@contextmanager
def spark_server(environment: Path, home: Path) -> Iterator[str]:
    """Start Spark; yield its address.

    Its clock is not in UTC, as a cluster's need not be.

    Args:
        environment: A virtual environment that has pyspark and deltalake.
        home: Where Spark writes what it writes.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    spark = next(environment.glob("lib/python3*/site-packages/pyspark"))
    python = str(environment / "bin" / "python")
    options = {
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": port,
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.session.timeZone": "America/New_York",
        "spark.sql.shuffle.partitions": 2,
        "spark.ui.enabled": "false",
    }
    command = [str(spark / "bin" / "spark-submit"), "--master", "local[2]", "--class", _SERVER]
    command += [part for name, value in options.items() for part in ("--conf", f"{name}={value}")]
    more = {"SPARK_HOME": str(spark), "PYSPARK_PYTHON": python, "PYTHONPATH": str(_SOURCE)}
    home.mkdir(parents=True)
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "spark-internal"],
            cwd=home,
            env=os.environ | more,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        _wait_for(port, server, home / "log")
        yield f"sc://127.0.0.1:{port}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _STARTS_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"Spark did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.2)
        else:
            return
