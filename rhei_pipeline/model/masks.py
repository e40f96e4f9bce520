"""The rules by which a column is masked, as they are declared."""

import re
from dataclasses import dataclass

from rhei_pipeline.errors import SchemaError

#: Fewer characters could be tried one after the other by whoever has the hashes.
LEAST_KEY_CHARACTERS = 16

_COUNTED = re.compile(r"(truncate|partial):(\d{1,4})")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KNOWN = "hash, redact, null, truncate:n, partial:n, or package.module:function"


@dataclass(frozen=True, slots=True)
class MaskRule:
    """What is done to a column's values.

    Attributes:
        kind: `hash`, `redact`, `null`, `truncate`, `partial` or `function`.
        count: How many characters `truncate` and `partial` leave.
        function: The function's name, as `package.module:function`.
    """

    kind: str
    count: int = 0
    function: str = ""


def parse_rule(text: str) -> MaskRule:
    """Parse a rule as a declaration writes it.

    Raises:
        SchemaError: There is no such rule; the hint lists those that there are.
    """
    if text in {"hash", "redact", "null"}:
        return MaskRule(text)
    counted = _COUNTED.fullmatch(text)
    if counted and int(counted[2]) > 0:
        return MaskRule(counted[1], int(counted[2]))
    if _FUNCTION.fullmatch(text) and not counted:
        return MaskRule("function", function=text)
    raise SchemaError(f"unknown mask {text!r}", hint=f"use {_KNOWN}")
