"""What an open DuckDB mirror remembers of its tables from one transaction to the next."""

from dataclasses import dataclass, field

from rhei_pipeline.mirrors.duckdb.foreign_tables import ForeignTables
from rhei_pipeline.mirrors.duckdb.highest_keys import HighestKeys


@dataclass(frozen=True, slots=True)
class TableNotes:
    """Notes by the names of tables; what is done is right without them, too.

    Attributes:
        foreign: Tables of others.
        large_copies: The tables of which a copy under way has large rows.
        telling: The fewest columns in which nearly all rows differed that came last.
        highest: Bounds of their keys.
    """

    foreign: ForeignTables = field(default_factory=ForeignTables)
    large_copies: set[str] = field(default_factory=set)
    telling: dict[str, tuple[str, ...]] = field(default_factory=dict)
    highest: HighestKeys = field(default_factory=HighestKeys)
