"""A statement that DataFusion has planned, and its rows."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from typing import Any, TypeVar

import pyarrow as pa
from datafusion import DataFrame
from datafusion.record_batch import RecordBatch, RecordBatchStream

from rhei_pipeline.errors import MirrorUnreachableError, QueryError
from rhei_pipeline.mirrors.datafusion.engine_errors import translated
from rhei_pipeline.model.cancellation import Cancel

_Result = TypeVar("_Result")

#: Arrow's plain types, for those that DataFusion prefers.
_PLAIN = {
    pa.string_view(): pa.string(),
    pa.large_string(): pa.string(),
    pa.binary_view(): pa.binary(),
    pa.large_binary(): pa.binary(),
}


class PlannedQuery:
    """A statement, bound to the tables of one committed state.

    DataFusion looks for the files of a statement once, as it begins to read, and takes one that
    is gone by then for one without rows. One that goes later ends in an error.

    Args:
        frame: The statement.
        prove: Raises an error if a file of its tables is no longer the one that was checked.
    """

    def __init__(self, frame: DataFrame, prove: Callable[[], None]) -> None:
        self.frame = frame
        self._prove = prove

    @property
    def schema(self) -> pa.Schema:
        """The schema of its answer, in Arrow's plain types."""
        found = self.frame.schema()
        return pa.schema([pa.field(f.name, _PLAIN.get(f.type, f.type)) for f in found])

    def on_same_tables(self, frame: DataFrame) -> "PlannedQuery":
        """Return another statement on the same tables."""
        return PlannedQuery(frame, self._prove)

    def rows(self, cancel: Cancel | None) -> Iterator[pa.RecordBatch]:
        """Yield its rows in batches; a cancelled one ends as soon as this thread allows."""
        if cancel is None or _in_event_loop():
            return self.streamed(cancel or Cancel())
        return self.interruptible(cancel)

    def streamed(self, cancel: Cancel) -> Iterator[pa.RecordBatch]:
        """Yield its rows in batches; a cancelled one ends at the next batch.

        Raises:
            QueryError: DataFusion refuses it, or it was cancelled.
            MirrorDamagedError: A file of its tables is gone, or damaged.
        """
        schema = self.schema
        stream = iter(self._begun(cancel))
        while (batch := self._asked(lambda: next(stream, None), cancel)) is not None:
            cancel.refuse_cancelled()
            yield batch.to_pyarrow().cast(schema)

    def interruptible(self, cancel: Cancel) -> Iterator[pa.RecordBatch]:
        """Yield its rows in batches; a cancelled one ends at once, with its work.

        Not for a thread that runs an event loop: DataFusion only cancels what is awaited.

        Raises:
            QueryError: DataFusion refuses it, or it was cancelled.
            MirrorDamagedError: A file of its tables is gone, or damaged.
        """
        schema = self.schema
        stream = aiter(self._begun(cancel))
        with closing(asyncio.new_event_loop()) as loop:

            def following() -> RecordBatch | None:
                awaited = loop.create_task(_following(stream))
                try:
                    with cancel.ending_by(lambda: loop.call_soon_threadsafe(awaited.cancel)):
                        return loop.run_until_complete(awaited)
                finally:
                    _end_task(loop, awaited)

            while (batch := self._asked(following, cancel)) is not None:
                yield batch.to_pyarrow().cast(schema)

    def _begun(self, cancel: Cancel) -> RecordBatchStream:
        stream = self._asked(self.frame.execute_stream, cancel)
        self._prove()
        return stream

    def _asked(self, call: Callable[[], _Result], cancel: Cancel) -> _Result:
        try:
            return translated(call)
        except (QueryError, MirrorUnreachableError):
            cancel.refuse_cancelled()
            self._prove()  # it may be no fault of the statement, nor of the store: a file is gone
            raise


def _in_event_loop() -> bool:
    """Return whether this thread runs an event loop, so that it can run no other."""
    return asyncio._get_running_loop() is not None  # noqa: SLF001  (the public one raises)


def _end_task(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
    """End a task that was cancelled before it began."""
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)


async def _following(stream: AsyncIterator[RecordBatch]) -> RecordBatch | None:
    return await anext(stream, None)
