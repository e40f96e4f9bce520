"""The parts behind the public API, for what no caller of it can see or do."""

from rhei_pipeline import HTAP
from rhei_pipeline.wiring.engine import Engine


def engine_of(htap: HTAP) -> Engine:
    """Return the source, the mirror and the pipeline that this process has open."""
    return htap._access.held.engine
