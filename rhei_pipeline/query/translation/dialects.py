"""The mirror's SQL dialects, where its engines use other names or behave differently."""

from abc import ABC, abstractmethod

import pyarrow as pa

from rhei_pipeline.model.numerics import GROUP, SIGNIFICANT_GROUPS, quotient_scale
from rhei_pipeline.model.semantics import APART, DIVIDED, FINITE, NEAR, ONLY_SOURCE, Kind
from rhei_pipeline.query.translation.meaning import StaysWithSourceError
from rhei_pipeline.sql.text import datafusion_type, duckdb_type, literal

#: Precision up to which DataFusion adds any number of decimals without a wrap-around.
_ADDED_DIGITS = 28


#: A number that is no double, in the mirror's SQL, and its digits behind the point.
Exact = tuple[str, int]
#: By so many groups of digits a number of 128 bits may be moved.
_SHIFTS = 10
#: DuckDB's end of a query is a cast that fails: `error` is volatile, and DuckDB (2.0) loses the
#: comparison with a correlated subquery that holds a volatile function.
_END = "'rhei: only the source answers this exactly'"


class Dialect(ABC):
    """The SQL of one engine.

    All text given and returned is SQL of the mirror; each is a whole expression.

    Attributes:
        multisets: Whether INTERSECT ALL and EXCEPT ALL count equal rows.
        null_aware: Whether IN and EXISTS on a subquery are right wherever they stand.
    """

    multisets = True
    null_aware = True

    @abstractmethod
    def cast(self, text: str, kept: pa.DataType) -> str:
        """Convert to this Arrow type, or fail."""

    @abstractmethod
    def guarded(self, condition: str, otherwise: str) -> str:
        """End the query if a condition holds: the source then answers it."""

    @abstractmethod
    def blob(self, hexadecimal: str) -> str:
        """Return a literal of bytes."""

    @abstractmethod
    def like(self, text: str, pattern: str, fixed: str | None, escape: str | None) -> str:
        """Return a case-sensitive LIKE; `fixed` is a literal pattern's own text."""

    @abstractmethod
    def whole(self, operator: str, left: str, right: str, kept: pa.DataType) -> str:
        """Return `+`, `-` or `*` of two integers of one type, which fails on overflow."""

    @abstractmethod
    def quotient(self, left: str, right: str) -> str:
        """Divide integers, rounding toward zero."""

    @abstractmethod
    def divided(self, left: Exact, right: Exact, scale: int, *, few: bool) -> str:
        """Divide exact numbers as PostgreSQL does, to a decimal of 38 digits; else fail.

        `few`: whether it is computed once for each group of rows, at most.
        """

    @abstractmethod
    def finite(self, text: str) -> str:
        """End the query if a double is infinite or NaN: the source then answers it."""

    @abstractmethod
    def apart(self, left: str, right: str, exact: str) -> str:
        """Write the difference of two sums of doubles; end the query where they nearly tie.

        `exact`: the condition for both to be exact, so that they may.
        """

    @abstractmethod
    def read_text(self, text: str, form: str, kept: pa.DataType) -> str:
        """Cast a text; end the query where it is not wholly of a regular expression's form."""

    @abstractmethod
    def without_nan(self, text: str) -> str:
        """Replace a NaN by null."""

    @abstractmethod
    def sum_of_exact(self, text: str, kept: pa.DataType, distinct: str, behind: str) -> str:
        """Sum integers or decimals exactly, or fail; `behind` is a FILTER or a window."""

    @abstractmethod
    def sum_of_reals(self, text: str, distinct: str, behind: str) -> str:
        """Sum doubles."""

    @abstractmethod
    def average_of_reals(self, text: str, distinct: str, behind: str) -> str:
        """Average doubles."""

    def read_day(self, text: str) -> str:
        """Read a text as a date; null where it is none."""
        return f"try_cast({text} as date)"

    def evaluated(self, text: str) -> str:
        """Write an aggregate's argument such that it is computed for each row, and fails there."""
        return text

    def compared(self, text: str, kept: pa.DataType) -> str:
        """Return a value for MIN or MAX."""
        del kept
        return text

    def order_key(self, text: str, kind: Kind) -> str:
        """Return a value for ORDER BY or DISTINCT: equal ones are one."""
        del kind
        return text

    def value_of(self, subquery: str) -> str:
        """Write a subquery as a value: null where it has no row."""
        return subquery

    def nullif(self, text: str, other: str, kind: Kind) -> str:
        """Return null where two values are equal, else the first."""
        del kind
        return f"nullif({text}, {other})"


class DuckDBDialect(Dialect):
    """DuckDB's SQL: its arithmetic fails on overflow, and it has compensated sums."""

    def cast(self, text: str, kept: pa.DataType) -> str:  # noqa: D102
        return f"cast({text} as {duckdb_type(kept)})"

    def guarded(self, condition: str, otherwise: str) -> str:  # noqa: D102
        ended = f"case when {condition} then cast({_END} as boolean) else false end"
        return f"case when {ended} then null else {otherwise} end"

    def blob(self, hexadecimal: str) -> str:  # noqa: D102
        return f"unhex({literal(hexadecimal)})"

    def like(  # noqa: D102
        self, text: str, pattern: str, fixed: str | None, escape: str | None
    ) -> str:
        del fixed
        behind = f" escape {literal(escape)}" if escape else ""
        return f"({text} like {pattern}{behind})"

    def whole(self, operator: str, left: str, right: str, kept: pa.DataType) -> str:  # noqa: D102
        del kept
        return f"({left} {operator} {right})"

    def quotient(self, left: str, right: str) -> str:  # noqa: D102
        return f"({left} // {right})"

    def divided(self, left: Exact, right: Exact, scale: int, *, few: bool) -> str:  # noqa: D102
        del few
        given = f"[{{'a': {_unscaled(*left)}, 'b': {_unscaled(*right)}}}]"
        sizes = (
            "{'a': abs(p['a']), 'b': abs(p['b']), 'minus': (p['a'] < 0) <> (p['b'] < 0),"
            " 'c': cast(abs(p['a']) as varchar), 'd': cast(abs(p['b']) as varchar)}"
        )
        a, b = (f"length(p['{name}'])" for name in "cd")
        first, second = (
            f"cast(left(p['{name}'], (length(p['{name}']) - 1) % {GROUP} + 1) as integer)"
            for name in "cd"
        )
        shift = (
            f"{SIGNIFICANT_GROUPS} - (({a} + 3) // {GROUP} - ({b} + 3) // {GROUP})"
            f" + cast({first} <= {second} as integer)"
        )
        moved = f"{{'a': p['a'], 'b': p['b'], 'minus': p['minus'], 'shift': {shift}}}"
        whole = _shifted(left[1], right[1], scale)
        text = given
        for step in (sizes, moved, whole):
            text = f"list_transform({text}, lambda p: {step})"
        unit = f"cast('0.{1:0{scale}}' as decimal({scale}, {scale}))"
        return f"cast(cast({text}[1] as decimal(38, 0)) * {unit} as decimal(38, {scale}))"

    def finite(self, text: str) -> str:  # noqa: D102
        return self.guarded(f"not isfinite({text})", text)

    def apart(self, left: str, right: str, exact: str) -> str:  # noqa: D102
        # Each side stands here once: it may be a subquery that is worth running once.
        near = f"p[3] = 0 and abs(p[1] - p[2]) <= {NEAR} * (abs(p[1]) + abs(p[2]))"
        found = self.guarded(near, "p[1] - p[2]")
        return f"list_transform([[{left}, {right}, cast({exact} as double)]], lambda p: {found})[1]"

    def read_text(self, text: str, form: str, kept: pa.DataType) -> str:  # noqa: D102
        # The text stands here once: it may be a path into a document.
        other = f"not regexp_full_match(t, {literal(form)})"
        read = self.guarded(other, self.cast("t", kept))
        return f"list_transform([{text}], lambda t: {read})[1]"

    def without_nan(self, text: str) -> str:  # noqa: D102
        return f"nullif({text}, 'nan'::double)"

    def sum_of_exact(  # noqa: D102
        self, text: str, kept: pa.DataType, distinct: str, behind: str
    ) -> str:
        del kept
        return f"sum({distinct}{text}){behind}"

    def sum_of_reals(self, text: str, distinct: str, behind: str) -> str:  # noqa: D102
        return f"fsum({distinct}{text}){behind}"

    def average_of_reals(self, text: str, distinct: str, behind: str) -> str:  # noqa: D102
        return f"favg({distinct}{text}){behind}"

    def evaluated(self, text: str) -> str:
        """Hide an argument from the optimizer, which adds a constant behind the sum.

        It counts rows, too, where it can tell that no argument is null.
        """
        return f"greatest({text})"


#: Longer expressions are not written twice: those within them would be doubled again and again.
_WRITTEN_TWICE = 500


class DataFusionDialect(Dialect):
    """DataFusion's SQL: integers and their sums wrap around, and sums of doubles are plain."""

    # INTERSECT ALL is a join that keeps every row of the left side.
    multisets = False
    # Elsewhere than as a condition of WHERE they become joins that know no null, and an aggregate
    # below them a join that knows no empty group.
    null_aware = False

    def cast(self, text: str, kept: pa.DataType) -> str:  # noqa: D102
        return f"arrow_cast({text}, {literal(datafusion_type(kept))})"

    def guarded(self, condition: str, otherwise: str) -> str:  # noqa: D102
        return f"case when {ONLY_SOURCE}({condition}) then null else {otherwise} end"

    def blob(self, hexadecimal: str) -> str:  # noqa: D102
        return f"decode({literal(hexadecimal)}, 'hex')"

    def like(  # noqa: D102
        self, text: str, pattern: str, fixed: str | None, escape: str | None
    ) -> str:
        # A backslash always escapes, and no other character does.
        if fixed is not None:
            return f"({text} like {literal(_escaped(fixed, escape))})"
        if escape is None:
            return f"({text} like replace({pattern}, '\\', '\\\\'))"
        if escape != "\\":
            raise StaysWithSourceError(
                "its ESCAPE is another than the mirror's, and its pattern not fixed"
            )
        checked = self.guarded(f"contains({pattern}, '\\')", pattern)
        return f"({text} like {checked})"

    def whole(self, operator: str, left: str, right: str, kept: pa.DataType) -> str:  # noqa: D102
        wider = pa.decimal128(20) if kept.bit_width == 64 else pa.int64()  # noqa: PLR2004
        text = f"({self.cast(left, wider)} {operator} {self.cast(right, wider)})"
        return self.cast(text, kept)

    def quotient(self, left: str, right: str) -> str:  # noqa: D102
        return f"({left} / {right})"

    def divided(self, left: Exact, right: Exact, scale: int, *, few: bool) -> str:  # noqa: D102
        if not few:
            raise StaysWithSourceError("it divides numerics in each row")
        texts = [self.cast(text, pa.string()) for text, _ in (left, right)]
        return f"{DIVIDED}{scale}({', '.join(texts)})"

    def finite(self, text: str) -> str:  # noqa: D102
        return f"{FINITE}({text})"

    def apart(self, left: str, right: str, exact: str) -> str:  # noqa: D102
        return f"{APART}({left}, {right}, {exact})"

    def read_text(self, text: str, form: str, kept: pa.DataType) -> str:  # noqa: D102
        other = f"not regexp_like({text}, {literal(f'^({form})$')})"
        return self.guarded(other, self.cast(text, kept))

    def without_nan(self, text: str) -> str:  # noqa: D102
        return f"nanvl({text}, cast(null as double))"

    def sum_of_exact(  # noqa: D102
        self, text: str, kept: pa.DataType, distinct: str, behind: str
    ) -> str:
        if not pa.types.is_decimal(kept):
            wide = self.cast(text, pa.decimal128(20)) if kept == pa.int64() else text
            return f"sum({distinct}{wide}){behind}"
        total = f"sum({distinct}{text}){behind}"
        if kept.precision <= _ADDED_DIGITS:
            return total
        magnitude = f"sum(abs({self.cast(text, pa.float64())})){behind}"
        return self.guarded(f"{magnitude} > 1e{37 - kept.scale}", total)

    def sum_of_reals(self, text: str, distinct: str, behind: str) -> str:  # noqa: D102
        return f"sum({distinct}{text}){behind}"

    def average_of_reals(self, text: str, distinct: str, behind: str) -> str:  # noqa: D102
        return f"avg({distinct}{text}){behind}"

    def read_day(self, text: str) -> str:
        """Read a text as a date; null where it is none."""
        return f"try_cast({text} as date)"

    def evaluated(self, text: str) -> str:
        """Write an aggregate's argument such that it is computed for each row, and fails there."""
        return text

    def compared(self, text: str, kept: pa.DataType) -> str:
        """Return a value for MIN or MAX; both are wrong for NaN and infinity."""
        return self.finite(text) if pa.types.is_floating(kept) else text

    def order_key(self, text: str, kind: Kind) -> str:
        """Write what rows are ordered by; a zero below zero is another one than zero here."""
        return f"({text} + cast(0 as double))" if kind in {Kind.REAL, Kind.NUMBER} else text

    def value_of(self, subquery: str) -> str:
        """Write it as what can be null: DataFusion takes a count for none, also without a row."""
        return f"nullif({subquery}, null)"

    def nullif(self, text: str, other: str, kind: Kind) -> str:
        """Write it by `=`: its own NULLIF takes zeros of both signs for two values."""
        if kind is not Kind.REAL:
            return super().nullif(text, other, kind)
        if len(text) > _WRITTEN_TWICE:
            raise StaysWithSourceError("its NULLIF is of a long expression, to be written twice")
        return f"(case when {text} = {other} then null else {text} end)"


def _unscaled(text: str, scale: int) -> str:
    """Return a number without its point in DuckDB's SQL, filled up to whole groups of digits."""
    digits = f"replace(cast({text} as varchar), '.', '')" if scale else text
    return f"cast({digits} as hugeint) * {10 ** (-scale % GROUP)}"


def _shifted(left_scale: int, right_scale: int, scale: int) -> str:
    """Return a quotient times `10**scale` in DuckDB's SQL, or the end of the query."""
    branches = ""
    for shift in range(_SHIFTS):
        kept = quotient_scale(shift, left_scale, right_scale)
        if max(left_scale, right_scale) <= kept <= scale:
            above = f"(2 * cast('{10 ** (GROUP * shift)}' as hugeint) * p['a'] + p['b'])"
            whole = f"{above} // (2 * p['b']) * cast('{10 ** (scale - kept)}' as hugeint)"
            branches += f" when p['shift'] = {shift} then {whole}"
    return (
        "case when p['a'] is null or p['b'] is null then null"
        f" when p['b'] = 0 then cast({_END} as hugeint) when p['a'] = 0 then 0"
        f" else (case{branches} else cast({_END} as hugeint) end)"
        " * (case when p['minus'] then -1 else 1 end) end"
    )


def _escaped(pattern: str, escape: str | None) -> str:
    """Rewrite a LIKE pattern with a backslash before each literal special character."""
    found, letters = [], iter(pattern)
    for letter in letters:
        if letter == escape:
            meant = next(letters, None)
            if meant is None:
                raise StaysWithSourceError("its LIKE pattern ends in an escape")
            found.append(f"\\{meant}" if meant in "%_\\" else meant)
        else:
            found.append("\\\\" if letter == "\\" else letter)
    return "".join(found)


WORDS: dict[str, Dialect] = {"duckdb": DuckDBDialect(), "datafusion": DataFusionDialect()}
