"""What an open DuckDB mirror remembers of its tables from one transaction to the next."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TableNotes:
    """Notes by the names of tables; what is done is right without them, too.

    Attributes:
        large_copies: The tables of which a copy under way has large rows.
        telling: The column in which nearly all rows differed that came last.
    """

    large_copies: set[str] = field(default_factory=set)
    telling: dict[str, str] = field(default_factory=dict)
