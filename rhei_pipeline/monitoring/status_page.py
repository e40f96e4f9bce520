"""The page that shows people how a pipeline is doing: HTML made here, without a script."""

from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

from rhei_pipeline.model.progress import TableState
from rhei_pipeline.model.reports import SyncStatus, TableStatus
from rhei_pipeline.monitoring.recent import POINT_SECONDS, POINTS, Recent

#: The page loads nothing from anywhere, and runs nothing.
PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_REFRESH_SECONDS = 5
_WIDTH, _HEIGHT = 160, 28
#: A line that is flat at next to nothing must not look like a mountain.
_LEAST_SCALE_SECONDS = 1.0
_UNKNOWN = "not known"

_STYLE = """
:root { color-scheme: light dark; --line: #2f6fde; --good: #1a7f37; --bad: #c62828; --dim: #7779 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem }
h1 { font-size: 1.3rem; margin: 0 } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--dim) }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
svg polyline { fill: none; stroke: var(--line); stroke-width: 1.5 }
.good { color: var(--good) } .bad { color: var(--bad) } p { margin: .3rem 0 }
.error { overflow-wrap: anywhere }
progress { width: 100% }
"""


def status_page(status: SyncStatus, recent: Recent, now: float) -> str:
    """Return the page, with every text of others escaped."""
    body = "\n".join(_body(status, recent, now))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">
<meta name="viewport" content="width=device-width">
<title>Rhei Pipeline</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _body(status: SyncStatus, recent: Recent, now: float) -> Iterator[str]:
    yield "<h1>Rhei Pipeline</h1>"
    yield from _freshness(status, recent, now)
    yield from _troubles(status)
    yield from _copies(status)
    yield from _tables(status, recent, now)
    yield from _held(status)
    shown = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    yield f"<p>As of {shown}; loads again every {_REFRESH_SECONDS} seconds."
    yield 'For machines: <a href="metrics">metrics</a>, <a href="readyz">readiness</a>.</p>'


def _freshness(status: SyncStatus, recent: Recent, now: float) -> Iterator[str]:
    waiting = f"{status.lag_events:,} changes wait, the oldest for {_duration(status.lag_seconds)}"
    tone, text = ("", waiting) if status.lag_events else ("good", "Every change is in the mirror")
    if status.unmeasured:
        known = f"{waiting}; " if status.lag_events else ""
        names = ", ".join(escape(table.table) for table in status.unmeasured)
        tone, text = "bad", f"{known}how far the mirror of {names} is behind is not known"
    if status.unreadable or not status.tables:
        tone, text = "bad", "How far the mirror is behind is not known"
    yield f'<p class="{tone}" id="freshness">{text}.</p>'
    syncing = "runs" if status.running else "does not run"
    last = recent.last_sync
    if last is not None:
        ago, took = _duration(max(now - last.at, 0.0)), _duration(last.seconds)
        yield f"<p>The background sync {syncing}."
        yield f"The last sync ended {ago} ago and took {took}.</p>"
    else:
        yield f"<p>The background sync {syncing}. This process has not synced yet.</p>"
    if status.age_seconds >= 1:
        yield f"<p>The numbers are {_duration(status.age_seconds)} old.</p>"


def _troubles(status: SyncStatus) -> Iterator[str]:
    said = {
        "Cannot be read": status.unreadable,
        "Last error": status.last_error,
        "Not published": status.not_published,
    }
    for title, text in said.items():
        if text:
            yield f'<p class="bad error"><b>{title}:</b> {escape(text)}</p>'
    for name, since in status.not_followed.items():
        yield f"<p>{escape(name)} is no longer followed since {since:%Y-%m-%d %H:%M} UTC.</p>"


def _copies(status: SyncStatus) -> Iterator[str]:
    if status.copying:
        yield "<h2>Copies under way</h2>"
    for name, copy in status.copying.items():
        yield f"<p>{escape(name)}: {copy.rows:,} of {copy.of:,} rows"
        if copy.missing:
            yield f", {len(copy.missing):,} of {copy.ranges:,} ranges missing"
        yield f'<progress value="{copy.rows}" max="{max(copy.of, copy.rows, 1)}"></progress></p>'


def _tables(status: SyncStatus, recent: Recent, now: float) -> Iterator[str]:
    yield "<h2>Tables</h2><table><thead><tr><th>table</th><th>mode</th><th>state</th>"
    yield '<th class="n">changes waiting</th><th class="n">oldest waits</th>'
    minutes = POINTS * POINT_SECONDS // 60
    yield f'<th>lag, last {minutes} minutes</th><th class="n">dead letters</th></tr></thead><tbody>'
    for name, table in status.tables.items():
        yield from _table(table, sparkline(recent.lags(name, now)))
    yield "</tbody></table>"


def _table(table: TableStatus, line: str) -> Iterator[str]:
    tone, state = _state(table)
    waiting = _UNKNOWN if table.lag_events is None else f"{table.lag_events:,}"
    oldest = _UNKNOWN if table.lag_seconds is None else _duration(table.lag_seconds)
    letters = f'<span class="bad">{table.dead_letters:,}</span>' if table.dead_letters else "0"
    cells = (
        f"<td>{escape(table.table)}</td><td>{escape(table.mode)}</td>"
        f'<td class="{tone}">{state}</td><td class="n">{waiting}</td>'
        f'<td class="n">{oldest}</td><td>{line}</td>'
        f'<td class="n">{letters}</td>'
    )
    yield f"<tr>{cells}</tr>"
    for text in (table.error, table.doubt):
        if text:
            yield f'<tr><td></td><td colspan="6" class="error">{escape(text)}</td></tr>'


def _state(table: TableStatus) -> tuple[str, str]:
    if table.error:
        return "bad", "left out"
    if table.state is TableState.READY:
        return "good", "ready"
    return "", "not copied yet" if table.state is None else escape(table.state.value)


def sparkline(points: list[tuple[float, float]]) -> str:
    """Return a line of lags over time, scaled to its highest point, which is named."""
    if not points:
        return ""
    highest = max(lag for _, lag in points)
    scale = max(highest, _LEAST_SCALE_SECONDS)
    span = POINTS * POINT_SECONDS
    drawn = [
        (_WIDTH * (1 - ago / span), (_HEIGHT - 2) * (1 - lag / scale) + 1) for ago, lag in points
    ]
    # One point alone is no line: it is drawn as long as what it stands for.
    first_x, first_y = drawn[0]
    drawn.insert(0, (max(first_x - _WIDTH / POINTS, 0.0), first_y))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
    label = f"at most {_duration(highest)}"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        f'<title>{label}</title><polyline points="{path}"/></svg> {label}'
    )


def _held(status: SyncStatus) -> Iterator[str]:
    if status.held_bytes:
        held = ", ".join(f"{escape(k)} {size:,} bytes" for k, size in status.held_bytes.items())
        yield f"<p>Kept until the mirror has it: {held}.</p>"


def _duration(seconds: float) -> str:
    """Return a length of time as people say it, in its two largest units at most."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:  # noqa: PLR2004  (seconds in a minute)
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
