"""Finds logs of capture by triggers that no mirror reads any more: nobody shortens them."""

from collections.abc import Iterator

from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.sources.postgres.catalog import Connection, shown_name
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sources.postgres.triggers.ddl import BEGUN, SCHEMA, log_name, remains
from rhei_pipeline.sources.postgres.triggers.registry import FORGET_MIRROR_AFTER, PREPARED
from rhei_pipeline.sources.postgres.triggers.retired_logs import former_remains
from rhei_pipeline.sql.text import quote

_UNREAD = f"""
select c.relation::bigint, n.nspname::text, r.relname::text,
    pg_size_pretty(pg_total_relation_size(to_regclass('{SCHEMA}.log_' || c.relation))),
    array(select t.tgname::text from pg_trigger t
          where t.tgrelid = c.relation and t.tgname like '\\_rhei\\_%%' order by 1),
    array(select f.log::bigint from {SCHEMA}.former f where f.relation = c.relation order by 1)
from {SCHEMA}.capture c join pg_class r on r.oid = c.relation
join pg_namespace n on n.oid = r.relnamespace
where to_regclass('{SCHEMA}.log_' || c.relation) is not null
    and not exists (select from {SCHEMA}.consumer m where m.relation = c.relation
        and (m.mirror = %s or m.seen_at >= now() - interval '{FORGET_MIRROR_AFTER}'))
order by 1
"""
_READABLE = f"""
select exists ({PREPARED}) and count(*) = 2 and bool_and(has_table_privilege(c.oid, 'select'))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = '{SCHEMA}' and c.relname in ('consumer', 'former')
"""
#: The first entry is of when the log was made: a mirror says that it reads it after its copy.
_JUST_BEGUN = f"""
select exists (select from (select kind, at from {{log}} order by xid limit 1) oldest
    where kind = '{BEGUN}' and at >= now() - interval '{FORGET_MIRROR_AFTER}')
"""


def findings(connection: Connection, mirror_id: str | None) -> Iterator[Finding]:
    """Name each log that is written into and that no mirror reads; `mirror_id` is ours."""
    if not one(connection, _READABLE)[0]:
        return
    rows = connection.execute(_UNREAD.encode(), (mirror_id or "",)).fetchall()
    for oid, namespace, relation, size, triggers, formers in rows:
        if _is_just_begun(connection, oid):
            continue
        table = f"{quote(namespace)}.{quote(relation)}"
        statements = [f"drop trigger if exists {quote(name)} on {table}" for name in triggers]
        for former in formers:
            statements += former_remains(former)
        yield Finding(
            Severity.WARNING,
            f"no mirror has read the log for {FORGET_MIRROR_AFTER}; it has {size}",
            "the log grows with every write of the application until a mirror reads it",
            "run 'rhei sync' where the table is to be mirrored; or end its capture in the source: "
            + "; ".join(["begin", *statements, *remains(oid), "commit"]),
            shown_name(namespace, relation),
        )


def _is_just_begun(connection: Connection, relation: int) -> bool:
    """Return whether a table's log was made so lately that no mirror can be missing yet."""
    log = log_name(relation)
    if not one(connection, "select has_table_privilege(%s, 'select')", log)[0]:
        return False
    return bool(one(connection, _JUST_BEGUN.format(log=log))[0])
