"""What clients choose in the headers of a call, which ADBC and pyarrow let their users set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import flight


@dataclass(frozen=True)
class HeaderChoice(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Reads from a call's headers which of some values is chosen.

    Attributes:
        header: The header's name, in small letters.
        what: What is chosen, for messages.
        known: The values there are.
    """

    header: str
    what: str
    known: tuple[str, ...]

    def start_call(
        self, _info: object, headers: Mapping[str, Sequence[str]]
    ) -> "ChosenValue | None":
        """Return what is chosen; None: nothing is.

        Raises:
            flight.FlightServerError: It is not known here.
        """
        given = (values[0] for name, values in headers.items() if name.lower() == self.header)
        chosen = next(given, "")
        if not chosen:
            return None
        if chosen.lower() not in self.known:
            known = f"{', '.join(self.known[:-1])} or {self.known[-1]}"
            raise flight.FlightServerError(f"{self.what} {chosen!r} is not known: use {known}")
        return ChosenValue(chosen.lower())

    def of(self, context: flight.ServerCallContext) -> str | None:
        """Return what was chosen for a call; None: nothing was."""
        found = context.get_middleware(self.header)
        return None if found is None else str(found.value)


class ChosenValue(flight.ServerMiddleware):  # type: ignore[misc]
    """What one call chooses."""

    def __init__(self, value: str) -> None:
        self.value = value


#: Not every client can read compressed answers, so they are asked for.
COMPRESSION = HeaderChoice("rhei-compression", "compression", ("zstd", "lz4"))
HINT = HeaderChoice("rhei-hint", "hint", ("auto", "olap", "cluster"))
CHOICES = (COMPRESSION, HINT)


def write_options(context: flight.ServerCallContext) -> pa.ipc.IpcWriteOptions:
    """Return how the answer of a call is written."""
    return pa.ipc.IpcWriteOptions(compression=COMPRESSION.of(context))


def hint_of(context: flight.ServerCallContext) -> Literal["auto", "olap", "cluster"]:
    """Return who is to answer a call, as `HTAP.stream` takes it."""
    asked = HINT.of(context)
    return "cluster" if asked == "cluster" else "olap" if asked == "olap" else "auto"
