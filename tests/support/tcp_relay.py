"""Has a server that listens on a Unix socket answer on TCP as well."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

_CHUNK = 1 << 16
#: Linux's `SO_MAX_PACING_RATE`, which Python has no name for.
_MAX_PACING_RATE = 47


@dataclass(slots=True)
class Wire:
    """What becomes of what the server sends.

    Attributes:
        left: So many pieces pass, and the next one cuts its connection, once; None: all pass.
        passed: How many have.
    """

    left: int | None = None
    passed: int = 0

    def is_cut(self) -> bool:
        """Return whether the next piece is the one that does not pass."""
        if self.left == 0:
            self.left = None
            return True
        self.left = None if self.left is None else self.left - 1
        self.passed += 1
        return False


@contextmanager
def tcp_relay(unix_socket: str, bytes_per_second: int, wire: Wire | None = None) -> Iterator[int]:
    """Yield the port of this machine on which a Unix socket's server answers, no faster."""
    loop = asyncio.new_event_loop()

    async def relay(near: asyncio.StreamReader, far: asyncio.StreamWriter) -> None:
        reader, writer = await asyncio.open_unix_connection(unix_socket)
        way_back = far.get_extra_info("socket")
        way_back.setsockopt(socket.SOL_SOCKET, _MAX_PACING_RATE, bytes_per_second)
        with closing(far), closing(writer):
            ways = [
                loop.create_task(_pump(near, writer)),
                loop.create_task(_pump(reader, far, wire)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await _end(*ways)

    async def end() -> None:
        server.close()
        await _end(*(asyncio.all_tasks() - {asyncio.current_task()}))

    server = loop.run_until_complete(asyncio.start_server(relay, "127.0.0.1"))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(*tasks: "asyncio.Task[None] | None") -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
    await asyncio.gather(*begun, return_exceptions=True)


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire | None = None
) -> None:
    while data := await reader.read(_CHUNK):
        if wire is not None and wire.is_cut():
            return
        writer.write(data)
        await writer.drain()
