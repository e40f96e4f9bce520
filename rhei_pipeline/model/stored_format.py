"""Formats of what is stored: each has a number, and a version reads its own and those before.

What holds no number was written before numbers were, in format 1 of its kind.
"""

#: The format of what holds no number.
UNNUMBERED = 1


def too_new(what: str, found: int, known: int) -> str:
    """Return the message for what a newer version of this package wrote; nothing of it is used."""
    return f"{what} has format {found}, and this version knows {known} at most"
