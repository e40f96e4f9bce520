"""What the reports have in common: plain values, one line of text, and a table for notebooks."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from html import escape
from typing import Any, ClassVar


class Report(ABC):
    """What was done, or found: as plain values, as one line, or as a table in a notebook."""

    __slots__ = ()
    #: What is worked out of the fields, and stands beside them in `to_dict`.
    derived: ClassVar[tuple[str, ...]] = ()
    #: What a person is shown of each row.
    shown: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return it as `--json` prints it: numbers, texts, lists and dicts."""
        return values(self)

    @abstractmethod
    def _facts(self) -> Iterator[str]:
        """Yield what the line says, the most important first."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """Return a table; its caption is the line."""
        tables = getattr(self, "tables", None)
        rows = [self] if tables is None else list(tables.values())
        return _html(repr(self), self.shown, [values(row) for row in rows])


def values(report: Any) -> dict[str, Any]:  # noqa: ANN401  (any dataclass)
    """Return a report's fields as plain values, and what it works out of them."""
    names = [field.name for field in dataclasses.fields(report)]
    derived: tuple[str, ...] = getattr(report, "derived", ())
    return {name: _plain(getattr(report, name)) for name in (*names, *derived)}


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if dataclasses.is_dataclass(value):
        return values(value)
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value


def counted(number: int, what: str) -> str:
    """Return a number of things, such as `1 row` or `2,000 rows`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def changed(inserted: int, updated: int, deleted: int) -> Iterator[str]:
    """Yield how many rows really changed, and how."""
    yield from (f"{inserted:,} inserted", f"{updated:,} updated", f"{deleted:,} deleted")


def named(what: str, names: Sequence[str]) -> Iterator[str]:
    """Yield what is true of some names, if there are any; the first few are named."""
    if names:
        more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
        yield f"{what}: {', '.join(names[:_NAMED])}{more}"


#: So many names fit on a line.
_NAMED = 3


def _html(caption: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = (
        "".join(f"<td>{escape(_cell(row.get(name)))}</td>" for name in columns) for row in rows
    )
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.3f}" if isinstance(value, float) else str(value)
