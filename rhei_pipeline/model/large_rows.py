"""Rows with a large value: what is done with them holds them several times."""

import ctypes

import pyarrow as pa

from rhei_pipeline.model.portions import LARGE_BYTES

# Of the GNU C library alone.
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def are_large(rows: pa.Table) -> bool:
    """Return whether there is probably a large value among these rows."""
    return bool(rows.nbytes > LARGE_BYTES)


def give_back_freed() -> None:
    """Give memory that was freed back to the system, before others take as much.

    It takes a few milliseconds.
    """
    pa.default_memory_pool().release_unused()
    if _TRIM is not None:
        _TRIM(0)
