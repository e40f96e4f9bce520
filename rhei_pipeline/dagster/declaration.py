"""The declaration as Dagster sees it: settings, the tables they name, and their asset specs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from rhei_pipeline.dagster.names import Names, plain_name
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.dagster.translator import RheiAsset, RheiTranslator, told_apart
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.settings.model import Settings
from rhei_pipeline.wiring.declared_schemas import declared_schemas

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What all factories of this package take.

    Attributes:
        settings: The declaration itself.
        tables: The declared tables, with their schemas as far as these are known.
        faults: The tables that cannot be followed now, each with the reason and what to do.
        source_fault: Why the source's catalogue could not be read; the schemas are then those
            that the mirror was last built with.
        translator: Makes an asset's spec.
    """

    settings: Settings
    tables: tuple[Table, ...]
    faults: Mapping[str, str]
    source_fault: str | None
    translator: RheiTranslator
    _known: dict[tuple[Stage, str | None], dg.AssetKey] = field(
        default_factory=dict, repr=False, compare=False
    )
    _digits: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, settings: Settings, translator: RheiTranslator | None = None) -> "Declaration":
        """Read what the source's catalogue has, within a time limit; never fail because of it.

        Args:
            settings: The declaration.
            translator: Makes the assets' specs; left out, `RheiTranslator` does.
        """
        settings.refuse_whole()
        found = declared_schemas(settings, settings.schedule.catalog_seconds)
        # A code location may have several pipelines, and tables of one name.
        whose = f"pipeline {settings.name!r}: " if settings.name else ""
        for fault in found.faults.values():
            _log.error("%s%s; the table is left out until this is fixed", whose, fault)
        if found.source_fault is not None:
            _log.error(
                "%s%s; the definitions show the schemas that the mirror was last built with,"
                " if any",
                whose,
                found.source_fault,
            )
        return cls(
            settings,
            found.tables,
            found.faults,
            found.source_fault,
            translator or RheiTranslator(),
            _digits=told_apart(found.tables),
        )

    @property
    def names(self) -> Names:
        """What jobs, sensors, resources and the pool are called."""
        return Names.of(self.settings)

    @property
    def temporal(self) -> tuple[Table, ...]:
        """The tables with history."""
        return tuple(table for table in self.tables if table.mode is Mode.TEMPORAL)

    def plain_name(self, table: str, name: str | None = None) -> str:
        """Return a table's name as Dagster's names demand, or the one given, unlike any other's."""
        plain = plain_name(name or table)
        return f"{plain}_{self._digits[table]}" if table in self._digits else plain

    def spec(self, stage: Stage, table: Table | None = None) -> dg.AssetSpec:
        """Return the spec of a table at a stage; of the change stream where no table is given."""
        fault = self.source_fault or (None if table is None else self.faults.get(table.name))
        return self.translator.get_asset_spec(
            RheiAsset(stage, self.settings, self.tables, table, fault, self._known, self._digits)
        )

    def key(self, stage: Stage, table: Table | None = None) -> dg.AssetKey:
        """Return the key of a table at a stage."""
        return self.spec(stage, table).key

    def spec_over(
        self,
        table: str,
        *key: str,
        **more: Any,  # noqa: ANN401  (what Dagster's spec takes)
    ) -> dg.AssetSpec | None:
        """Return the spec of an asset of your own that reads the history of a mirrored table.

        It depends on the mirror, and carries the pipeline's name as all other assets do.

        Args:
            table: The table, by the name that the source has for it.
            key: The parts of the asset's key; the first one names its group.
            more: Whatever else `dagster.AssetSpec` takes.

        Returns:
            None where the declaration does not mirror the table with its history.
        """
        found = next((each for each in self.temporal if each.name == table), None)
        if found is None:
            return None
        return dg.AssetSpec(
            self.names.key(*key),
            deps=[self.key(Stage.MIRROR, found)],
            group_name=self.names.named(key[0]),
            **more,
        )

    @property
    def metadata(self) -> dict[str, str]:
        """What is wrong, for programs; a person reads it in the assets' descriptions."""
        found = {f"left out: {name}": fault for name, fault in self.faults.items()}
        if self.source_fault:
            found["source"] = self.source_fault
        # Definitions that are merged have one mapping.
        whose = f"{self.settings.name}: " if self.settings.name else ""
        return {f"{whose}{what}": fault for what, fault in found.items()}
