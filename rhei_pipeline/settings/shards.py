"""How one declaration is shared among several pipelines: which tables each has, and its places."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

FEWEST_SHARDS = 2
#: How many shards a declaration may have at most; each is a pipeline with a process of its own.
MOST_SHARDS = 64
#: A number of shards, or the names of each one's tables, in which `*` stands for any text.
Shards = int | list[list[str]]

#: What makes a name a pattern.
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Sharding:
    """Distributes tables over shards, by their names alone: it is the same in every process.

    Attributes:
        shards: As declared.
        plain: Gives all spellings of one table's name the same form.
    """

    shards: Shards
    plain: Callable[[str], str]

    @property
    def count(self) -> int:
        """How many shards there are."""
        return self.shards if isinstance(self.shards, int) else len(self.shards)

    def shard_of(self, table: str) -> int:
        """Return the shard of a table, from 1.

        By patterns, it is the first one that has a fitting pattern, or else the last one. By
        hash, one more shard moves no table but those that it takes.
        """
        name = self.plain(table)
        numbers = range(1, self.count + 1)
        if isinstance(self.shards, int):
            return max(numbers, key=lambda number: _weight(number, name))
        named = zip(numbers, self.shards, strict=True)
        return next((n for n, patterns in named if self._fits(name, patterns)), self.count)

    def refuse_unfit(self) -> None:
        """Refuse too few or too many shards, and what is named in two of them.

        Raises:
            ValueError: Says what to declare.
        """
        if not FEWEST_SHARDS <= self.count <= MOST_SHARDS:
            raise ValueError(
                f"'shards' are at least {FEWEST_SHARDS} and at most {MOST_SHARDS}, or left out"
            )
        for shard, name, taker in self._taken():
            raise ValueError(
                f"'shards' names {name!r} in shard {shard}, and shard {taker} takes it: name it in"
                " one of them alone"
            )

    def _taken(self) -> Iterator[tuple[int, str, int]]:
        """Yield what a shard names in vain: its number, the name or pattern, and who takes it."""
        before: set[str] = set()
        for number, patterns in enumerate([] if isinstance(self.shards, int) else self.shards, 1):
            for pattern in patterns:
                taker, is_name = self.shard_of(pattern), _WILD.isdisjoint(pattern)
                # What of a pattern's tables an earlier one leaves cannot be seen from the two.
                if taker < number and (is_name or self.plain(pattern) in before):
                    yield number, pattern, taker
            before.update(map(self.plain, patterns))

    def _fits(self, name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(name, self.plain(pattern)) for pattern in patterns)


def plain_name_in(source: str) -> Callable[[str], str]:
    """Return what gives all spellings of one table's name in a kind of source the same form.

    SQLite ignores case; a table in PostgreSQL's schema `public` has two names.
    """
    return str.lower if source == "sqlite" else lambda name: name.removeprefix("public.")


def beside(file: Path, shard: int) -> Path:
    """Return the file that is a shard's own, in the same folder."""
    return file.with_name(f"{file.stem}_{label(shard)}{file.suffix}")


def label(shard: int) -> str:
    """Return what a shard's pipeline, files and folders are called."""
    return f"shard_{shard}"


def _weight(number: int, name: str) -> bytes:
    return hashlib.sha256(f"{number} {name}".encode()).digest()
