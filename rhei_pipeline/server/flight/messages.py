"""Flight SQL's messages, in the part of protobuf's encoding that they use.

Source: format/FlightSql.proto of Apache Arrow; protobuf.dev/programming-guides/encoding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFIX = "type.googleapis.com/arrow.flight.protocol.sql."
_BYTES, _VARINT = 2, 0
_FIXED = {1: 8, 5: 4}


class MalformedError(ValueError):
    """The bytes are not a valid message."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message's name and its fields, each number's values in order."""

    name: str
    fields: dict[int, list[bytes | int]]

    def text(self, number: int) -> str | None:
        """Return a string field; None where it is left out."""
        found = self.blob(number)
        return None if found is None else _decoded(found)

    def blob(self, number: int) -> bytes | None:
        """Return a bytes field; None where it is left out."""
        values = [value for value in self.fields.get(number, ()) if isinstance(value, bytes)]
        return values[-1] if values else None

    def texts(self, number: int) -> list[str]:
        """Return a repeated string field."""
        found = self.fields.get(number, ())
        return [_decoded(value) for value in found if isinstance(value, bytes)]

    def integers(self, number: int) -> list[int]:
        """Return a repeated integer field, packed or not."""
        found: list[int] = []
        for value in self.fields.get(number, ()):
            found += [value] if isinstance(value, int) else _unpacked(value)
        return found


def unpack(packed: bytes) -> Message:
    """Decode a message that is wrapped in protobuf's Any.

    Raises:
        MalformedError: It is not a message of Flight SQL.
    """
    outer = Message("Any", fields(packed))
    kind, value = outer.text(1) or "", outer.blob(2) or b""
    if not kind.startswith(PREFIX):
        raise MalformedError(f"{kind!r} is no message of Flight SQL")
    return Message(kind.removeprefix(PREFIX), fields(value))


def pack(name: str, values: Sequence[tuple[int, bytes | int]]) -> bytes:
    """Encode a message, wrapped in protobuf's Any."""
    return encode([(1, (PREFIX + name).encode()), (2, encode(values))])


def encode(values: Sequence[tuple[int, bytes | int]]) -> bytes:
    """Encode fields."""
    written = bytearray()
    for number, value in values:
        if isinstance(value, int):
            written += _varint(number << 3 | _VARINT) + _varint(value)
        else:
            written += _varint(number << 3 | _BYTES) + _varint(len(value)) + value
    return bytes(written)


def fields(data: bytes) -> dict[int, list[bytes | int]]:
    """Decode all fields of a message.

    Raises:
        MalformedError: It ends too soon, or has a field of unknown form.
    """
    found: dict[int, list[bytes | int]] = {}
    for number, value in _read(data):
        found.setdefault(number, []).append(value)
    return found


def _read(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    place = 0
    while place < len(data):
        tag, place = _take(data, place)
        form = tag & 7
        if form == _VARINT:
            value, place = _take(data, place)
            yield tag >> 3, value
            continue
        if form == _BYTES:
            length, place = _take(data, place)
        elif form in _FIXED:
            length = _FIXED[form]
        else:
            raise MalformedError("a field has an unknown form")
        if place + length > len(data):
            raise MalformedError("a field ends behind its message")
        yield tag >> 3, data[place : place + length]
        place += length


def _take(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(data) and shift < 70:  # noqa: PLR2004  (a varint has at most ten bytes)
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, place
    raise MalformedError("a number has no end")


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise MalformedError("a text in it is not UTF-8") from None


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are written as their two's complement
    written = bytearray()
    while value > 0x7F:  # noqa: PLR2004
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


def _unpacked(data: bytes) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = _take(data, place)
        found.append(value)
    return found
