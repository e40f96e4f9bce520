"""One statement as a tree, parsed once; what the parser would lose of it is kept, or refused."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser
from sqlglot.tokenizer_core import Token, TokenType

#: Values in an IN list from which on they are kept out of the tree.
_MANY = 16
_LIST = "rhei_list_"
_PLACE = "rhei_"
#: Behind it stands a fixed key, or a fixed index, of JSON.
_KEY, _KEY_INDEX = "rhei_key:", "rhei_index:"
#: What a plus behind it adds to; behind all else it is a sign.
_OPERANDS = {
    TokenType.NUMBER,
    TokenType.STRING,
    TokenType.IDENTIFIER,
    TokenType.VAR,
    TokenType.R_PAREN,
    TokenType.R_BRACKET,
    TokenType.PLACEHOLDER,
    TokenType.PARAMETER,
    TokenType.END,
    TokenType.NULL,
    TokenType.TRUE,
    TokenType.FALSE,
    TokenType.HEX_STRING,
    TokenType.CURRENT_DATE,
    TokenType.CURRENT_TIMESTAMP,
}
#: SQLite's rules for the affinity of a type's name, the first that fits.
_AFFINITIES = (
    (re.compile("int"), "integer"),
    (re.compile("char|clob|text"), "text"),
    (re.compile("blob"), "blob"),
    (re.compile("real|floa|doub"), "real"),
)
#: The names of PostgreSQL's types that are translated. The parser knows other databases' names
#: as well, and takes them for these.
_POSTGRES_TYPES = {
    *("smallint", "int2", "integer", "int", "int4", "bigint", "int8", "real", "float4", "float"),
    *("float8", "double precision", "numeric", "decimal", "text", "varchar", "char", "character"),
    *("character varying", "boolean", "bool", "date", "timestamp", "timestamptz", "bytea", "time"),
    *("timestamp with time zone", "timestamp without time zone", "uuid", "json", "jsonb"),
    "interval",
    "double",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """A statement's tree.

    Attributes:
        text: What was parsed: the statement with its parameters as the parser knows them.
        tokens: Those of the text, without the semicolon that may end it.
        lists: The values of long IN lists, in whose place the tree has one placeholder.
        parameters: How many parameters it takes.
        doubt: Why it is not to be translated; None where nothing was lost on the way.
    """

    tree: exp.Expr
    text: str
    tokens: Sequence[Token]
    lists: Sequence[Sequence[Token]]
    parameters: int
    doubt: str | None = None


def parse(text: str, dialect: str, tokens: Sequence[Token], taken: int = 0) -> Parsed:
    """Parse one statement.

    Args:
        text: The statement; one of PostgreSQL's as `numbered` returns it.
        dialect: The source's.
        tokens: Of the text.
        taken: How many parameters one of PostgreSQL's takes.

    Raises:
        SqlglotError: It cannot be parsed.
        RecursionError: It nests too deeply.
    """
    doubt = _doubt(tokens, dialect)
    lists: list[Sequence[Token]] = []
    edited = list(_with_short_lists(tokens, lists))
    if dialect == "sqlite":
        edited, taken = _with_places(_with_affinities(edited))
    else:
        edited = list(_with_json_keys(edited))
    trees = Dialect.get_or_raise(dialect).parser().parse(edited, text)
    if len(trees) != 1 or trees[0] is None:
        raise SqlglotError("it is no statement")
    return Parsed(trees[0], text, tokens, lists, taken, doubt)


def list_of(node: exp.Expr) -> int | None:
    """Return which long list a placeholder stands for; None where it is a parameter."""
    name = str(node.this or "") if isinstance(node, exp.Placeholder) else ""
    return int(name.removeprefix(_LIST)) if name.startswith(_LIST) else None


def key_of(node: exp.Expr) -> str | int | None:
    """Return the fixed key or index that stands behind `->` or `->>`, if this is one."""
    name = str(node.this or "") if isinstance(node, exp.Placeholder) else ""
    if name.startswith(_KEY_INDEX):
        return int(name.removeprefix(_KEY_INDEX))
    return name.removeprefix(_KEY) if name.startswith(_KEY) else None


def _doubt(tokens: Sequence[Token], dialect: str) -> str | None:
    foreign = _foreign_type(tokens) if dialect == "postgres" else None
    if foreign is not None:
        return f"it casts to {foreign!r}, a type of the source's own"
    before: TokenType | None = None
    for token in tokens:
        if token.token_type is TokenType.PLUS and before not in _OPERANDS:
            return "a value has a plus sign"
        before = token.token_type
    return None


def _with_short_lists(tokens: Sequence[Token], lists: list[Sequence[Token]]) -> Iterator[Token]:
    """Yield the tokens, with one placeholder for the values of each long list of literals."""
    place, end = 0, len(tokens)
    while place < end:
        token = tokens[place]
        yield token
        place += 1
        if token.token_type is not TokenType.IN or place == end:
            continue
        found = _values(tokens, place)
        if found is not None:
            yield tokens[place]
            yield _like(token, TokenType.COLON, ":")
            yield _like(token, TokenType.VAR, f"{_LIST}{len(lists)}")
            lists.append(found)
            place += 2 * len(found)


def _values(tokens: Sequence[Token], opening: int) -> Sequence[Token] | None:
    """Return the values of a long list of plain literals of one sort, which opens here."""
    if tokens[opening].token_type is not TokenType.L_PAREN or opening + 1 == len(tokens):
        return None
    sort, place = tokens[opening + 1].token_type, opening + 1
    if sort not in {TokenType.NUMBER, TokenType.STRING}:
        return None
    while place + 1 < len(tokens) and tokens[place].token_type is sort:
        behind = tokens[place + 1].token_type
        if behind is TokenType.R_PAREN:
            found = tokens[opening + 1 : place + 1 : 2]
            return found if len(found) >= _MANY else None
        if behind is not TokenType.COMMA:
            return None
        place += 2
    return None


def _with_json_keys(tokens: Sequence[Token]) -> Iterator[Token]:
    """Yield the tokens, with `->` and `->>` as `#>` and `#>>`, and what is fixed behind as a name.

    The parser takes a key for a path, an arrow in a function's call for a lambda, and binds both
    otherwise than PostgreSQL does.
    """
    place = 0
    while place < len(tokens):
        token = tokens[place]
        place += 1
        if token.token_type not in _ARROWS:
            yield token
            continue
        yield _like(token, *_ARROWS[token.token_type])
        sign = "-" if tokens[place : place + 1] and tokens[place].text == "-" else ""
        behind = tokens[place + len(sign)] if place + len(sign) < len(tokens) else None
        name = _key_name(behind, sign)
        if behind is not None and name is not None:
            place += len(sign) + 1
            yield _like(behind, TokenType.COLON, ":")
            yield _like(behind, TokenType.VAR, name)


def _key_name(behind: Token | None, sign: str) -> str | None:
    """Return the name that stands for a fixed key or index in the tree."""
    if behind is None:
        return None
    if behind.token_type is TokenType.STRING and not sign:
        return _KEY + behind.text
    is_index = behind.token_type is TokenType.NUMBER and behind.text.isdigit()
    return f"{_KEY_INDEX}{sign}{behind.text}" if is_index else None


def _with_places(tokens: Sequence[Token]) -> tuple[list[Token], int]:
    """Give every parameter of SQLite's a name that tells its place; return how many there are."""
    edited: list[Token] = []
    place = most = 0
    numbered = False
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if numbered:
            numbered = False
            continue
        if token.token_type is not TokenType.PLACEHOLDER:
            edited.append(token)
            continue
        if (
            after is not None
            and after.token_type is TokenType.NUMBER
            and after.start == token.end + 1
        ):
            place, numbered = int(after.text), True
        else:
            # A parameter without a number has the one behind the highest so far.
            place = most + 1
        most = max(most, place)
        edited.append(_like(token, TokenType.COLON, ":"))
        edited.append(_like(token, TokenType.VAR, f"{_PLACE}{place}"))
    return edited, most


def _with_affinities(tokens: Sequence[Token]) -> list[Token]:
    """Return the tokens, with the affinity's own name for each type that SQLite casts to."""
    edited = list(tokens)
    for begin, end in sorted(_cast_types(tokens), reverse=True):
        # Sizes do not matter, nor do they to SQLite.
        name = " ".join(token.text.lower() for token in tokens[begin:end])
        word = next((word for rule, word in _AFFINITIES if rule.search(name)), "numeric")
        edited[begin:end] = [_like(tokens[begin], _TYPE_TOKENS[word], word)]
    return edited


def _cast_types(tokens: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Yield where the name of each type in a CAST begins, and where it ends."""
    casts: list[tuple[int, int]] = []
    depth = 0
    for place, token in enumerate(tokens):
        kind, is_inner = token.token_type, bool(casts) and casts[-1][0] == depth
        if kind is TokenType.L_PAREN:
            depth += 1
            if place and tokens[place - 1].text.lower() == "cast":
                casts.append((depth, place))
        elif kind is TokenType.ALIAS and is_inner:
            casts[-1] = (depth, place)
        elif kind is TokenType.R_PAREN:
            if is_inner and tokens[(begin := casts.pop()[1])].token_type is TokenType.ALIAS:
                yield begin + 1, place
            depth -= 1


def _foreign_type(tokens: Sequence[Token]) -> str | None:
    """Return the first name of a type that PostgreSQL does not know as the parser does."""
    named = [[token.text for token in tokens[begin:end]] for begin, end in _cast_types(tokens)]
    for token, after in pairwise(tokens):
        if token.token_type is TokenType.DCOLON:
            named.append([after.text])
        if token.token_type in Parser.TYPE_TOKENS and after.token_type is TokenType.STRING:
            named.append([token.text])
    names = [" ".join(words).lower().partition(" (")[0] for words in named]
    return next((name for name in names if name not in _POSTGRES_TYPES), None)


_ARROWS = {
    TokenType.ARROW: (TokenType.HASH_ARROW, "#>"),
    TokenType.DARROW: (TokenType.DHASH_ARROW, "#>>"),
}
_TYPE_TOKENS = {
    "integer": TokenType.INT,
    "text": TokenType.TEXT,
    "blob": TokenType.VARBINARY,
    "real": TokenType.DOUBLE,
    "numeric": TokenType.DECIMAL,
}


def _like(token: Token, kind: TokenType, text: str) -> Token:
    return Token(kind, text, token.line, token.col, token.start, token.end, [])


def numbered(sql: str) -> tuple[str, int]:
    """Write `$1`, `$2` for psycopg's `%s`, wherever it stands, as psycopg does; and count them.

    A blank behind each keeps `$1,$` from being read as the beginning of a text.
    """
    pieces = sql.replace("%%", "\0").split("%s")
    if any("%" in piece for piece in pieces):
        raise SqlglotError("a placeholder of another form")
    text = pieces[0] + "".join(f"${place} {piece}" for place, piece in enumerate(pieces[1:], 1))
    return text.replace("\0", "%"), len(pieces) - 1
