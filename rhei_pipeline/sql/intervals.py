"""SQL of DuckDB that reads intervals of PostgreSQL's ISO 8601 text, and writes them so."""

_NUMBER = "-?[0-9]+"


def interval_sql(text: str) -> str:
    """Return SQL of the interval that a text is; null or another one where it is none."""
    day, clock = f"split_part({text}, 'T', 1)", f"split_part({text}, 'T', 2)"
    months = f"{_found(day, 'Y')} * 12 + {_found(day, 'M')}"
    seconds = f"regexp_extract({clock}, '(-?[0-9.]+)S', 1)"
    micros = (
        f"{_found(clock, 'H')} * 3600000000 + {_found(clock, 'M')} * 60000000"
        f" + coalesce(try_cast(try_cast({seconds} as decimal(18, 6)) * 1000000 as bigint), 0)"
    )
    days = _found(day, "D")
    whole = (
        f"to_months(try_cast({months} as integer)) + to_days(try_cast({days} as integer))"
        f" + to_microseconds({micros})"
    )
    return f"(case when starts_with({text}, 'P') then {whole} end)"


def _found(text: str, unit: str) -> str:
    """Return SQL of the number before a unit."""
    found = f"regexp_extract({text}, '({_NUMBER}){unit}', 1)"
    return f"coalesce(try_cast({found} as bigint), 0)"


def interval_text_sql(column: str) -> str:
    """Return SQL of an interval's text; a text that is one already stays."""
    shown = f"cast({column} as varchar)"
    day = " || ".join(
        _shown(f"regexp_extract({shown}, '({_NUMBER}) {name}', 1)", unit)
        for name, unit in (("year", "Y"), ("month", "M"), ("day", "D"))
    )
    minus, seconds = _clock(shown, 1), f"{_clock(shown, 4)} || {_clock(shown, 5)}"
    parts = ((_clock(shown, 2), "H"), (_clock(shown, 3), "M"), (seconds, "S"))
    clock = " || ".join(_shown(number, unit, minus) for number, unit in parts)
    time = f"case when {clock} = '' then '' else 'T' || {clock} end"
    whole = f"'P' || {day} || {time}"
    return (
        f"(case when starts_with({shown}, 'P') then {shown} when {shown} = '00:00:00' then 'PT0S'"
        f" else {whole} end)"
    )


def _clock(shown: str, group: int) -> str:
    """Return SQL of a part of the time: sign, hours, minutes, seconds, what is behind the point."""
    form = r"'(-?)0*([0-9]+):0?([0-9]+):0?([0-9]+)(\.[0-9]+)?$'"
    return f"regexp_extract({shown}, {form}, {group})"


def _shown(number: str, unit: str, minus: str = "''") -> str:
    """Return SQL of a part of the text; nothing where there is none of this unit."""
    return f"(case when {number} in ('', '0') then '' else {minus} || {number} || '{unit}' end)"
