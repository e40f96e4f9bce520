"""Random read queries over two tables, in the SQL that SQLite and PostgreSQL share or own."""

import random
import re
from dataclasses import dataclass

#: Columns of both tables by kind. `price` is a decimal, `made` a timestamp; the reals of `w` are
#: whole numbers.
KINDS = {
    "id": "int",
    "n": "int",
    "m": "int",
    "r": "real",
    "w": "real",
    "t": "text",
    "u": "text",
    "ok": "bool",
    "price": "decimal",
    "made": "time",
}
TEXTS = ["", "a", "A", "ab", "AB", "aB_c", "50%", "é", "É", " x ", "O'Brien", "zz", "10", "-1"]
TEXTS += ["a\\b", "_B\n%", "e\u0301a", "A\\", "\t"]
#: Expressions of `x.d`, a jsonb, and of `x.tags` and `x.sizes`, arrays.
_NESTED = {
    "text": [
        *("(x.d ->> 't')", "(x.d -> 'o' ->> 't')", "(x.d #>> '{items,0}')", "x.tags[1]"),
        *("(x.d -> 'items' ->> -1)", "jsonb_typeof(x.d -> 't')", "(x.d ->> 'r')", "x.tags[2]"),
    ],
    "int": [
        *("(x.d ->> 'n')::int", "jsonb_array_length(x.d -> 'items')", "cardinality(x.tags)"),
        *("x.sizes[1]", "array_length(x.sizes, 1)", "(x.d #>> '{o,n}')::bigint"),
    ],
    "real": ["(x.d ->> 'n')::double precision"],
    "test": [
        *("x.d ? 't'", "x.d @> '{\"n\": 1}'", "x.d -> 'items' @> '[\"a\"]'", "x.d ->> 't' = x.t"),
        *("x.t = any(x.tags)", "'a' <> all(x.tags)", "x.tags @> array['a']", "x.tags && '{a,zz}'"),
        *("1 = any(x.sizes)", "x.n <> all(x.sizes)", "x.sizes @> array[1, 3]", "x.tags @> '{}'"),
        *("x.d -> 'o' @> '{\"r\": 0.5}'", "(x.d ->> 'ok')::boolean", "x.d ?| array['n', 'r']"),
        *("x.d -> 'o' is null", "not (x.d ?& '{t,r}')", 'x.d @> \'{"items": ["A"]}\''),
    ],
}
_MARK = re.compile(r"<<(\d+)>>")
COMPARISONS = ["=", "<>", "<", "<=", ">", ">="]


@dataclass(frozen=True)
class Asked:
    """A query, its parameters, and which output columns it is ordered by."""

    sql: str
    params: list[object]
    ordered_by: tuple[int, ...] = ()


class Queries:
    """Makes queries; the same ones for the same seed."""

    def __init__(self, seed: int, dialect: str, *, nested: bool = False) -> None:
        self.random = random.Random(seed)
        self.nested_values = nested
        self.sqlite = dialect == "sqlite"
        self.params: list[object] = []

    def make(self) -> Asked:
        """Make one query."""
        self.params = []
        shapes = [self.grouped, self.grouped, self.totals, self.joined, self.combined]
        shapes += [self.windowed, self.nested, self.listed, self.plain, self.limited]
        shapes += [self.member, self.member, self.added, self.chained]
        sql, ordered = self.random.choice(shapes)()
        # Much that is made is not chosen: only the parameters that are left count.
        used = [self.params[int(place)] for place in _MARK.findall(sql)]
        sql = _MARK.sub("?" if self.sqlite else "%s", sql)
        return Asked(sql if used else sql.replace("%%", "%"), used, ordered)

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    def column(self, kind: str, alias: str) -> str:
        names = [name for name, found in KINDS.items() if found == kind]
        return f"{alias}.{self.random.choice(names)}"

    def literal(self, kind: str) -> str:
        value: object = self.random.randint(-5, 20)
        if kind == "real":
            value = self.random.choice([0.5, -1.25, 3.0, 0.1, 1e6])
        if kind == "text":
            value = self.random.choice(TEXTS)
        if self.random.random() < 0.2 and (self.sqlite or kind == "int"):
            self.params.append(value)
            return f"<<{len(self.params) - 1}>>"
        text = str(value).replace("'", "''")
        return f"'{text if self.sqlite else text.replace('%', '%%')}'" if kind == "text" else text

    def value(self, kind: str, alias: str, depth: int = 2) -> str:
        if depth == 0 or self.random.random() < 0.4:
            return self.column(kind, alias) if self.random.random() < 0.75 else self.literal(kind)

        def inner(of: str) -> str:
            return self.value(of, alias, depth - 1)

        operator = (
            self.pick("+", "-", "*", "/", "%" if self.sqlite else "%%")
            if kind == "int"
            else self.pick("+", "-", "*")
        )
        common = [
            f"coalesce({inner(kind)}, {inner(kind)})",
            f"case when {self.test(alias, depth - 1)} then {inner(kind)} else {inner(kind)} end",
            f"nullif({inner(kind)}, {inner(kind)})",
        ]
        if kind == "text":
            common += [f"({inner('text')} || {inner('text')})", f"trim({inner('text')})"]
            common += [f"upper({inner('text')})", f"lower({inner('text')})"]
            common += [f"substr({inner('text')}, {self.random.randint(1, 3)}, 2)"]
        else:
            common += [f"({inner(kind)} {operator} {inner(kind)})"] * 3
            common += [f"(-{self.column(kind, alias)})", f"abs({inner(kind)})"]
        if kind == "int":
            common += [f"length({inner('text')})"]
        if self.nested_values and self.chance():
            common += _NESTED.get(kind, [])
            return self.random.choice(common[3:]).replace("x.", f"{alias}.")
        if kind == "real" and self.sqlite:
            common += [f"({inner('real')} / {inner('int')})"]
        return self.random.choice(common)

    def test(self, alias: str, depth: int = 2) -> str:
        kind = self.pick("int", "int", "real", "text", "decimal")
        if kind == "decimal":
            against = str(self.random.randint(-50, 90) / 4)
            if not self.sqlite and self.chance():
                against = f"{alias}.price / {against} + 1" if float(against) else "0.125"
            return f"{alias}.price {self.pick(*COMPARISONS)} {against}"
        left = self.value(kind, alias, min(depth, 1))
        choices = [
            f"{left} {self.pick(*COMPARISONS)} {self.value(kind, alias, min(depth, 1))}",
            f"{left} is {self.pick('', 'not ')}null",
            f"{left} in ({self.literal(kind)}, {self.literal(kind)})",
            f"{left} between {self.literal(kind)} and {self.literal(kind)}",
            f"{alias}.ok",
        ]
        if kind == "text":
            pattern = self.pick("a%", "%B%", "_", "%\\_%", "É", "%0%", "%\\\\%", "a\\b", "_!_%")
            if not self.sqlite:
                pattern = pattern.replace("%", "%%")
            escape = " escape '!'" if self.chance() and self.chance() else ""
            choices += [f"{left} {self.pick('', 'not ')}like '{pattern}'{escape}"] * 3
        if depth > 0:
            a, b = self.test(alias, depth - 1), self.test(alias, depth - 1)
            choices += [f"({a} {self.pick('and', 'or')} {b})", f"not ({a})"]
        if self.nested_values and self.chance():
            return self.pick(*_NESTED["test"]).replace("x.", f"{alias}.")
        return self.random.choice(choices)

    def aggregate(self, alias: str) -> str:
        kind = self.pick("int", "real")
        choices = [
            "count(*)",
            f"count({self.value(self.pick('int', 'text', 'real'), alias, 1)})",
            f"count(distinct {self.column(self.pick('int', 'text'), alias)})",
            f"sum({self.value('int', alias, 1)})",
            f"sum({self.column('real', alias)})",
            f"{self.pick('min', 'max')}({self.value(kind, alias, 1)})",
            f"{self.pick('min', 'max')}({alias}.price)",
            f"avg({self.column(kind, alias)})",
            f"coalesce(max({self.column('int', alias)}), 0)",
            f"sum({alias}.price)",
            f"count({alias}.made)",
            f"{self.pick('min', 'max')}({alias}.made)",
        ]
        if self.sqlite:
            choices += [f"total({self.column(kind, alias)})", f"sum({alias}.ok)"]
            choices += [f"max({self.column('text', alias)})"]
        else:
            choices += [f"avg({alias}.price)", f"sum({alias}.price) / count({alias}.n)"]
            choices += [f"sum({alias}.price * {alias}.n) / {self.pick('7.0', '-3', '0.125')}"]
            choices += [f"avg(distinct {self.column('int', alias)})"]
        return self.random.choice(choices)

    def column_average(self, alias: str) -> str:
        """An aggregate that the mirror gives up on for some values."""
        return self.pick(
            f"avg({alias}.n)", f"avg({alias}.m)", f"sum({alias}.n) / 2", f"-max({alias}.m) / 3"
        )

    def where(self, alias: str) -> str:
        return f" where {self.test(alias)}" if self.random.random() < 0.7 else ""

    def order(self, width: int) -> tuple[str, tuple[int, ...]]:
        if self.random.random() < 0.4:
            return "", ()
        places = self.random.sample(range(width), self.random.randint(1, width))
        terms = [f"{place + 1}{self.pick('', ' asc', ' desc')}" for place in places]
        return f" order by {', '.join(terms)}", tuple(places)

    def grouped(self) -> tuple[str, tuple[int, ...]]:
        keys = [
            self.pick(*(f"x.{name}" for name in ("n", "t", "u", "ok", "m")))
            if self.random.random() < 0.7
            else self.value(self.pick("int", "text"), "x", 1)
            for _ in range(self.random.randint(1, 2))
        ]
        keys = [key if "<<" not in key else "x.n" for key in keys]
        found = [self.aggregate("x") for _ in range(self.random.randint(1, 3))]
        where = self.where("x")
        having = f" having count(*) > {self.random.randint(0, 3)}" if self.chance() else ""
        named = [
            f"{each} as c{place}" if self.chance() else each for place, each in enumerate(found)
        ]
        order, places = self.order(len(keys)) if self.sqlite else ("", ())
        by = ", ".join(str(place + 1) for place in range(len(keys)))
        return (
            f"select {', '.join([*keys, *named])} from a x{where} group by {by}{having}{order}",
            places,
        )

    def chance(self) -> bool:
        return self.random.random() < 0.4

    def totals(self) -> tuple[str, tuple[int, ...]]:
        found = ", ".join(self.aggregate("x") for _ in range(self.random.randint(1, 4)))
        return f"select {found} from a as x{self.where('x')}", ()

    def joined(self) -> tuple[str, tuple[int, ...]]:
        join = self.pick("join", "left join", "inner join")
        on = self.pick("x.id = y.a_id", "x.n = y.n", "x.t = y.t", "x.id = y.a_id and x.n < y.m")
        shown = ["x.id", "y.id", self.value("int", "x", 1), self.column("text", "y")]
        order, places = self.order(2)
        kind = self.pick("rows", "count", "comma", "using")
        if kind == "count":
            return f"select count(*), sum(y.n) from a x {join} b y on {on}{self.where('x')}", ()
        if kind == "comma":
            return f"select x.id, y.id from a x, b y where x.id = y.a_id and {self.test('y')}", ()
        if kind == "using":
            return f"select n, count(*) as c from a {join} b using (n) group by n", ()
        return (
            f"select {', '.join(shown)} from a x {join} b y on {on}{self.where('y')}{order}",
            places,
        )

    def combined(self) -> tuple[str, tuple[int, ...]]:
        word = self.pick("union", "union all", "intersect", "except")
        kinds = [self.pick("int", "text", "real") for _ in range(2)]
        sides = [
            f"select {', '.join(self.column(kind, 'x') for kind in kinds)} from {table} x"
            f"{self.where('x')}"
            for table in "ab"
        ]
        order, places = self.order(2) if self.sqlite else ("", ())
        return f"{sides[0]} {word} {sides[1]}{order}", places

    def chained(self) -> tuple[str, tuple[int, ...]]:
        """Set operations of several kinds, which dialects bind in different orders."""
        words = ["union", "union all", "intersect", "except"]
        if not self.sqlite:
            words += ["intersect all", "except all"]
        kind = self.pick("int", "text")

        def side() -> str:
            table = self.pick("a", "b")
            return f"select {self.column(kind, 'x')} as v from {table} x{self.where('x')}"

        found = side()
        for _ in range(self.random.randint(2, 4)):
            other = side()
            if not self.sqlite and self.chance():
                other = f"({other} {self.pick(*words)} {side()})"
            found += f" {self.pick(*words)} {other}"
        if self.chance():
            return f"select count(*), count(v), count(distinct v) from ({found}) s", ()
        return found, ()

    def added(self) -> tuple[str, tuple[int, ...]]:
        """Sums of reals that are compared: they must not depend on the order of rows."""
        word = self.pick("sum", "avg", "total" if self.sqlite else "sum")
        column = self.pick("w", "w", "w", "r")
        total = f"{word}({self.pick('', '', 'distinct ')}y.{column})"
        total = self.pick(total, total, f"0.5 * {total}", f"coalesce({word}(y.{column}), 0.0)")
        same = self.pick("y.a_id = x.id", "y.n = x.n", "y.t = x.t", "y.id < x.id")
        one = f"(select {total} from b y where {same}{self.pick('', ' and y.n > 0')})"
        operator = self.pick(*COMPARISONS)
        number = self.pick("0.0", "3.0", "-2", "x.m", "x.w", "x.w + 1")
        fixed = self.pick("0", "3.0", "-2.5", "5")
        choices = [
            f"select x.id from a x where {number} {operator} {one}",
            f"select count(*) from a x where {one} {operator} {number}",
            f"select x.id from a x where {one} between {fixed} and 8.0",
            f"select y.n, {total} as s from a y group by y.n having {total} {operator} {fixed}",
            f"select y.n, count(*) as c from a y group by y.n having {total} {operator} {fixed}",
            f"select y.t from b y group by y.t having {total} {operator} sum(y.n)",
            f"select count(*) from (select y.n as n, {total} as s from b y group by y.n) q, a x"
            f" where x.n = q.n and q.s {operator} {number}",
        ]
        return self.random.choice(choices), ()

    def windowed(self) -> tuple[str, tuple[int, ...]]:
        word = self.pick("rank()", "dense_rank()", "count(*)", "sum(x.n)", "max(x.m)")
        over = f"partition by {self.pick('x.t', 'x.n', 'x.ok')} order by {self.pick('x.m', 'x.id')}"
        if self.chance():
            word, over = "row_number()", f"order by x.n {self.pick('asc', 'desc')}, x.id"
        return f"select x.id, {word} over ({over}) as w from a x{self.where('x')}", ()

    def nested(self) -> tuple[str, tuple[int, ...]]:
        choices = [
            f"select x.id from a x where x.n in (select y.n from b y{self.where('y')})",
            "select x.id from a x where x.n not in (select y.n from b y where y.n is not null)",
            "select x.id from a x where exists (select 1 from b y where y.a_id = x.id)",
            "select x.id, (select max(y.n) from b y where y.a_id = x.id) as most from a x",
            f"select x.id, (select count(*) from b y where y.n = x.n and {self.test('y', 1)}) as c"
            " from a x",
            f"select count(*) from a x where not exists (select 1 from b y where y.n > x.n and"
            f" {self.test('y', 1)})",
            f"select x.id from a x where x.n {self.pick('', 'not ')}in (select y.n from b y)",
            f"select x.id from a x where x.r > (select {self.pick('min', 'max')}(y.r) from b y)",
            "select s.n, s.c from (select n, count(*) as c from a group by n) s where s.c > 1",
            f"with s as (select n, sum(m) as c from a x{self.where('x')} group by n)"
            " select s.n, s.c, b.id from s join b on b.n = s.n",
            f"select x.id, z.id from a x, b z where {self.pick('x.id = z.a_id', 'x.t = z.t')}"
            f" and {self.pick('z.ok', 'z.n > 0', 'x.m > 0')} and {self.pick('x.n', 'x.m')}"
            f" {self.pick('<', '>')} (select {self.column_average('y')} from b y where"
            f" {self.pick('y.t = x.t', 'y.n = z.n', 'y.id < x.id')})",
            f"with s(p, q) as (select id, {self.value('int', 'x', 1)} from a x)"
            " select count(*), max(s.q) as q from s",
        ]
        return self.random.choice(choices), ()

    def member(self) -> tuple[str, tuple[int, ...]]:
        """IN and EXISTS, where it matters that they may be neither true nor false."""
        test = self.membership()
        other = self.test("x", 1)
        deep = self.deep_member(2)
        choices = [
            f"select x.id from a x where {deep}",
            f"select x.id, ({deep}) as found from a x",
            f"select x.id from a x where not ({deep}) {self.pick('or', 'and')} {other}",
            f"select count(*) from a x left join b z on x.id = z.a_id where {deep}",
            f"select x.id from a x where {test}",
            f"select x.id from a x where not ({test})",
            f"select x.id from a x where {test} {self.pick('or', 'and')} {other}",
            f"select x.id from a x where {test} {self.pick('or', 'and')} {self.membership()}",
            f"select x.id from a x where not ({test} {self.pick('or', 'and')} {other})",
            f"select x.id from a x where ({test}) is {self.pick('', 'not ')}null",
            f"select x.id, {test} as found from a x",
            f"select x.id, case when {test} then 1 when {other} then 2 else 3 end as c from a x",
            f"select count(*), sum(case when {test} then 1 else 0 end) as c from a x",
            f"select x.t, count(*) from a x where {test} group by x.t",
            f"select x.id, z.id from a x join b z on x.id = z.a_id where {test}",
            f"select x.n, count(*) from a x group by x.n having x.n {self.pick('', 'not ')}in"
            f" ({self.single('int')})",
        ]
        return self.random.choice(choices), ()

    def deep_member(self, depth: int, alias: str = "x") -> str:
        """IN or EXISTS whose subquery has another one in it, down to `depth`."""
        inner = f"{alias}i"
        kind = self.pick("int", "text")
        mine, other = (
            self.random.choice(["n", "m"] if kind == "int" else ["t", "u"]) for _ in "ab"
        )
        tests = [f"{inner}.{self.pick('n', 'm')} {self.pick('=', '<', '>')} {alias}.n"]
        tests += [f"{inner}.{self.pick('a_id', 'n')} is not null", self.test(inner, 0)]
        if depth > 1:
            tests += [self.deep_member(depth - 1, inner)] * 3
        demanded = f" where {self.pick(*tests)}" if self.chance() or depth > 1 else ""
        if depth > 1 and self.chance():
            demanded += f" {self.pick('or', 'and')} {self.pick(*tests)}"
        negated = self.pick("", "not ")
        if self.chance():
            return f"{negated}exists (select 1 from b {inner}{demanded})"
        return f"{alias}.{mine} {negated}in (select {inner}.{other} from b {inner}{demanded})"

    def membership(self) -> str:
        kind = self.pick("int", "text")
        column = f"y.{self.random.choice(['n', 'm'] if kind == 'int' else ['t', 'u'])}"
        same = self.pick("y.a_id = x.id", "y.n = x.n", "y.t = x.t", "y.m > x.m", "y.n = x.n + 1")
        inner = self.pick(
            self.single(kind),
            f"select {column} from b y where {same}",
            f"select {column} from b y where {same} and {self.test('y', 0)}",
            f"select {'max' if kind == 'text' and self.sqlite else 'count'}({column}) from b y"
            f" where {same}"
            if kind == "int" or self.sqlite
            else self.single(kind),
        )
        if self.chance():
            return f"{self.pick('', 'not ')}exists ({inner})"
        left = self.column(kind, "x") if self.random.random() < 0.7 else self.value(kind, "x", 1)
        return f"{left} {self.pick('', 'not ')}in ({inner})"

    def single(self, kind: str) -> str:
        """A subquery of one column that takes nothing from around it."""
        column = f"y.{self.random.choice(['n', 'm'] if kind == 'int' else ['t', 'u'])}"
        grouped = f"select {column} from b y group by {column} having count(*) > 1"
        whole = "select max(y.n) from b y" if kind == "int" else grouped
        return self.pick(
            f"select {column} from b y{self.where('y')}",
            f"select {column} from b y where {column} is not null",
            f"select {column} from b y where y.id < 0",
            f"select distinct {column} from b y{self.where('y')}",
            grouped,
            f"{whole}{self.where('y')}" if whole is not grouped else whole,
        )

    def listed(self) -> tuple[str, tuple[int, ...]]:
        return self.pick(
            "select * from a join b on a.id = b.a_id",
            "select b.* from a left join b on a.id = b.a_id",
            "select a.*, b.t from b join a on a.id = b.a_id where a.n > 3",
            "select * from a natural join b",
        ), ()

    def plain(self) -> tuple[str, tuple[int, ...]]:
        order, places = self.order(2)
        shown = f"x.id, x.r, x.price, x.made, {self.value('text', 'x', 1)} as v"
        return f"select {shown} from a x{self.where('x')}{order}", places

    def limited(self) -> tuple[str, tuple[int, ...]]:
        limit = self.random.randint(1, 5)
        by = self.pick("2 desc, 1", "2, 1", "2 desc", "1")
        found = f"select x.n, count(*) as c from a x{self.where('x')} group by x.n"
        return f"{found} order by {by} limit {limit}", (1, 0) if by[0] == "2" and "1" in by else ()
