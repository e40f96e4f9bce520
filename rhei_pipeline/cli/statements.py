"""Where a statement ends, by sqlglot's reading: a semicolon in a text or comment ends none."""

from sqlglot import exp, parse_one, tokenize
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import TokenType

#: What a statement that returns its rows may begin with.
_QUERIES = (["select"], ["with"], ["("])


def whole_statements(text: str, dialect: str) -> tuple[list[str], str]:
    """Return the statements that end in a text, and what is behind the last of them."""
    try:
        tokens = tokenize(text, read=dialect)
    except SqlglotError:  # a quotation mark or a comment is open
        return [], text
    found, start = [], 0
    for token in tokens:
        if token.token_type is TokenType.SEMICOLON:
            statement = text[start : token.start].strip()
            start = token.end + 1
            if statement:
                found.append(statement)
    return found, text[start:].strip()


def is_open(text: str, dialect: str) -> bool:
    """Return whether a text ends within a quotation or a comment."""
    try:
        tokenize(text, read=dialect)
    except SqlglotError:
        return True
    return False


def says_something(text: str, dialect: str) -> bool:
    """Return whether there is more in a text than space and comments."""
    try:
        return bool(tokenize(text, read=dialect))
    except SqlglotError:
        return True


def keywords(dialect: str) -> set[str]:
    """Return the words that mean something in a dialect, in lower case."""
    known = Dialect.get_or_raise(dialect).tokenizer_class.KEYWORDS
    return {word.lower() for word in known if word.isalpha()}


def returns_rows(text: str, dialect: str) -> bool:
    """Return whether a write asks for rows: by `returning`, or as a query that calls functions."""
    words = _words(text, dialect)
    return "returning" in words or (words[:1] in _QUERIES and _is_query(text, dialect))


def _is_query(text: str, dialect: str) -> bool:
    try:
        parsed = parse_one(text, read=dialect)
    except SqlglotError:
        return False
    return isinstance(parsed, exp.Query) and not parsed.args.get("into")


def _words(text: str, dialect: str) -> list[str]:
    """Return the words of a statement, in lower case, without its texts and quoted names."""
    try:
        tokens = tokenize(text, read=dialect)
    except SqlglotError:
        return []
    quoted = {TokenType.STRING, TokenType.IDENTIFIER}
    return [token.text.lower() for token in tokens if token.token_type not in quoted]
