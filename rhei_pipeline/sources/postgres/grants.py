"""The privileges that a PostgreSQL user lacks for each capture method, and the grants for them."""

from collections.abc import Iterator

from rhei_pipeline.model.reports import Finding, Severity
from rhei_pipeline.sources.postgres.catalog import Connection, PostgresTable, qualified
from rhei_pipeline.sources.postgres.identity import one
from rhei_pipeline.sql.text import quote

LEFT_OUT = "the table is left out until this is fixed"
#: Managed services lend the attribute by membership in a role of their own.
_LENT_REPLICATION = "rds_replication"
_NAMES = "select current_user::text, current_database()::text"
_REPLICATES = f"""
select rolreplication or rolsuper or exists (select from pg_roles lent
        where lent.rolname = '{_LENT_REPLICATION}' and pg_has_role(lent.oid, 'usage')),
    to_regrole('{_LENT_REPLICATION}') is not null
from pg_roles where rolname = current_user
"""
_CREATES = "select has_database_privilege(current_database(), 'create')"
_READS = """
select has_schema_privilege(c.relnamespace, 'usage'),
    not exists (
        select from pg_attribute a where a.attrelid = c.oid and a.attname = any(%s)
        and not has_column_privilege(c.oid, a.attnum, 'select')),
    (select n.nspname::text from pg_namespace n where n.oid = c.relnamespace)
from pg_class c where c.oid = %s
"""
#: Owners and superusers are trusted: they may do more than that.
_CREATORS = """
select n.nspname::text, array_agg(distinct r.rolname::text order by r.rolname::text)
from pg_namespace n
cross join lateral aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
left join pg_roles r on r.oid = a.grantee
where n.nspname = any(%s) and a.privilege_type = 'CREATE' and a.grantee <> n.nspowner
    and (r.oid is null or not (r.rolsuper or r.rolname = current_user))
    and has_schema_privilege(n.oid, 'usage')  -- or nothing in it is found
group by 1 order by 1
"""
_OWNS = """
select pg_has_role(relowner, 'usage'), pg_get_userbyid(relowner)::text from pg_class where oid = %s
"""


def creators(connection: Connection) -> Iterator[Finding]:
    """Return the schemas on our path in which others may create functions.

    One of a better-matching signature is called in the place of the server's own.
    """
    for name, roles in connection.execute(_CREATORS, (list(connection.namespaces),)).fetchall():
        who = ", ".join("public" if role is None else quote(role) for role in roles)
        yield Finding(
            Severity.WARNING,
            f"functions that others create in the schema {name!r} may run as this user",
            "it has operators of keys' types, so this user's sessions look for functions there",
            f"revoke create on schema {quote(name)} from {who}",
        )


def replication(connection: Connection) -> Iterator[Finding]:
    """Return the privileges that the user lacks to use replication slots."""
    may, is_lent = one(connection, _REPLICATES)
    if not may:
        user = quote(one(connection, _NAMES)[0])
        yield Finding(
            Severity.ERROR,
            "the user may not use replication slots",
            "a slot keeps the log until the mirror has it",
            f"grant {_LENT_REPLICATION} to {user}" if is_lent else f"alter role {user} replication",
        )


def creation(connection: Connection, what: str, why: str) -> Iterator[Finding]:
    """Return the privileges that the user lacks to create capture's objects."""
    user, database = map(quote, one(connection, _NAMES))
    if not one(connection, _CREATES)[0]:
        yield Finding(Severity.ERROR, what, why, f"grant create on database {database} to {user}")


def reading(connection: Connection, table: PostgresTable) -> Iterator[Finding]:
    """Return the privileges that the user lacks to read a table's rows."""
    uses, reads, schema = one(connection, _READS, list(table.schema.names), table.oid)
    user, shown = quote(one(connection, _NAMES)[0]), table.schema.name
    if not uses:
        remedy = f"grant usage on schema {quote(schema)} to {user}"
        what = f"the user may not use the schema {schema!r}"
        yield Finding(Severity.ERROR, what, LEFT_OUT, remedy, shown)
    if not reads:
        remedy = f"grant select on {qualified(table.schema)} to {user}"
        yield Finding(Severity.ERROR, "the user may not read the table", LEFT_OUT, remedy, shown)


def owning(connection: Connection, table: PostgresTable, why: str) -> Iterator[Finding]:
    """Return the grant that lets the user do what only the table's owner may."""
    owns, owner = one(connection, _OWNS, table.oid)
    if not owns:
        user = quote(one(connection, _NAMES)[0])
        yield Finding(
            Severity.ERROR,
            "the user does not own the table",
            f"{why}; {LEFT_OUT}",
            f"grant {quote(owner)} to {user}",
            table.schema.name,
        )
