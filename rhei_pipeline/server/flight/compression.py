"""Compressed answers, for clients that ask for them in a header: not every client can read them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from pyarrow import flight

#: The header of a call, which ADBC and pyarrow let their users set.
HEADER = "rhei-compression"
_KNOWN = ("zstd", "lz4")


class CompressionMiddleware(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Reads from a call's headers how its answer is to be compressed."""

    def start_call(
        self, _info: object, headers: Mapping[str, Sequence[str]]
    ) -> "AskedCompression | None":
        """Return what is asked for; None: as it is.

        Raises:
            flight.FlightServerError: It is not known here.
        """
        asked = next((values[0] for name, values in headers.items() if name.lower() == HEADER), "")
        if not asked:
            return None
        if asked.lower() not in _KNOWN:
            raise flight.FlightServerError(
                f"compression {asked!r} is not known: use {' or '.join(_KNOWN)}"
            )
        return AskedCompression(asked.lower())


class AskedCompression(flight.ServerMiddleware):  # type: ignore[misc]
    """How the answer of one call is compressed."""

    def __init__(self, name: str) -> None:
        self.name = name


def write_options(context: flight.ServerCallContext) -> pa.ipc.IpcWriteOptions:
    """Return how the answer of a call is written."""
    asked = context.get_middleware(HEADER)
    return pa.ipc.IpcWriteOptions(compression=None if asked is None else asked.name)
