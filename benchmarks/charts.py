"""Figures as bars, in SVG: an image that browsers and git forges show, drawn without a library."""

import re
from collections.abc import Iterable, Iterator, Sequence
from xml.sax.saxutils import escape

_FIGURE = re.compile(r"^([\d,]*\.?\d+) ([\w/ ]+?)(?=$|[,:(]| against)")
_WIDTH, _ROW, _LABELS, _VALUES = 980, 22, 520, 130
_HEAD = 34

#: A name, and its number.
Bar = tuple[str, float]


def chart(figures: Iterable[tuple[str, str]]) -> str:
    """Return an image with a bar for each figure that begins with a number; empty without one.

    Those of one unit share a scale.
    """
    groups: dict[str, list[Bar]] = {}
    for name, figure in figures:
        found = _FIGURE.match(figure)
        if found:
            number = float(found[1].replace(",", ""))
            groups.setdefault(found[2], []).append((name, number))
    if not groups:
        return ""
    lines = list(_drawn(groups))
    height = _HEAD * (len(groups) + 1) + _ROW * sum(map(len, groups.values()))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}"'
        f' viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="13">'
    )
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="white"/>', *lines, "</svg>", ""]
    )


def _drawn(groups: dict[str, list[Bar]]) -> Iterator[str]:
    top = _HEAD
    for unit, bars in groups.items():
        yield f'<text x="8" y="{top}" font-weight="bold">{escape(unit)}</text>'
        yield from _bars(bars, top + 10)
        top += _ROW * len(bars) + _HEAD


def _bars(bars: Sequence[Bar], top: int) -> Iterator[str]:
    most = max(number for _, number in bars) or 1.0
    for place, (name, number) in enumerate(bars):
        y = top + place * _ROW
        length = max(1, round((_WIDTH - _LABELS - _VALUES) * number / most))
        yield f'<text x="{_LABELS - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
        size = f'width="{length}" height="{_ROW - 6}"'
        yield f'<rect x="{_LABELS}" y="{y + 2}" {size} fill="#4477aa"/>'
        yield f'<text x="{_LABELS + length + 6}" y="{y + 14}">{number:,g}</text>'
