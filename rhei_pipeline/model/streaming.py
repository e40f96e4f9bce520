"""An answer in batches, and the function that cancels its query."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa


def _nothing_to_cancel() -> None:
    return


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer in batches.

    Attributes:
        batches: Each can be read once; closing the iterator releases its resources.
        cancel: Cancels the query, from any thread; the next batch is then an error.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    cancel: Callable[[], None] = _nothing_to_cancel


#: Is given what ends a query, as soon as it may be ended, from any thread.
Begun = Callable[[Callable[[], None]], None]
