"""The one place where a table becomes an asset: its key, group, kinds, metadata, description."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg

from rhei_pipeline.dagster.code_references import code_references, code_version
from rhei_pipeline.dagster.descriptions import description
from rhei_pipeline.dagster.metadata import column_lineage, static_metadata
from rhei_pipeline.dagster.names import Names, more_digits, plain_name
from rhei_pipeline.dagster.stages import Stage
from rhei_pipeline.model.schema import Mode, Table
from rhei_pipeline.settings.model import Settings

#: What each stage is made from. The stream of changes is one asset for all tables.
_UPSTREAM: dict[Stage, tuple[Stage, ...]] = {
    Stage.SOURCE: (),
    Stage.CHANGES: (Stage.SOURCE,),
    Stage.INITIAL_SYNC: (Stage.SOURCE,),
    Stage.MIRROR: (Stage.CHANGES, Stage.INITIAL_SYNC),
    Stage.SNAPSHOT: (Stage.MIRROR,),
}


#: Where a table's columns come from, past stages that have none.
_COLUMNS_FROM = {
    Stage.INITIAL_SYNC: Stage.SOURCE,
    Stage.MIRROR: Stage.SOURCE,
    Stage.SNAPSHOT: Stage.MIRROR,
}


@dataclass(frozen=True, slots=True)
class RheiAsset:
    """What an asset is made from.

    Attributes:
        stage: Where on its way a table is.
        settings: The declaration.
        tables: All tables of the declaration.
        table: The table; None at the stage of changes, which is one stream of all tables.
        fault: What kept the table, or the whole source, from being read for these definitions.
        known: The keys of assets of this declaration, once they are known.
        digits: What `told_apart` adds to the names of tables, by these.
    """

    stage: Stage
    settings: Settings
    tables: Sequence[Table]
    table: Table | None
    fault: str | None = None
    known: dict[tuple[Stage, str | None], dg.AssetKey] = field(
        default_factory=dict, repr=False, compare=False
    )
    digits: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)


class RheiTranslator:
    """Makes the asset spec of a table at each stage.

    Override `get_asset_spec` to give assets other keys, groups, owners, tags or descriptions:

        class Ours(RheiTranslator):
            def get_asset_spec(self, asset: RheiAsset) -> dg.AssetSpec:
                return super().get_asset_spec(asset).replace_attributes(owners=["team:data"])

    Another key is followed by all that depends on it.
    """

    def get_asset_spec(self, asset: RheiAsset) -> dg.AssetSpec:
        """Return the spec of a table at a stage."""
        return dg.AssetSpec(
            self._key(asset),
            deps=self._upstream(asset),
            description=description(asset.stage, asset.settings, asset.table, asset.fault),
            group_name=Names.of(asset.settings).named(asset.stage.group),
            kinds=self._kinds(asset),
            skippable=asset.stage is Stage.MIRROR,
            code_version=self._code_version(asset),
            metadata=self._metadata(asset),
        )

    def _key(self, asset: RheiAsset) -> list[str]:
        names = Names.of(asset.settings)
        if asset.table is None:
            return names.key(asset.stage.value, "changes")
        parts = key_parts(asset.table)
        digits = asset.digits.get(asset.table.name)
        if digits is not None:
            parts[-1] = f"{parts[-1]}_{digits}"
        return names.key(asset.stage.value, *parts)

    def _upstream(self, asset: RheiAsset) -> list[dg.AssetKey]:
        found = []
        for stage in _UPSTREAM[asset.stage]:
            if stage is Stage.CHANGES:
                tables: Sequence[Table | None] = [None]
            else:
                tables = asset.tables if asset.table is None else [asset.table]
            found += [self._key_of(asset, stage, table) for table in tables]
        return found

    def _key_of(self, asset: RheiAsset, stage: Stage, table: Table | None) -> dg.AssetKey:
        """Return the key of another asset, which a subclass may have given it."""
        place = (stage, None if table is None else table.name)
        if place not in asset.known:
            other = replace(asset, stage=stage, table=table)
            asset.known[place] = self.get_asset_spec(other).key
        return asset.known[place]

    def _metadata(self, asset: RheiAsset) -> dict[str, Any]:
        found = static_metadata(asset.stage, asset.settings, asset.table)
        if asset.table is not None and asset.stage in _COLUMNS_FROM:
            upstream = self._key_of(asset, _COLUMNS_FROM[asset.stage], asset.table)
            found |= column_lineage(asset.table, upstream)
        return found | code_references(asset.settings, asset.table)

    def _code_version(self, asset: RheiAsset) -> str | None:
        """Return what is declared of what this pipeline makes; it does not make the source."""
        if asset.table is None or asset.stage is Stage.SOURCE:
            return None
        return code_version(asset.settings, asset.table)

    def _kinds(self, asset: RheiAsset) -> set[str]:
        if asset.stage is Stage.CHANGES:
            return {asset.settings.source.kind, "stream"}
        if asset.stage is Stage.SOURCE:
            return {asset.settings.source.kind, "table"}
        mirror = asset.settings.mirror.kind
        if asset.stage is Stage.INITIAL_SYNC:
            return {mirror}
        is_history = asset.stage is Stage.MIRROR and _is_temporal(asset.table)
        return {mirror, "table"} | ({"scd2"} if is_history else set())


def key_parts(table: Table) -> list[str]:
    """Return a table's name as parts of an asset key, its namespace first where it is told."""
    schema = table.schema
    parts = [schema.relation]
    if schema.namespace is not None and schema.name != schema.relation:
        parts.insert(0, schema.namespace)
    return [plain_name(part) for part in parts]


def told_apart(tables: Iterable[Table]) -> Mapping[str, str]:
    """Return the tables, by name, whose names are written as those of another one, with digits.

    Names of two Chinese letters are written alike in one of 65,536 pairs, so that 155 of them had
    such a pair; and Dagster joins the parts of a key, so that table `b` of schema `a` is written as
    `a__b`. Of such tables the first goes without digits, or the first whose name needs no others.
    """
    taken = set[tuple[str, str]]()
    found = {}
    for table in sorted(tables, key=_is_plain, reverse=True):
        written = _written(table)
        if written & taken:
            found[table.name] = more_digits(table.name)
        taken |= written
    return found


def _is_plain(table: Table) -> bool:
    return plain_name(table.schema.relation) == table.schema.relation


def _written(table: Table) -> set[tuple[str, str]]:
    """Return how a table is called in keys, in names of jobs, and in those of files."""
    return {
        ("key", "__".join(key_parts(table))),
        ("job", plain_name(table.name)),
        ("file", plain_name(table.schema.snapshot_name)),
    }


def _is_temporal(table: Table | None) -> bool:
    return table is not None and table.mode is Mode.TEMPORAL
