"""Dead letters for people: grouped, with examples of keys, and what could be declared."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rhei_pipeline.cli.output import exact, out, say, show_table

if TYPE_CHECKING:
    import pyarrow as pa

    from rhei_pipeline.model.reports import TypeProposal

#: So many keys of a group are shown.
_EXAMPLES = 3


def show_letters(letters: "pa.Table", proposals: Sequence["TypeProposal"]) -> None:
    """Print dead letters by table, column and reason, and the types that would take them."""
    if not letters.num_rows:
        out.print("no rows")
        return
    groups: dict[tuple[str, str, str], list[str]] = {}
    for letter in letters.select(["table_name", "column_name", "reason", "key"]).to_pylist():
        *group, key = letter.values()
        groups.setdefault((group[0], group[1], group[2]), []).append(key)
    show_table(
        ["table", "column", "reason", "rows", "such as"],
        [
            [*map(exact, group), f"{len(keys):,}", exact(_examples(keys))]
            for group, keys in groups.items()
        ],
    )
    say(_declared(proposals))


def _examples(keys: Sequence[str]) -> str:
    shown = [", ".join(map(str, json.loads(key).values())) for key in keys[:_EXAMPLES]]
    return "; ".join(shown) + ("; ..." if len(keys) > _EXAMPLES else "")


def _declared(proposals: Sequence["TypeProposal"]) -> Iterable[str]:
    if proposals:
        yield "Declared in the table's section, these would take them:"
    for each in proposals:
        types = f"types: {{{json.dumps(each.column, ensure_ascii=False)}: {each.type}}}"
        line = f"  {each.table}:  {types}"
        yield from [line] if len(line) <= out.width else [f"  {each.table}:", f"      {types}"]
        yield f"      takes {_share(each)}, and {_others(each)}"
    if proposals:
        yield "Then run 'rhei dead-letters --replay'."


def _share(proposal: "TypeProposal") -> str:
    letters = "1 letter" if proposal.letters == 1 else f"{proposal.letters:,} letters"
    if proposal.healed == proposal.letters:
        return f"the {letters}" if proposal.letters == 1 else f"all {letters}"
    return f"{proposal.healed:,} of {letters} ({proposal.healed / proposal.letters:.0%})"


def _others(proposal: "TypeProposal") -> str:
    if not proposal.refused:
        return "all other rows that were tried"
    return f"refuses {proposal.refused:,} of {proposal.others:,} other rows that were tried"
