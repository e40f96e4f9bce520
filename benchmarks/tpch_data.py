"""Data in the shape of TPC-H, made here: near its distributions, and always the same."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

#: Each table's columns; a kind of `date` or `money` is declared as the schema under test has it.
TABLES: dict[str, tuple[str, ...]] = {
    "region": ("r_regionkey int", "r_name text", "r_comment text"),
    "nation": ("n_nationkey int", "n_name text", "n_regionkey int", "n_comment text"),
    "supplier": (
        *("s_suppkey int", "s_name text", "s_address text", "s_nationkey int", "s_phone text"),
        *("s_acctbal money", "s_comment text"),
    ),
    "customer": (
        *("c_custkey int", "c_name text", "c_address text", "c_nationkey int", "c_phone text"),
        *("c_acctbal money", "c_mktsegment text", "c_comment text"),
    ),
    "part": (
        *("p_partkey int", "p_name text", "p_mfgr text", "p_brand text", "p_type text"),
        *("p_size int", "p_container text", "p_retailprice money", "p_comment text"),
    ),
    "partsupp": (
        *("ps_partkey int", "ps_suppkey int", "ps_availqty int", "ps_supplycost money"),
        "ps_comment text",
    ),
    "orders": (
        *("o_orderkey int", "o_custkey int", "o_orderstatus text", "o_totalprice money"),
        *("o_orderdate date", "o_orderpriority text", "o_clerk text", "o_shippriority int"),
        "o_comment text",
    ),
    "lineitem": (
        *("l_orderkey int", "l_partkey int", "l_suppkey int", "l_linenumber int"),
        *("l_quantity money", "l_extendedprice money", "l_discount money", "l_tax money"),
        *("l_returnflag text", "l_linestatus text", "l_shipdate date", "l_commitdate date"),
        *("l_receiptdate date", "l_shipinstruct text", "l_shipmode text", "l_comment text"),
    ),
}
KEYS = {
    "region": "r_regionkey",
    "nation": "n_nationkey",
    "supplier": "s_suppkey",
    "customer": "c_custkey",
    "part": "p_partkey",
    "partsupp": "ps_partkey, ps_suppkey",
    "orders": "o_orderkey",
    "lineitem": "l_orderkey, l_linenumber",
}
_REGIONS = ("AFRICA", "AMERICA", "ASIA", "EUROPE", "MIDDLE EAST")
_NATIONS = (
    *(("ALGERIA", 0), ("ARGENTINA", 1), ("BRAZIL", 1), ("CANADA", 1), ("EGYPT", 4)),
    *(("ETHIOPIA", 0), ("FRANCE", 3), ("GERMANY", 3), ("INDIA", 2), ("INDONESIA", 2)),
    *(("IRAN", 4), ("IRAQ", 4), ("JAPAN", 2), ("JORDAN", 4), ("KENYA", 0), ("MOROCCO", 0)),
    *(("MOZAMBIQUE", 0), ("PERU", 1), ("CHINA", 2), ("ROMANIA", 3), ("SAUDI ARABIA", 4)),
    *(("VIETNAM", 2), ("RUSSIA", 3), ("UNITED KINGDOM", 3), ("UNITED STATES", 1)),
)
_COLOURS = (
    *("almond", "azure", "beige", "blue", "brown", "chiffon", "coral", "cream", "forest"),
    *("green", "grey", "honeydew", "ivory", "khaki", "lemon", "linen", "maroon", "navy"),
)
_TYPES = (
    ("STANDARD", "SMALL", "MEDIUM", "LARGE", "ECONOMY", "PROMO"),
    ("ANODIZED", "BURNISHED", "PLATED", "POLISHED", "BRUSHED"),
    ("TIN", "NICKEL", "BRASS", "STEEL", "COPPER"),
)
_CONTAINERS = (
    ("SM", "LG", "MED", "JUMBO", "WRAP"),
    ("CASE", "BOX", "BAG", "JAR", "PKG", "PACK", "CAN", "DRUM"),
)
_SEGMENTS = ("AUTOMOBILE", "BUILDING", "FURNITURE", "MACHINERY", "HOUSEHOLD")
_PRIORITIES = ("1-URGENT", "2-HIGH", "3-MEDIUM", "4-NOT SPECIFIED", "5-LOW")
_INSTRUCTIONS = ("DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN")
_MODES = ("REG AIR", "AIR", "RAIL", "SHIP", "TRUCK", "MAIL", "FOB")
_WORDS = ("carefully", "final", "special", "packages", "requests", "quickly", "deposits", "ironic")
_FIRST, _DAYS = date(1992, 1, 1), 2406
_NOW = date(1995, 6, 17)

Row = tuple[object, ...]


@dataclass(frozen=True)
class Made:
    """All rows of a scale; money in whole cents, dates as dates."""

    scale: float

    def rows(self) -> Iterator[tuple[str, list[Row]]]:
        """Yield each table's rows."""
        chance = random.Random(7)
        suppliers, customers = round(10_000 * self.scale), round(150_000 * self.scale)
        parts, orders = round(200_000 * self.scale), round(1_500_000 * self.scale)
        yield "region", [(n, name, _said(chance)) for n, name in enumerate(_REGIONS)]
        yield (
            "nation",
            [(n, name, region, _said(chance)) for n, (name, region) in enumerate(_NATIONS)],
        )
        yield "supplier", [_party(chance, "Supplier", n) for n in range(1, suppliers + 1)]
        yield "customer", [_customer(chance, n) for n in range(1, customers + 1)]
        yield "part", [_part(chance, n) for n in range(1, parts + 1)]
        yield (
            "partsupp",
            [
                _offer(chance, n, place, suppliers)
                for n in range(1, parts + 1)
                for place in range(4)
            ],
        )
        bought = [_order(chance, n, customers, parts, suppliers) for n in range(orders)]
        yield "orders", [order for order, _ in bought]
        yield "lineitem", [line for _, lines in bought for line in lines]


def _said(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=4))


def _supplier_of(part: int, place: int, suppliers: int) -> int:
    return (part + place * (suppliers // 4 + (part - 1) // suppliers)) % suppliers + 1


def _party(chance: random.Random, kind: str, number: int) -> Row:
    nation = chance.randrange(25)
    phone = f"{nation + 10}-{chance.randint(100, 999)}-{chance.randint(1000, 9999)}"
    said = "Customer Complaints" if chance.random() < 0.01 else _said(chance)
    balance = chance.randint(-99_999, 999_999)
    return (number, f"{kind}#{number:09}", f"street {number}", nation, phone, balance, said)


def _customer(chance: random.Random, number: int) -> Row:
    *start, said = _party(chance, "Customer", number)
    return (*start, chance.choice(_SEGMENTS), said)


def _part(chance: random.Random, number: int) -> Row:
    maker = chance.randint(1, 5)
    return (
        number,
        " ".join(chance.sample(_COLOURS, 5)),
        f"Manufacturer#{maker}",
        f"Brand#{maker}{chance.randint(1, 5)}",
        " ".join(map(chance.choice, _TYPES)),
        chance.randint(1, 50),
        " ".join(map(chance.choice, _CONTAINERS)),
        90_000 + number % 20_001 + 100 * (number % 1000),
        _said(chance),
    )


def _offer(chance: random.Random, part: int, place: int, suppliers: int) -> Row:
    supplier = _supplier_of(part, place, suppliers)
    return part, supplier, chance.randint(1, 9999), chance.randint(100, 100_000), _said(chance)


def _order(
    chance: random.Random, number: int, customers: int, parts: int, suppliers: int
) -> tuple[Row, list[Row]]:
    key = number // 8 * 32 + number % 8 + 1
    ordered = _FIRST + timedelta(chance.randrange(_DAYS - 151))
    customer = chance.randint(1, customers)
    # A third of the customers never buys.
    customer -= customer % 3 == 0 and customer > 1
    lines = [
        _line(chance, key, place, ordered, parts, suppliers)
        for place in range(1, chance.randint(1, 7) + 1)
    ]
    total = sum(int(str(line[5])) for line in lines)
    states = {line[9] for line in lines}
    state = states.pop() if len(states) == 1 else "P"
    order = (key, customer, state, total, ordered, chance.choice(_PRIORITIES))
    return (*order, f"Clerk#{chance.randint(1, 1000)}", 0, _said(chance)), lines


def _line(
    chance: random.Random, order: int, place: int, ordered: date, parts: int, suppliers: int
) -> Row:
    part, quantity = chance.randint(1, parts), chance.randint(1, 50)
    price = 90_000 + part % 20_001 + 100 * (part % 1000)
    shipped = ordered + timedelta(chance.randint(1, 121))
    committed = ordered + timedelta(chance.randint(30, 90))
    received = shipped + timedelta(chance.randint(1, 30))
    flag = chance.choice("RA") if received <= _NOW else "N"
    return (
        *(order, part, _supplier_of(part, chance.randrange(4), suppliers), place),
        *(quantity * 100, quantity * price, chance.randint(0, 10), chance.randint(0, 8)),
        *(flag, "O" if shipped > _NOW else "F", shipped, committed, received),
        *(chance.choice(_INSTRUCTIONS), chance.choice(_MODES), _said(chance)),
    )
