"""What DataFusion says of a statement, in errors of ours that quote no row."""

import asyncio
import re
from collections.abc import Callable
from typing import TypeVar

from rhei_pipeline.errors import MirrorMemoryError, QueryError, RheiError, without_values
from rhei_pipeline.mirrors.datafusion.files import refuse_failed_store

#: How DataFusion shows what a function in Python raised, before the places in its code.
_RAISED = re.compile(r"PyErr \{ type: .*?, value: \w+(?:\.\w+)*\(['\"](.*?)['\"]\)")

#: What a fault in DataFusion itself becomes in Python, where it is no Exception.
_PANIC = "PanicException"

_Result = TypeVar("_Result")

#: What begins a message on a statement itself, which no row was read for; another may quote one.
_OF_STATEMENTS = re.compile(
    r"Error during planning|Schema error|SQL error|This feature is not implemented"
)
#: How it says that it has no memory left; behind a quotation mark the words are of others.
_TOO_LARGE = re.compile(r"^[^'\"`\n]*Resources exhausted", re.MULTILINE)
#: What it says of dates and times, as infinite ones, that it can compare but not compute with.
_BEYOND_CALENDAR = re.compile(
    r"Failed to convert .* to (temporal|datetime) for|Cannot convert .* to datetime"
    r"|converted value exceeds the representable|Timestamp .*out of range|Date arithmetic overflow"
)


def translated(call: Callable[[], _Result]) -> _Result:
    """Return what a call of DataFusion returns; its errors become ours.

    Raises:
        QueryError: It refuses a statement, or was cancelled.
        MirrorMemoryError: It has no memory left.
        MirrorUnreachableError: A store does not answer.
        MirrorError: A store refuses what the engine asks for.
    """
    try:
        return call()
    except asyncio.CancelledError as error:
        raise QueryError("the query was cancelled") from error
    except RheiError:
        raise
    except BaseException as error:  # DataFusion's errors have no type of their own
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        refuse_failed_store(error, "the mirror cannot be read")
        if _TOO_LARGE.search(str(error)):
            raise MirrorMemoryError(
                "DataFusion has reached its memory limit",
                hint="make the query smaller, or raise mirror.memory_limit",
            ) from error
        message, is_ours = _what_it_says(error)
        if _BEYOND_CALENDAR.search(message):
            raise QueryError(
                "DataFusion cannot compute with a date or time that is infinite or beyond its "
                "calendar",
                hint="ask without the hint 'olap': the source then answers; or leave such rows out "
                "with 'between date '1700-01-01' and date '2200-01-01''",
            ) from None  # it may quote a row, as the next one
        if not (is_ours or _OF_STATEMENTS.search(message)):
            message = without_values(message)
        raise QueryError(
            f"DataFusion refused the query: {message}",
            hint="the mirror answers reading queries on mirrored tables",
        ) from None


def _what_it_says(error: BaseException) -> tuple[str, bool]:
    """Return the first line of an error; of one of a function of ours, what it raised, and True."""
    text = str(error).strip()
    raised = _RAISED.search(text)
    return (raised[1], True) if raised else (text.splitlines()[0], False)
