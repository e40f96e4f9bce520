"""The gate: what only reads passes, everything else is refused by name."""

from collections.abc import Sequence

import pytest
import sqlglot
from sqlglot.tokenizer_core import Token

from rhei_pipeline.errors import QueryError
from rhei_pipeline.sql import read_only
from rhei_pipeline.sql.placeholders import judged_form, numbered_placeholders
from rhei_pipeline.sql.read_only import refuse_files, refuse_writing, returns_nothing

READS = [
    ("sqlite", "select replace(a, 'insert into', 'x') from t;"),
    ("sqlite", 'select "update", [delete] from t -- drop table t'),
    ("sqlite", "with x as (select 1) select * from x"),
    ("sqlite", "pragma table_info(t)"),
    ("sqlite", "explain query plan select 1"),
    ("datafusion", "select 1"),
    ("datafusion", "select $1+$2, f($1,$a,$b), $t$copy '$t$ || $$'$$"),
]
REFUSED = [
    ("sqlite", "insert into t values (1)", "INSERT"),
    ("sqlite", "/* select */ delete from t", "DELETE"),
    ("sqlite", "with x as (select 1) delete from t", "DELETE"),
    ("sqlite", "with x(a) as (select 1) insert into t select * from x", "INSERT"),
    ("sqlite", "replace into t values (1)", "REPLACE"),
    ("sqlite", "pragma journal_mode = delete", "journal_mode"),
    ("sqlite", "pragma journal_mode(delete)", "journal_mode"),
    ("sqlite", "pragma main.writable_schema = 1", "writable_schema"),
    ("sqlite", "pragma wal_checkpoint", "wal_checkpoint"),
    ("sqlite", "pragma incremental_vacuum(9)", "incremental_vacuum"),
    ("sqlite", "attach 'x' as y", "ATTACH"),
    ("sqlite", "select load_extension('x')", "load_extension"),
    ("sqlite", "explain delete from t", "DELETE"),
    ("sqlite", "select 1; delete from t", "2"),
    ("sqlite", "begin", "BEGIN"),
    ("sqlite", "vacuum", "VACUUM"),
    ("sqlite", "select 'open", "quote"),
    ("sqlite", "", "none"),
    ("datafusion", "create external table t stored as csv location 'x'", "CREATE"),
    ("datafusion", "copy t to 'x'", "COPY"),
    ("datafusion", "insert into t values (1)", "INSERT"),
    ("datafusion", "select $1$ ' $1$, glob(1), $1$ ' $1$", "glob"),
    ("datafusion", "select $t$x$t$ || 'open", "quote"),
    *(
        ("datafusion", f"select 1 as {name}$a$, glob(1), 2 as {name}b$a$", "glob")
        for name in ("#", "@", "@-", "##", "a@", "_", "é")
    ),
]


@pytest.mark.parametrize(("dialect", "sql"), READS)
def test_reads_are_let_through(dialect: str, sql: str) -> None:
    refuse_writing(sql, dialect)


@pytest.mark.parametrize(("dialect", "sql", "named"), REFUSED)
def test_everything_else_is_refused_by_name(dialect: str, sql: str, named: str) -> None:
    with pytest.raises(QueryError) as caught:
        refuse_writing(sql, dialect)
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("sql", "name"),
    [
        ("select * from 'x.parquet'", "x.parquet"),
        ('select * from "a/b.parquet"', "a/b.parquet"),
        ("select * from t, 'x.json'", "x.json"),
        ("select * from t where a in (select a from 's3://b/x')", "s3://b/x"),
        ("explain select * from 'x.csv'", "x.csv"),
    ],
)
def test_a_file_is_refused_unless_it_is_the_name_of_a_table(sql: str, name: str) -> None:
    refuse_writing(sql, "datafusion")
    with pytest.raises(QueryError, match="a file instead of a table"):
        refuse_files(sql, lambda: {"t"})
    refuse_files(sql, lambda: {"t", name})


def test_a_harmless_text_is_judged_once_and_a_refused_one_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harmless, refused = "select 'judged once'", "delete from judged"
    refuse_writing(harmless, "sqlite")
    with pytest.raises(QueryError):
        refuse_writing(refused, "sqlite")
    judged: list[str] = []
    tokens = read_only.statement_tokens

    def counted(sql: str, dialect: str) -> Sequence[Token]:
        judged.append(sql)
        return tokens(sql, dialect)

    monkeypatch.setattr(read_only, "statement_tokens", counted)
    refuse_writing(harmless, "sqlite")
    assert not judged
    with pytest.raises(QueryError):
        refuse_writing(refused, "sqlite")
    assert set(judged) == {refused}


@pytest.mark.parametrize(("more", "times"), [("", 1), (" -- and a long remark" * 1_000, 3)])
def test_the_tokens_of_a_statement_are_found_once_unless_it_is_long(
    more: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize, found = sqlglot.tokenize, list[str]()

    def counted(sql: str, dialect: str) -> Sequence[Token]:
        found.append(sql)
        return tokenize(sql, dialect=dialect)

    monkeypatch.setattr(sqlglot, "tokenize", counted)
    text = f"select 'tokens found once' as x{more}"
    assert read_only.statement_tokens(text, "sqlite")[0].text == "select"
    refuse_writing(text, "sqlite")
    assert len(found) == times
    read_only.statement_tokens(text, "postgres")  # another dialect reads it otherwise
    assert len(found) == times + 1


def test_each_refusal_is_an_error_of_its_own() -> None:
    assert returns_nothing() is not returns_nothing()


@pytest.mark.parametrize(
    ("word", "meant"), [("SELCT", "select"), ("selec", "select"), ("value", "values")]
)
def test_a_mistyped_word_is_told_what_it_may_mean(word: str, meant: str) -> None:
    for dialect in ("sqlite", "postgres", "datafusion"):
        with pytest.raises(QueryError) as refused:
            refuse_writing(f"{word} 1", dialect)
        assert refused.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize("word", ["delete", "replace", "call", "set", "alter", "nonsense"])
def test_a_word_that_is_like_no_other_keeps_its_way_out(word: str) -> None:
    with pytest.raises(QueryError) as refused:
        refuse_writing(f"{word} t", "postgres")
    assert "did you mean" not in str(refused.value)


@pytest.mark.parametrize(
    ("sql", "judged"),
    [
        ("select $1+$2", "select  null + null "),
        ("select $t$a'$1$t$||$$b$$, $1,$a_1", "select 'a''$1'||'b',  null , null "),
        ("select a$1, x.B$c$d from t", 'select "a$1", x."b$c$d" from t'),
        ("select 1 as #$a$, 2 as @-$a$", 'select 1 as "#$a$", 2 as "@-$a$"'),
        (
            "select '$1', \"$2\", `$3`, 'it''s $4', $5",
            "select '$1', \"$2\", `$3`, 'it''s $4',  null ",
        ),
        ("select E'\\'$1' || $1", "select E'\\'$1' ||  null "),
        ("select 1 -- $1,\n, $2", "select 1 -- $1,\n,  null "),
        ("select /* '/* $1 */ $$ */ $2", "select /* '/* $1 */ $$ */  null "),
        ("select /* $1", "select /* $1"),
        ("select $", "select $"),
    ],
)
def test_texts_between_dollars_and_placeholders_are_told_apart(sql: str, judged: str) -> None:
    assert judged_form(sql) == judged


@pytest.mark.parametrize(
    ("sql", "numbered"),
    [
        ("select ?+?, ?::int, ?", "select $1+$2, $3::int, $4"),
        ("select ?2, ?1, $3", "select $2, $1, $3"),
        ("v>?and v<?2or ?_", "v>$1 and v<$2 or $2 _"),
        ("explain select ? /* ? */, '?', $a$ ? $a$, \"?\" -- ?", None),
        ("select $1,$2", "select $1,$2"),
    ],
)
def test_placeholders_are_numbered_outside_texts_and_comments(
    sql: str, numbered: str | None
) -> None:
    first = sql.replace("?", "$1", 1)
    assert numbered_placeholders(sql) == (first if numbered is None else numbered)
