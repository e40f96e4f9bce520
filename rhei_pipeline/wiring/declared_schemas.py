"""The declared tables' schemas: from the source while it answers, else as they were mirrored."""

from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from threading import Thread

from rhei_pipeline.changes.masks import source_schema
from rhei_pipeline.errors import RheiError
from rhei_pipeline.model.blame import own_fault
from rhei_pipeline.model.schema import Mode, Table, TableOptions, TableSchema
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.sync.kept_history import Declared
from rhei_pipeline.sync.schema_registry import Registry
from rhei_pipeline.wiring.discovery import declared_tables, mirrored_before
from rhei_pipeline.wiring.masking import declared_masks
from rhei_pipeline.wiring.source import known_tables, open_database
from rhei_pipeline.wiring.table_options import table_options


@dataclass(frozen=True, slots=True)
class DeclaredSchemas:
    """The declared tables, as far as they are known.

    Attributes:
        tables: The tables. One that cannot be read is as it was mirrored last; one that never was
            mirrored, either, has no columns.
        faults: The tables that cannot be read, each with the reason and what to do.
        source_fault: Why the source could not be asked at all; None where it answered.
    """

    tables: tuple[Table, ...]
    faults: dict[str, str] = field(default_factory=dict)
    source_fault: str | None = None


def declared_schemas(settings: Settings, seconds: float | None = None) -> DeclaredSchemas:
    """Read the declared tables' schemas from the source, and open nothing else.

    Args:
        settings: The declaration.
        seconds: How long the source may take. Where it takes longer or cannot be reached, the
            schemas are those that the mirror was last built with. None waits, and raises what
            the source raises.
    """
    if seconds is None:
        return _from_source(settings, known_tables(settings))
    try:
        registry, fault = known_tables(settings), None
    except RheiError as error:
        registry, fault = Registry(None, ""), str(error)
    found: Future[DeclaredSchemas] = Future()
    # A server that does not answer keeps its thread; nobody waits for it when the process ends.
    Thread(
        target=_answer, args=(found, settings, registry), name="rhei-catalog", daemon=True
    ).start()
    try:
        answered = found.result(seconds)
    except FutureTimeoutError:
        late = f"the source's catalogue did not answer within {seconds:g} s; load again later"
        return _as_mirrored(settings, registry, late)
    except RheiError as error:
        return _as_mirrored(settings, registry, str(error))
    return replace(answered, source_fault=fault)


def _answer(found: "Future[DeclaredSchemas]", settings: Settings, registry: Registry) -> None:
    try:
        found.set_result(_from_source(settings, registry))
    except BaseException as error:  # noqa: BLE001  (raised again by whoever waits for the result)
        found.set_exception(error)


def _from_source(settings: Settings, registry: Registry) -> DeclaredSchemas:
    database = open_database(settings, looking=True)
    try:
        options, masks = (
            table_options(settings, registry),
            declared_masks(settings, registry, database),
        )
        faults = dict[str, str]()
        tables: dict[str, Table] = {}
        for declared in declared_tables(settings, database, registry):
            known = registry.table(declared.name)
            schema = known.schema if known else None
            try:
                chosen = options.get(declared.name, TableOptions())
                before = source_schema(schema) if schema else None
                schema = masks.masked(database.read_schema(declared.name, chosen, before))
            except Exception as error:
                fault = own_fault(error, declared.name)
                if fault is None:
                    raise
                faults[declared.name] = str(fault)
            table = _table(settings, declared, known, schema)
            tables.setdefault(table.name, table)
        return DeclaredSchemas(tuple(tables.values()), faults)
    finally:
        database.close()


def _as_mirrored(settings: Settings, registry: Registry, fault: str) -> DeclaredSchemas:
    """Return the tables as the registry knows them, without asking the source."""
    tables: dict[str, Table] = {}
    for declared in mirrored_before(settings, registry):
        known = registry.table(declared.name)
        table = _table(settings, declared, known, known.schema if known else None)
        tables.setdefault(table.name, table)
    return DeclaredSchemas(tuple(tables.values()), {}, fault)


def _table(
    settings: Settings, declared: Declared, known: Table | None, schema: TableSchema | None
) -> Table:
    """Return a table in the mode that it is mirrored in."""
    keeps = known is not None and known.mode is Mode.TEMPORAL and not declared.explicit
    mode = Mode.TEMPORAL if keeps else declared.mode
    return Table(schema or _unknown(settings, declared.name), mode)


def _unknown(settings: Settings, name: str) -> TableSchema:
    """Return the schema of a table that nothing is known of but its name."""
    if settings.source.kind != "postgres":
        return TableSchema(name, (), ())
    plain = name.removeprefix("public.")
    namespace, dot, _ = plain.partition(".")
    return TableSchema(plain, (), (), namespace if dot else "public")
