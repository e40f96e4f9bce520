"""The findings of `rhei check` for people: what is found of many tables is said once."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.text import Text

from rhei_pipeline.cli.output import out
from rhei_pipeline.cli.printable import printable
from rhei_pipeline.cli.shard_choice import for_shard

if TYPE_CHECKING:
    from rhei_pipeline.model.reports import Finding

#: So many tables are named; of the others, the number.
_NAMED = 5
_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}


def show_findings(findings: Sequence["Finding"]) -> None:
    """Print findings; those that differ only in their table are one."""
    for group in _groups(findings):
        first = group[0]
        severity, named = first.severity.value, _named(group)
        head = Text.assemble((severity, _COLOURS[severity]), printable(f" {named}{first.what}"))
        out.print(head, soft_wrap=not out.is_terminal)
        for label, text in (("why", first.why), ("do", for_shard(first.remedy))):
            alike = f" (of {first.table!r}; alike for the others)" if _differs(text, group) else ""
            said = Text.assemble((f"{label}: ", "dim"), printable(text), printable(alike))
            if out.is_terminal:
                out.print(Padding(said, (0, 0, 0, 4), expand=False))
            else:  # a sentence that is searched for is one line
                out.print(Text.assemble("    ", said), soft_wrap=True)


def _groups(findings: Sequence["Finding"]) -> list[list["Finding"]]:
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for found in findings:
        texts = (_general(text, found.table) for text in (found.what, found.why, found.remedy))
        groups.setdefault((found.severity.value, *texts), []).append(found)
    return list(groups.values())


def _general(text: str, table: str | None) -> str:
    """Return a text without the table's name, which is no word of another kind there."""
    if table is None:
        return text
    return re.sub(rf"(?<![A-Za-z]){re.escape(table)}(?![A-Za-z])", "\0", text)


def _named(group: Sequence["Finding"]) -> str:
    names = [found.table for found in group if found.table is not None]
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}: " if names else ""


def _differs(text: str, group: Sequence["Finding"]) -> bool:
    return len(group) > 1 and _general(text, group[0].table) != text
