"""Random documents of JSON, and queries of them with PostgreSQL's operators."""

import json
import random
import re

KEYS = ["a", "b", "a.b", 'q"q', "$x", "0", "é\U0001f600", "back\\slash", "a b", "A", "-1", "#"]
SCALARS = ["", "x", "a", "1.10", "é", "\U0001f600 'q\" \\", "null", "{}", "\n", 0, 1, -1, 2**63]
SCALARS += [2**64, -(2**63), 10**30, True, False, None]
#: Numbers as a client may write them; jsonb keeps their digits.
NUMBERS = ["1.10", "1.1", "1.0", "100.0", "0.1", "1e400", "-0.0", "1e-7", "1E2", "19.99", "1e21"]
NUMBERS += ["123456789012345678901234567890.5", "1.5", "2.50", "9007199254740993"]
NUMBERS += ["0.30000000000000004"]
#: What a document may contain.
CONSTANTS = ['{"a": 1}', "{}", "[]", "1", '"a"', "null", "true", '{"a": {"b": 1.1}}', "[1]", "[[]]"]
CONSTANTS += ['["x", "a"]', '[{"a": 1}]', '{"a": "x"}', '{"b": null}', '{"0": 0}', "1.5", "19.990"]
CONSTANTS += ['{"a": []}', '{"q\\"q": {}}', "[1.10, true]", "-0", "100", '{"a": [{"b": 1}]}']


class Documents:
    """Makes documents of JSON, as clients may write them; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def make(self, depth: int = 3) -> str:
        """Make one document."""
        sort = self.random.choice("oooaasnn" if depth else "sn")
        if sort == "o":
            keys = self.random.choices(KEYS, k=self.random.randint(0, 6))  # some of them twice
            pairs = [f"{json.dumps(key)}: {self.make(depth - 1)}" for key in keys]
            return f"{{{','.join(pairs)}}}"
        if sort == "a":
            count = self.random.randint(0, 4)
            return f"[{', '.join(self.make(depth - 1) for _ in range(count))}]"
        if sort == "n":
            return self.random.choice(NUMBERS)
        return json.dumps(self.random.choice(SCALARS), ensure_ascii=self.random.random() < 0.5)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _parts() -> list[str]:
    """Return what leads to a part of the document `d`."""
    found = ["d", *(f"d -> {_quoted(key)}" for key in KEYS), "d -> 0", "d -> -1", "d ->'a'->'b'"]
    return [*found, "d #> '{a,0}'", "d #> array['a', 'b']", "(d -> 'a') -> 1", "d #> '{b,a,-1}'"]


def _texts() -> list[str]:
    found = [f"d ->> {key}" for key in [*map(_quoted, KEYS), "0", "-1", "2"]]
    found += [f"{part} ->> {key}" for part in _parts()[1:] for key in ("'a'", "'b'", "0", "-1")]
    found += [f"d #>> '{{{path}}}'" for path in ("", "a", "0", "a,b", "-1", "a,0,b", '"a.b"')]
    return found + [f"jsonb_typeof({part})" for part in _parts()]


def _truths() -> list[str]:
    found = [f"{part} @> {_quoted(each)}" for part in _parts()[:-4] for each in CONSTANTS]
    found += [f"{part} ? {_quoted(key)}" for part in _parts() for key in KEYS]
    found += ["d ?| array['a', 'x']", "d ?& array['a', 'b']", "not d ?| '{b,A}'"]
    return found + [f"({part}) is null" for part in _parts()]


def json_queries(seed: int, count: int) -> list[str]:
    """Return queries of `t(id, g, d)`, with operators wherever an expression may stand."""
    chance = random.Random(seed)
    texts, truths = _texts(), _truths()
    return [
        _query(chance, chance.choice(texts), chance.choice(texts), chance.choice(truths))
        for _ in range(count)
    ]


def _query(chance: random.Random, text: str, other: str, truth: str) -> str:
    value = _quoted(chance.choice(["x", "a", "1", "1.10", "object", "é"]))
    ours, theirs = re.sub(r"\bd\b", "x.d", text), re.sub(r"\bd\b", "y.d", truth)
    return chance.choice(
        [
            f"select {text} as x, count(*) as n from t group by {text} order by 2, 1",
            f"select count(*) as n, min({text}) as m from t where {other} is not null",
            f"select count(*) as n from t where {truth}",
            f"select {truth} as x, count({text}) as n from t group by 1",
            f"select count(*) as n from t where {text} = {value} or {other} like '%{value[1]}%'",
            f"select g, max({text} || '-' || coalesce({other}, '')) as m from t group by g",
            f"select x.id, {ours} as v from t x join t y on x.id = y.g where {theirs} order by 1",
            f"select s.v, count(*) as n from (select {text} as v from t) s group by s.v",
        ]
    )
