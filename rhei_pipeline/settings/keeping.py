"""Sections of a declaration that say how much is kept."""

from collections.abc import Callable, Mapping

from pydantic import ByteSize, Field

from rhei_pipeline.errors import SchemaError, SettingsError
from rhei_pipeline.model.bounds import MOST_DAYS
from rhei_pipeline.model.forgetting import Trace, traces
from rhei_pipeline.model.retention import HistoryBounds, LetterBounds
from rhei_pipeline.model.schema import nearest
from rhei_pipeline.settings.section import Section


class HistorySettings(Section):
    """How much of a temporal table's history is kept."""

    keep_days: int | None = Field(
        None,
        ge=1,
        le=MOST_DAYS,
        description="Maintenance removes versions that ended so many days ago; left out: none for"
        " its age.",
    )
    keep_versions: int | None = Field(
        None,
        ge=1,
        description="Maintenance leaves so many versions of a row, the present one among them;"
        " left out: any number. The row that changes most then decides since when the table's"
        " history is kept.",
    )

    @property
    def bounds(self) -> HistoryBounds:
        """The same as a value."""
        return HistoryBounds(self.keep_days, self.keep_versions)


class DeadLetterSettings(Section):
    """How many dead letters a table may have; one that would get more is left out, by name."""

    max_rows: int | None = Field(1_000_000, ge=0, description="The most of them; null: any number.")
    max_bytes: ByteSize | None = Field(
        None,
        description="The most that their keys and columns take, as text, such as 100MiB; left out:"
        " any.",
    )

    @property
    def bounds(self) -> LetterBounds:
        """The same as a value."""
        return LetterBounds(self.max_rows, self.max_bytes)


def checked_people(people: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Return by which columns people are found.

    Raises:
        ValueError: Nothing is named, or a table is found by one that is not named before it.
    """
    for person, declared in people.items():
        if not declared or not all(declared.values()):
            raise ValueError(f"people: {person!r} names no column; write {{table: column}}")
        try:
            traces(declared)
        except SchemaError as error:
            raise ValueError(f"people: {error}") from error
    return people


def refuse_apart(people: Mapping[str, Mapping[str, str]], shard_of: Callable[[str], int]) -> None:
    """Refuse tables in which people are found by a table of another shard, and so of its mirror.

    Raises:
        ValueError: Says what to declare.
    """
    for declared in people.values():
        for trace in traces(declared):
            if trace.of is not None and shard_of(trace.table) != shard_of(trace.of):
                raise ValueError(
                    f"people: {trace.table!r} is found by {trace.of!r}, which is in another shard:"
                    " name both in one list of 'shards', or find people by a column of its own"
                )


def traces_of(people: Mapping[str, Mapping[str, str]], person: str) -> tuple[Trace, ...]:
    """Return how a kind of person is found in each table.

    Raises:
        SettingsError: No such people are declared.
    """
    if person not in people:
        raise SettingsError(
            f"no people are declared as {person!r}",
            hint=f"declare them under 'people': {nearest(person, list(people))}",
        )
    return traces(people[person])
