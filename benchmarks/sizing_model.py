"""What a pipeline needs, worked out of what was measured: pure functions of a load and of costs."""

import math
from dataclasses import asdict, dataclass

#: How much of a core one process may take: what is left is for bursts, queries and maintenance.
BUSY = 0.7
#: Files that are put to a store at the same time.
PUTS_AT_ONCE = 32
SECONDS_A_MONTH = 30 * 86_400.0


@dataclass(frozen=True)
class Costs:
    """What one combination of source, mirror and mode costs.

    Attributes:
        cycle, table, change, byte: Seconds of CPU of our process: of a cycle, and more for each
            table changed in it, each changed row, and each byte of these rows.
        scanned: The same for each row that the changed tables have: DuckDB looks through the keys.
        folded: The same for each changed row, for rows that are written again later.
        copied_table, copied_row, copied_byte: The same for each table, row and byte of a first
            copy.
        server_change: Seconds of CPU of PostgreSQL's processes for each changed row.
        stored: Bytes in the mirror for each byte of rows.
        requests, requests_table: Requests to an object store in each cycle, and more for each
            changed table.
        rounds: How many of a cycle's requests wait for one another.
    """

    cycle: float
    table: float
    change: float
    byte: float
    scanned: float
    folded: float
    copied_table: float
    copied_row: float
    copied_byte: float
    server_change: float
    stored: float
    requests: float = 0.0
    requests_table: float = 0.0
    rounds: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return it as it is kept."""
        return asdict(self)


@dataclass(frozen=True)
class Load:
    """What a source has, and what happens to it.

    Attributes:
        tables: How many there are, all of one size.
        rows: Rows of each.
        row_bytes: Bytes of a row, as its values are.
        changes: Changed rows a second, of all tables together.
        changed_tables: How many tables have a change in one interval.
        interval: Seconds from one sync to the next.
        longest: The same where syncs take too long: more than this is no remedy.
        history_days: How long versions are kept; 0 in a plain mirror.
    """

    tables: int
    rows: float
    row_bytes: float
    changes: float
    changed_tables: int
    interval: float
    longest: float
    history_days: float = 0.0

    @property
    def bytes(self) -> float:
        """Bytes of all rows."""
        return self.tables * self.rows * self.row_bytes

    def shared_by(self, shards: int) -> "Load":
        """Return the load of one of several pipelines that have the tables shared out."""
        share = asdict(self) | {
            "tables": math.ceil(self.tables / shards),
            "changes": self.changes / shards,
            "changed_tables": math.ceil(self.changed_tables / shards),
        }
        return Load(**share)


@dataclass(frozen=True)
class Prices:
    """What is paid, in dollars; made-up defaults near what large providers ask."""

    core_hour: float = 0.05
    request: float = 5.0e-6
    store_gigabyte_month: float = 0.023
    disk_gigabyte_month: float = 0.08


@dataclass(frozen=True)
class Cycle:
    """One sync: seconds of CPU, seconds by the clock, and requests."""

    cpu: float
    wall: float
    requests: float


@dataclass(frozen=True)
class Needs:
    """What a load needs.

    Attributes:
        shards: Pipelines among which the tables are shared out; 0 where no number is enough.
        cores: CPU that all of them take together, in cores.
        server_cores: What PostgreSQL takes for them.
        lag: Seconds from a commit to where it is shown, at most.
        copy_hours: Hours of the first copy, the shards side by side.
        gigabytes: What the mirrors hold.
        requests: Requests to the store a second.
        dollars: What a month costs: cores, storage and requests.
    """

    shards: int
    cores: float
    server_cores: float
    lag: float
    copy_hours: float
    gigabytes: float
    requests: float
    dollars: float


def cycle(costs: Costs, load: Load, seconds: float, latency: float = 0.0) -> Cycle:
    """Return what a sync takes that applies the changes of so many seconds.

    Args:
        costs: What was measured.
        load: Of one pipeline.
        seconds: Since the last sync.
        latency: Seconds that a store takes to answer.
    """
    changes = load.changes * seconds
    tables = min(load.changed_tables, load.tables)
    cpu = (
        costs.cycle
        + costs.table * tables
        + (costs.change + costs.folded + costs.byte * load.row_bytes) * changes
        + costs.scanned * load.rows * tables
    )
    requests = costs.requests + costs.requests_table * tables
    return Cycle(cpu, cpu + latency * waits(costs, tables), requests)


def copy_seconds(costs: Costs, load: Load) -> float:
    """Return the CPU seconds of a first copy of all tables."""
    rows = load.tables * load.rows
    return (
        load.tables * costs.copied_table + rows * costs.copied_row + load.bytes * costs.copied_byte
    )


def waits(costs: Costs, tables: int) -> float:
    """Return how many requests of a sync wait for one another."""
    more = math.ceil(costs.requests_table * tables / PUTS_AT_ONCE) - 1
    return costs.rounds + max(more, 0) if costs.rounds else 0.0


def needs(costs: Costs, load: Load, latency: float = 0.0, prices: Prices | None = None) -> Needs:
    """Return what a load needs where a sync begins every `load.interval` seconds.

    Where a sync takes longer than that, the next one begins when it ends, with more changes.
    """
    prices = prices or Prices()
    for shards in range(1, max(load.tables, 1) + 1):
        share = load.shared_by(shards)
        found = _settled(costs, share, latency)
        if found is not None:
            return _needs(costs, load, shards, found, prices)
    return Needs(0, math.inf, math.inf, math.inf, math.inf, math.inf, math.inf, math.inf)


def _settled(costs: Costs, load: Load, latency: float) -> tuple[float, Cycle] | None:
    """Return from when to when it syncs, and a sync; None where it never catches up."""
    interval = load.interval
    for _ in range(200):
        found = cycle(costs, load, interval, latency)
        if found.wall <= interval and found.cpu / interval <= BUSY:
            return interval, found
        interval = max(found.wall, found.cpu / BUSY) * 1.02
        if interval > max(load.longest, load.interval):
            return None
    return None


def _needs(
    costs: Costs, load: Load, shards: int, settled: tuple[float, Cycle], prices: Prices
) -> Needs:
    interval, found = settled
    cores = shards * found.cpu / interval
    requests = shards * found.requests / interval
    versions = load.changes * load.history_days * 86_400 * load.row_bytes
    gigabytes = (load.bytes + versions) * costs.stored / 1e9
    is_store = costs.requests > 0
    kept = prices.store_gigabyte_month if is_store else prices.disk_gigabyte_month
    dollars = (
        # A process holds a core, busy or not.
        max(cores, shards) * prices.core_hour * SECONDS_A_MONTH / 3600
        + gigabytes * kept
        + requests * SECONDS_A_MONTH * prices.request
    )
    return Needs(
        shards,
        cores,
        # Each shard has a slot, for which all of the log is decoded.
        load.changes * costs.server_change * shards,
        interval + found.wall,
        copy_seconds(costs, load) / 3600 / shards,
        gigabytes,
        requests,
        dollars,
    )
