"""Masks: what a mirror holds in place of the source's values, column by column in Arrow.

Each distinct value is masked once. What is null in the source stays null under every mask.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from rhei_pipeline.changes.compaction import one_form
from rhei_pipeline.errors import SchemaError, needs_extra
from rhei_pipeline.model.changes import key_text, read_keys
from rhei_pipeline.model.masks import MaskRule, parse_rule
from rhei_pipeline.model.plain_values import plain_rows, plain_values
from rhei_pipeline.model.schema import (
    Column,
    MaskedColumn,
    Table,
    TableSchema,
    nearest,
    spelled,
)
from rhei_pipeline.model.type_names import type_name

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

#: In place of a text, or of what is not shown of it. As long for short texts as for long ones.
REDACTED = "***"
#: Half of SHA-256: no two values of any table will ever share so many bits.
_HASH_CHARACTERS = 32
_TAG_BYTES = 16
#: What a sealed text begins with; those of older versions have no full stop.
_SEALED = "2."

#: Takes distinct values, none of them null, and returns as many.
_Mask = Callable[[pa.Array], pa.Array]


class MaskingKey:
    """The key of the hashes, and what is derived from it; never shown.

    Args:
        text: The key as it is declared; empty where nothing is hashed.
    """

    def __init__(self, text: str) -> None:
        self._secret = text.encode()

    def __repr__(self) -> str:
        return "MaskingKey(...)"

    @property
    def mark(self) -> str:
        """A text that changes with the key, from which the key cannot be found."""
        return hmac.digest(self._derived("mark"), b"", "sha256").hex()[:16]

    def hashed(self, values: pa.Array) -> pa.Array:
        """Return the hash of each value: HMAC-SHA-256, the first half of it in hexadecimal."""
        key = self._secret
        return pa.array(
            [hmac.digest(key, v, "sha256").hex()[:_HASH_CHARACTERS] for v in _bytes_of(values)],
            pa.string(),
        )

    def seal(self, text: str) -> str:
        """Encrypt a text by AES-SIV; the same text always gives the same.

        Raises:
            MissingExtraError: The package for it is not installed.
        """
        sealed = self._cipher().encrypt(text.encode(), None)
        return _SEALED + base64.urlsafe_b64encode(sealed).decode()

    def unseal(self, sealed: str) -> str:
        """Decrypt what `seal` returned, in this version or in one before."""
        if not sealed.startswith(_SEALED):
            return self._unseal_former(sealed)
        found = base64.urlsafe_b64decode(sealed.removeprefix(_SEALED))
        return self._cipher().decrypt(found, None).decode()

    def _cipher(self) -> "AESSIV":
        with needs_extra("masking", "a key that is masked"):
            from cryptography.hazmat.primitives.ciphers.aead import (  # noqa: PLC0415  (an extra)
                AESSIV,
            )
        return AESSIV(hashlib.sha512(b"rhei siv\0" + self._secret).digest())

    def _unseal_former(self, sealed: str) -> str:
        """Decrypt what a version before this one has left; nothing is written so any more."""
        found = base64.urlsafe_b64decode(sealed)
        tag, data = found[:_TAG_BYTES], found[_TAG_BYTES:]
        key, size = self._derived("stream"), hashlib.sha256().digest_size
        blocks = range(-(-len(data) // size))
        stream = b"".join(hmac.digest(key, tag + n.to_bytes(8), "sha256") for n in blocks)
        mixed = int.from_bytes(data) ^ int.from_bytes(stream[: len(data)])
        return mixed.to_bytes(len(data)).decode()

    def _derived(self, purpose: str) -> bytes:
        # Not by the hash of a value: a row of that value would show it.
        return hashlib.sha256(b"rhei " + purpose.encode() + b"\0" + self._secret).digest()


def _bytes_of(values: pa.Array) -> list[bytes]:
    """Return the bytes that are hashed: equal values have equal bytes, whatever table has them."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = values.cast(pa.large_binary())
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        found: list[bytes] = values.to_pylist()
        return found
    if pa.types.is_floating(kind):
        values = one_form(pa.chunked_array([values]))
    return [_text_of(value).encode() for value in plain_values(values)]


def _text_of(value: object) -> str:
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, default=str, sort_keys=True)
    return str(value)


def source_schema(schema: TableSchema) -> TableSchema:
    """Return a table's schema as the source has it."""
    if not schema.where and not any(column.masked for column in schema.columns):
        return schema
    columns = (column.masked.source if column.masked else column for column in schema.columns)
    return replace(schema, columns=tuple(columns), where="")


def source_table(table: Table) -> Table:
    """Return a table as the source has it."""
    schema = source_schema(table.schema)
    return table if schema is table.schema else Table(schema, table.mode)


def has_masked_key(schema: TableSchema) -> bool:
    """Return whether a part of the key is masked."""
    return any(column.masked for column in schema.key_columns)


def masked_schema(
    schema: TableSchema, rules: dict[str, str], key: MaskingKey, *, whole: bool = True
) -> TableSchema:
    """Return a table's schema as the mirror has it.

    Args:
        schema: As the source has it.
        rules: The masks, by column.
        key: The key of hashes.
        whole: Whether every masked column has to be there. One that is not may have been renamed,
            and its values would come under the other name.

    Raises:
        SchemaError: A mask does not suit its column, or the column is missing.
    """
    by_name = {spelled(name, schema.names): rule for name, rule in rules.items()}
    missing = sorted(by_name.keys() - set(schema.names))
    if whole and missing:
        raise SchemaError(
            f"column {missing[0]!r} is to be masked, and is not there",
            table=schema.name,
            hint=f"correct 'mask' in the declaration: {nearest(missing[0], schema.names)}",
        )
    columns = (
        _masked(column, by_name[column.name], schema, key) if column.name in by_name else column
        for column in schema.columns
    )
    return replace(schema, columns=tuple(columns))


def _masked(column: Column, text: str, schema: TableSchema, key: MaskingKey) -> Column:
    rule = parse_rule(text)
    if column.name in schema.primary_key and rule.kind != "hash":
        raise _unfit(schema, column, text, "would make rows of different keys one", "use 'hash'")
    made = MaskedColumn(text, column, key.mark if rule.kind == "hash" else "")
    nullable = column.nullable or rule.kind in {"null", "function"}
    kept = _kind_of(column, rule, schema)
    is_same = kept.equals(column.type)
    return Column(column.name, kept, nullable, column.epoch if is_same else None, masked=made)


def _kind_of(column: Column, rule: MaskRule, schema: TableSchema) -> pa.DataType:
    """Return the type of a column's masked values."""
    if rule.kind in {"hash", "redact"}:
        return pa.string()
    if rule.kind == "function":
        found = _called(rule.function, schema, column)(pa.array([], column.type)).type
        try:
            type_name(found)
        except SchemaError:
            why = f"returns values of type {found}, which mirrors do not store"
            raise _unfit(schema, column, rule.function, why, "return text or numbers") from None
        return found
    is_text = pa.types.is_string(column.type)
    if rule.kind != "null" and not is_text:
        why = f"needs text, and the column has {type_name(column.type, column.epoch)}"
        raise _unfit(schema, column, f"{rule.kind}:{rule.count}", why, "use 'hash' or 'redact'")
    return column.type


def _unfit(schema: TableSchema, column: Column, rule: str, why: str, hint: str) -> SchemaError:
    return SchemaError(
        f"the mask {rule!r} of column {column.name!r} {why}", table=schema.name, hint=hint
    )


@cache
def _function(name: str) -> Callable[[pa.Array], object]:
    module, _, function = name.partition(":")
    found: Callable[[pa.Array], object] = getattr(import_module(module), function)
    return found


def _called(name: str, schema: TableSchema, column: Column) -> _Mask:
    """Return a declared function; what it raises is named without its text, which may hold values.

    Raises:
        SchemaError: It cannot be imported, it fails, or does not return as many values.
    """

    def call(values: pa.Array) -> pa.Array:
        try:
            found = _function(name)(values)
        except Exception as error:  # noqa: BLE001  (whatever a declared function does)
            why = f"failed: {type(error).__name__}"
            raise _unfit(schema, column, name, why, "correct the function, or its name") from None
        if isinstance(found, pa.ChunkedArray):
            found = found.combine_chunks()
        if not isinstance(found, pa.Array) or len(found) != len(values):
            why = "returned no Arrow array of as many values"
            raise _unfit(schema, column, name, why, "return a value for each value")
        return found

    return call


def _mask_of(masked: MaskedColumn, column: Column, schema: TableSchema, key: MaskingKey) -> _Mask:
    rule = parse_rule(masked.rule)
    if rule.kind == "hash":
        return key.hashed
    if rule.kind == "redact":
        return lambda values: pa.repeat(REDACTED, len(values))
    if rule.kind == "truncate":
        return lambda values: pc.utf8_slice_codeunits(values, 0, rule.count)
    if rule.kind == "partial":
        return lambda values: _partial(values, rule.count)
    if rule.kind == "null":
        return lambda values: pa.nulls(len(values), column.type)
    return _called(rule.function, schema, masked.source)


def _partial(values: pa.Array, count: int) -> pa.Array:
    """Leave the last characters; none of a text that has no more."""
    shown = pc.utf8_slice_codeunits(values, -count)
    ends = pc.if_else(pc.greater(pc.utf8_length(values), count), shown, "")
    return pc.binary_join_element_wise(REDACTED, ends, "")


def masked_rows(rows: pa.Table, schema: TableSchema, key: MaskingKey) -> pa.Table:
    """Mask a table's columns among those of some rows, events or keys; others stay as they are."""
    for column in schema.columns:
        place = rows.schema.get_field_index(column.name)
        if column.masked is not None and place >= 0:
            mask = _mask_of(column.masked, column, schema, key)
            found = _masked_values(rows.column(place), mask)
            if not found.type.equals(column.type):
                why = f"returned {found.type} for some values, and {column.type} for none"
                hint = "return values of one type"
                raise _unfit(schema, column, column.masked.rule, why, hint)
            field = rows.schema.field(place).with_type(column.type)
            rows = rows.set_column(place, field, found)
    return rows


def _masked_values(values: pa.ChunkedArray, mask: _Mask) -> pa.Array:
    whole = values.combine_chunks()
    if pa.types.is_nested(whole.type):
        # Arrow does not find the distinct ones among these.
        distinct, places = whole.drop_null(), pc.cumulative_sum(pc.is_valid(whole).cast("int64"))
        indices = pc.if_else(pc.is_valid(whole), pc.subtract(places, 1), None)
    else:
        encoded = whole.dictionary_encode()
        distinct, indices = encoded.dictionary, encoded.indices
    return mask(distinct).take(indices)


def masked_key_text(text: str, schema: TableSchema, key: MaskingKey) -> str:
    """Mask a key as dead letters name it; parts that no row can have are masked by their text."""
    if not has_masked_key(schema):
        return text
    parts = json.loads(text)
    read = read_keys([text], source_schema(schema))
    if read.num_rows:
        return key_text(plain_rows(masked_rows(read, schema, key))[0])
    for column in schema.key_columns:
        part = parts.get(column.name)
        if column.masked and part is not None:
            parts[column.name] = key.hashed(pa.array([_text_of(part)]))[0].as_py()
    return json.dumps(parts, ensure_ascii=False)
