"""Names: of tables that are declared, and which ones a mirror cannot hold beside each other."""

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property

from rhei_pipeline.errors import PermanentError, SchemaDriftError, SchemaError
from rhei_pipeline.model.schema import Table, TableSchema, nearest
from rhei_pipeline.protocols import MirrorRecords
from rhei_pipeline.sql.text import as_sqlite_reads, mirror_table

#: By this name DuckDB finds rows; a column of this name would hide it, and other rows be changed.
_ROW_PLACE = "rowid"
_OTHER_SCHEMA = (
    "if the file of 'mirror.path' is named so, give it another name; else rename the schema in the"
    " source, or leave the table out of 'tables'"
)


def declared_twice(name: str) -> SchemaError:
    """Return the fault of a table that has several entries in the declaration."""
    return SchemaError(
        "it is declared more than once", table=name, hint="keep one of its entries under 'tables'"
    )


def nothing_declared() -> SchemaError:
    """Return what there is to say where no table is declared or found."""
    return SchemaError(
        "the source has no table with a primary key",
        hint="create one, or name tables and their 'primary_key' under 'tables'",
    )


def in_any_case(name: str, tables: Mapping[str, Table]) -> Table | None:
    """Return a table by its name, in any case where none has it as it is given."""
    if (exact := tables.get(name)) is not None:
        return exact
    # Of PostgreSQL, a table whose name has a dot is known with its schema, which may be left out.
    by_lower = {
        known.removeprefix("public.").lower(): table
        for known, table in tables.items()
        if table.schema.namespace == "public"
    }
    by_lower |= {table.schema.full_name.lower(): table for table in tables.values()}
    by_lower |= {known.lower(): table for known, table in tables.items()}
    return by_lower.get(name.removeprefix("main.").lower())


def find_table(
    name: str, tables: Mapping[str, Table], errors: Mapping[str, PermanentError]
) -> Table:
    """Return a table that takes part by its name, in any case; `errors` are those left out for.

    Raises:
        SchemaError: There is no such table.
        PermanentError: It is left out; why.
    """
    found = in_any_case(name, tables)
    if found is None and name in errors:
        raise errors[name]
    if found is None:
        raise SchemaError("it is not mirrored", table=name, hint=nearest(name, sorted(tables)))
    return found


def find_known(name: str, known: Collection[str]) -> str:
    """Return the source's name of a known table by a name in any case, unless one is as given.

    Raises:
        SchemaError: There is none.
    """
    if name in known:
        return name
    by_lower = {each.removeprefix("public.").lower(): each for each in known}
    found = by_lower.get(name.removeprefix("public.").lower())
    if found is None:
        raise SchemaError("it is not mirrored", table=name, hint=nearest(name, sorted(known)))
    return found


def refuse_like_columns(schema: TableSchema) -> None:
    """Refuse columns whose names DuckDB takes for another: by case, or for a row's place.

    Raises:
        SchemaError: Names them.
    """
    met: dict[str, str] = {}
    for name in schema.names:
        if name.lower() == _ROW_PLACE:
            raise SchemaError(
                f"its column {name!r} has the name by which DuckDB finds rows",
                table=schema.name,
                hint="leave it out with 'columns', rename it, or keep the mirror in files",
            )
        if (other := met.setdefault(name.lower(), name)) != name:
            raise SchemaError(
                f"its columns {other!r} and {name!r} differ by case only, and its mirror ignores "
                "case",
                table=schema.name,
                hint="leave one of them out with 'columns', or rename it in the source",
            )


class TakenNames:
    """The names that tables have in the mirror; finding out who has one costs no walk over all.

    Args:
        found: The tables that were found so far; kept up to date by the caller. They give way to
            those that stand in the mirror already.
        standing: The tables that are in the mirror, by name.
        declared: The names of all tables that are to be mirrored; kept up to date by the caller.
        mirror: Says which names are one, and which it cannot take.
    """

    def __init__(
        self,
        found: Mapping[str, Table],
        standing: Mapping[str, Table],
        declared: Collection[str],
        *,
        mirror: MirrorRecords,
    ) -> None:
        self._found, self._declared = found, declared
        self._mirror, self._folds = mirror, mirror.folds_names
        self._found_as: dict[str, list[Table]] = {}
        self._standing_as: dict[str, list[Table]] = {}
        self._standing_of: dict[str, list[Table]] = {}
        for table in standing.values():
            self._standing_as.setdefault(self._folded(table.schema), []).append(table)
            self._standing_of.setdefault(table.name, []).append(table)
        for table in found.values():
            self.add(table)

    def add(self, table: Table) -> None:
        """Take in a table that was found."""
        self._found_as.setdefault(self._folded(table.schema), []).append(table)

    def refuse_taken(self, schema: TableSchema) -> None:
        """Refuse a name that another table has in the mirror, or that a schema of its own has.

        Raises:
            SchemaError: Another table has the name, or it is another one than the table had before,
                or the mirror cannot take the table's schema.
        """
        self._refuse_schema(schema)
        wanted = self._folded(schema)
        for other in self._others(schema, wanted):
            if other.name != schema.name and not _is_renamed(other.schema, schema):
                raise SchemaError(
                    f"table {other.name!r} has the name {other.schema.mirror_relation!r} in the"
                    f" mirror{', where case does not count' if self._folds else ''}",
                    table=schema.name,
                    hint="give one of them another 'mirror_name' under 'tables'",
                )
        for table in self._standing_of.get(schema.name, ()):
            own = table.schema.mirror_name or schema.mirror_name
            if own and self._folded(table.schema) != wanted:
                raise SchemaDriftError(
                    f"it is mirrored as {table.schema.mirror_relation!r}, but is now "
                    f"declared as {schema.mirror_relation!r}",
                    table=schema.name,
                    hint="declare the former 'mirror_name', or run"
                    f" 'rhei drop-table {schema.name}', with '--keep-as NAME' for its history",
                )

    def _refuse_schema(self, schema: TableSchema) -> None:
        if schema.namespace is None:
            return
        name = schema.namespace.lower() if self._folds else schema.namespace
        if name in self._taken_schemas:
            raise SchemaError(
                f"the mirror has something of its own with the name of its schema,"
                f" {schema.namespace!r}",
                table=schema.name,
                hint=_OTHER_SCHEMA,
            )

    @cached_property
    def _taken_schemas(self) -> Collection[str]:
        return self._mirror.taken_schemas

    def _others(self, schema: TableSchema, wanted: str) -> Iterator[Table]:
        """Yield the tables that have a name, and before which this one gives way."""
        for table in self._standing_as.get(wanted, ()):
            if table.name in self._declared:
                yield table
        if schema.name not in self._standing_of or schema.name not in self._declared:
            for table in self._found_as.get(wanted, ()):
                if self._found.get(table.name) is table:
                    yield table

    def _folded(self, schema: TableSchema) -> str:
        name = mirror_table(schema)
        return name.lower() if self._folds else name


def _is_renamed(other: TableSchema, schema: TableSchema) -> bool:
    """Return whether two names are one table's: a source without schemas ignores case."""
    is_alike = as_sqlite_reads(other.name) == as_sqlite_reads(schema.name)
    return schema.namespace is None and is_alike
