"""COPY read from libpq directly: a message costs a fifth of the driver's own.

Source: postgresql.org/docs/18/libpq-copy.html.
"""

from collections.abc import Generator, Iterator
from contextlib import closing

from psycopg import errors, pq

from rhei_pipeline.sources.postgres.catalog import Connection
from rhei_pipeline.sources.postgres.connection import readable

_BINARY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_BINARY_END = 0xFF  # where a row has the count of its values, of which there is one
_BINARY_VALUE = 6  # behind the count of values and the length of the one
#: Up to here a value is copied. A view is an object that Python's collector looks at, and with ten
#: thousand of them it looks at all there are: that took as long as all else of a cycle.
_COPIED_BYTES = 2**16


def copy_out(connection: Connection, statement: bytes) -> Generator[bytes]:
    """Run `copy ... to stdout` and yield its messages: for text formats, one a row.

    The connection is busy until the last message is read; stopping earlier cancels the COPY.

    Raises:
        psycopg.Error: The server refuses the statement, or it fails on the way.
    """
    with closing(_copied(connection, statement)) as messages:
        yield from map(bytes, messages)


def _copied(connection: Connection, statement: bytes) -> Generator[memoryview]:
    """Yield the messages where the driver received them; a large one is held no second time."""
    pgconn = connection.pgconn
    pgconn.send_query(statement)
    _refuse(_next_result(connection), pq.ExecStatus.COPY_OUT, connection)
    try:
        yield from _messages(connection)
    except GeneratorExit:
        pgconn.get_cancel().cancel()
        for _ in _messages(connection):
            pass  # what was under way: until it is taken, libpq gives no other result
        _drain(connection)
        raise
    _refuse(_next_result(connection), pq.ExecStatus.COMMAND_OK, connection)
    _drain(connection)


def copy_out_values(connection: Connection, query: bytes) -> Generator[bytes | memoryview]:
    """Run a query of one column of bytes, and yield its values; as `copy_out` does.

    A large value is yielded where the driver received it.
    """
    messages = _copied(connection, b"copy (" + query + b") to stdout (format binary)")
    with closing(messages):
        # Mapped: a loop's variable would hold each message beside its value.
        yield from (value for value in map(_value, messages) if value is not None)


def _value(message: memoryview) -> bytes | memoryview | None:
    """Return the value of a row of one column; None of what is no row."""
    if message[0] == _BINARY_HEADER[0]:
        message = message[len(_BINARY_HEADER) :]
    if not message or message[0] == _BINARY_END:
        return None
    value = message[_BINARY_VALUE:]
    return value if len(value) > _COPIED_BYTES else bytes(value)


def _messages(connection: Connection) -> Iterator[memoryview]:
    get = connection.pgconn.get_copy_data

    def take() -> memoryview | None:
        while True:
            count, data = get(1)
            if count > 0:
                return data
            if count < 0:
                return None
            _await(connection)

    # No generator, whose variable would hold a large one until the next is asked for: it is also
    # one frame less for each row.
    return iter(take, None)


def _next_result(connection: Connection) -> pq.abc.PGresult | None:
    pgconn = connection.pgconn
    while pgconn.is_busy():
        _await(connection)
    return pgconn.get_result()


def _await(connection: Connection) -> None:
    """Wait until more data arrives."""
    readable(connection.fileno())
    connection.pgconn.consume_input()


def _drain(connection: Connection) -> None:
    while _next_result(connection) is not None:
        pass


def _refuse(result: pq.abc.PGresult | None, wanted: pq.ExecStatus, connection: Connection) -> None:
    if result is None or result.status != wanted:
        _drain(connection)
        if result is None:
            raise errors.OperationalError("the server returned no result")
        raise errors.error_from_result(result, encoding=connection.info.encoding)
