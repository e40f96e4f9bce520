"""What the page of a failed run says first: the error in plain words, and then the stack."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from rhei_pipeline.errors import RheiError, TransientError


@contextmanager
def said_plainly() -> Iterator[None]:
    """Let a step that fails of an error of the engine begin with its words.

    Of any other error than its own, Dagster says first which op it was in. At the end of the run
    it says no more than that.

    Raises:
        Failure: The block raises an error of the engine.
    """
    try:
        yield
    except RheiError as error:
        retries = isinstance(error, TransientError)
        raise dg.Failure(str(error), allow_retries=retries) from error
