"""Texts of a source as a terminal may show them: whole, and without effect on the terminal."""

import re

from rich.cells import cell_len

#: What moves the cursor, colours, rings, or turns the direction of what follows.
_EFFECTS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return a text whose lines and tabs are kept, and whose other controls are written out."""
    return _EFFECTS.sub(lambda found: ascii(found[0])[1:-1], text).expandtabs()


def columns_of(text: str) -> int:
    """Return how many of a terminal's columns a text's longest line takes."""
    return max(map(cell_len, text.split("\n")))
