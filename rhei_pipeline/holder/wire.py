"""How arguments, reports and errors travel between two processes: as JSON, each value by its kind.

Only kinds that are named here are read back, so nothing that arrives can run as code.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

import pyarrow as pa

from rhei_pipeline import errors
from rhei_pipeline.errors import MirrorError, QueryError, RheiError, without_places
from rhei_pipeline.model import reports
from rhei_pipeline.model.change_feed import ChangePosition, ChangeStream, TableChanges
from rhei_pipeline.model.coverage import CheckedPart
from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.retention import ExpiredHistory
from rhei_pipeline.model.schema import Mode, Table, TableSchema
from rhei_pipeline.model.schema_log import SchemaChange
from rhei_pipeline.model.upkeep import MaintenanceReport
from rhei_pipeline.query.freshness import Demand, Written
from rhei_pipeline.query.planner import Prepared
from rhei_pipeline.query.router import Route

#: Under this name, an object says of which kind it is.
_KIND = "$"
_CHANGES = b"rhei.changes"
_PLAIN = {str, bool, int, type(None)}
_REPORTS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *vars(reports).values(),
        *(CheckedPart, Demand, ExpiredHistory, MaintenanceReport, Prepared, Route, SchemaChange),
    )
    if isinstance(kind, type) and dataclasses.is_dataclass(kind)
}
_ENUMS: dict[str, type[StrEnum]] = {kind.__name__: kind for kind in (TableState, reports.Severity)}
_ERRORS: dict[str, type[RheiError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, RheiError)
}
#: What errors have besides message, table and hint.
_OWN = ("file", "made_room")


def pack(value: object) -> bytes:
    """Encode a value.

    Raises:
        QueryError: It is of a kind that does not travel.
    """
    return json.dumps(_written(value)).encode()


def unpack(data: bytes) -> Any:  # noqa: ANN401  (whatever was packed)
    """Decode a value.

    Raises:
        MirrorError: It is nothing that `pack` writes.
    """
    try:
        return _read(json.loads(data))
    except (ValueError, KeyError, TypeError, ArithmeticError, pa.ArrowException) as error:
        raise MirrorError(
            "the process that holds the mirror speaks another language",
            hint="restart it with the version of rhei-pipeline that is installed now",
        ) from error


def _written(value: Any) -> Any:  # noqa: ANN401
    if type(value) in _PLAIN:
        return value
    for kind, write in _WRITERS:
        if isinstance(value, kind):
            return write(value)
    if type(value).__name__ in _REPORTS:
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {_KIND: "report", "of": type(value).__name__, "is": _written(named)}
    if hasattr(value, "__index__"):  # a number of another library
        return {_KIND: "int", "is": value.__index__()}
    raise QueryError(
        f"a value of the type {type(value).__name__!r} cannot be sent to the process that holds "
        "the mirror",
        hint="pass it as a number, a text, bytes, a date or a time",
    )


def _read(found: Any) -> Any:  # noqa: ANN401
    if isinstance(found, list):
        return [_read(item) for item in found]
    if not isinstance(found, dict):
        return found
    return _KINDS[found[_KIND]](found)


def _bytes(value: bytes | bytearray | memoryview) -> str:
    return base64.b64encode(bytes(value)).decode()


def _scalar(name: str, write: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    return lambda value: {_KIND: name, "is": write(value)}


#: The first that fits: a date and time is a date, too, and a kind of ours may be a text or number.
_WRITERS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (StrEnum, lambda value: {_KIND: "enum", "of": type(value).__name__, "is": value.value}),
    (str, str),
    (ChangePosition, _scalar("position", str)),
    (Written, _scalar("written", lambda value: value.token)),
    (int, _scalar("int", int)),
    (float, _scalar("float", lambda value: float(value).hex())),
    ((bytes, bytearray, memoryview), _scalar("bytes", _bytes)),
    (Decimal, _scalar("decimal", str)),
    (datetime, _scalar("datetime", datetime.isoformat)),
    (date, _scalar("date", date.isoformat)),
    (time, _scalar("time", time.isoformat)),
    (timedelta, _scalar("timedelta", lambda it: [it.days, it.seconds, it.microseconds])),
    (UUID, _scalar("uuid", str)),
    (pa.Schema, _scalar("schema", lambda value: _bytes(value.serialize().to_pybytes()))),
    (list, lambda value: [_written(item) for item in value]),
    (tuple, _scalar("tuple", lambda value: [_written(item) for item in value])),
    (
        Mapping,
        _scalar("mapping", lambda it: [[_written(name), _written(it[name])] for name in it]),
    ),
    (
        Table,
        lambda it: {_KIND: "table", "is": it.schema.to_json(), "mode": it.mode.value},
    ),
)
_KINDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "enum": lambda found: _ENUMS[found["of"]](found["is"]),
    "position": lambda found: ChangePosition.parse(found["is"]),
    "written": lambda found: Written.parse(found["is"]),
    "int": lambda found: int(found["is"]),
    "float": lambda found: float.fromhex(found["is"]),
    "bytes": lambda found: base64.b64decode(found["is"]),
    "decimal": lambda found: Decimal(found["is"]),
    "datetime": lambda found: datetime.fromisoformat(found["is"]),
    "date": lambda found: date.fromisoformat(found["is"]),
    "time": lambda found: time.fromisoformat(found["is"]),
    "timedelta": lambda found: timedelta(*found["is"]),
    "uuid": lambda found: UUID(found["is"]),
    "schema": lambda found: pa.ipc.read_schema(pa.py_buffer(base64.b64decode(found["is"]))),
    "tuple": lambda found: tuple(_read(item) for item in found["is"]),
    "mapping": lambda found: {_read(name): _read(item) for name, item in found["is"]},
    "table": lambda found: Table(TableSchema.from_json(found["is"]), Mode(found["mode"])),
    "report": lambda found: _REPORTS[found["of"]](**_read(found["is"])),
}


def with_position(schema: pa.Schema, found: TableChanges | ChangeStream) -> pa.Schema:
    """Return the schema of an answer of changes, with what it says besides its rows."""
    told = pack((found.table, str(found.position), found.snapshot))
    return schema.with_metadata({**(schema.metadata or {}), _CHANGES: told})


def without_position(schema: pa.Schema) -> tuple[pa.Schema, str, ChangePosition, bool]:
    """Return the schema as it was, and what was said besides."""
    labels = dict(schema.metadata or {})
    table, position, is_snapshot = unpack(labels.pop(_CHANGES))
    plain = schema.with_metadata(labels or None)
    return plain, table, ChangePosition.parse(position), is_snapshot


def pack_error(error: RheiError) -> bytes:
    """Encode an error of ours; files in it are named by their names alone."""
    own = {name: getattr(error, name) for name in _OWN if hasattr(error, name)}
    form = {
        "of": type(error).__name__,
        "message": without_places(error.message),
        "table": error.table,
        "hint": None if error.hint is None else without_places(error.hint),
        "own": {n: without_places(v) if isinstance(v, str) else v for n, v in own.items()},
    }
    return json.dumps(form).encode()


def unpack_error(data: bytes) -> RheiError:
    """Decode an error; one of a kind that this version does not know is the next known kind."""
    form = json.loads(data)
    kind = _ERRORS.get(form["of"], MirrorError)
    made = kind.__new__(kind)
    RheiError.__init__(made, form["message"], table=form["table"], hint=form["hint"])
    for name, value in form["own"].items():
        setattr(made, name, value)
    return made
