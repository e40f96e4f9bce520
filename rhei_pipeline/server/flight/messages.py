"""Flight SQL's messages as they travel: each in protobuf's Any, under its name.

Source: format/FlightSql.proto of Apache Arrow; `generated/flight_sql.proto` has what is used here.
"""

from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from pyarrow import flight

from rhei_pipeline.server.flight.generated import flight_sql_pb2

_PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
_Kind = TypeVar("_Kind", bound=Message)


class MalformedError(ValueError):
    """The bytes are not a valid message."""


def unpack(packed: bytes) -> Message:
    """Decode a message that is wrapped in protobuf's Any.

    Raises:
        MalformedError: It is not a message of Flight SQL.
        FlightServerError: It is one that this server does not know.
    """
    outer = parse(Any, packed)
    if not outer.type_url.startswith(_PREFIX):
        raise MalformedError(f"{outer.type_url!r} is no message of Flight SQL")
    name = outer.type_url.removeprefix(_PREFIX)
    if name not in flight_sql_pb2.DESCRIPTOR.message_types_by_name:
        raise flight.FlightServerError(f"{name} is not supported")
    return parse(getattr(flight_sql_pb2, name), outer.value)


def parse(kind: type[_Kind], data: bytes) -> _Kind:
    """Decode a message whose kind is known.

    Raises:
        MalformedError: It ends too soon, or a field has another form.
    """
    try:
        found: _Kind = kind.FromString(data)
    except DecodeError as error:
        raise MalformedError("its fields cannot be read") from error
    return found


def pack(message: Message) -> bytes:
    """Encode a message, wrapped in protobuf's Any."""
    outer = Any(type_url=_PREFIX + message.DESCRIPTOR.name, value=message.SerializeToString())
    return bytes(outer.SerializeToString())


def optional(message: Message, field: str) -> str | None:
    """Return a field that may be left out; None where it is."""
    return str(getattr(message, field)) if message.HasField(field) else None
