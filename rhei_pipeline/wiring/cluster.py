"""Creates what asks the declared cluster."""

from rhei_pipeline.compute.heavy_reads import HeavyReads
from rhei_pipeline.compute.snapshots import ClusterHistory
from rhei_pipeline.compute.spark_connect import SparkConnect
from rhei_pipeline.model.query_limits import QueryClock
from rhei_pipeline.settings.compute import ComputeSettings
from rhei_pipeline.settings.model import Settings


def cluster_history(settings: Settings) -> ClusterHistory | None:
    """Return what finds rows as of an instant in the declared cluster; None if there is none."""
    if settings.compute is None:
        return None
    clock = QueryClock(settings.queries.query_seconds)
    return ClusterHistory(cluster_engine(settings.compute), published_root(settings), clock)


def heavy_reads(settings: Settings) -> HeavyReads | None:
    """Return what has the declared cluster answer queries of many rows; None if none does."""
    compute = settings.compute
    if compute is None or compute.min_rows is None or compute.kind != "sail":
        return None  # of no other kind is it proved that its answers are the same
    return HeavyReads(cluster_engine(compute), published_root(settings), compute.min_rows)


def cluster_engine(compute: ComputeSettings) -> SparkConnect:
    """Return what asks the cluster."""
    token = compute.token.get_secret_value() if compute.token else None
    return SparkConnect(
        compute.endpoint, token, tls=compute.tls, connect_seconds=compute.connect_seconds
    )


def published_root(settings: Settings) -> str:
    """Return where the folders of Delta tables are, as a cluster finds them."""
    return settings.mirror.url or str(settings.mirror.path.resolve())
