"""What a trigger logs when its table has changed: rows as text, by column number.

A column keeps its number when it is renamed, and no other column of its table ever gets it. So a
value can be matched to its column even if it was logged between a migration and the next sync.
"""

from rhei_pipeline.sources.postgres.catalog import OWN_NAMESPACE
from rhei_pipeline.sources.postgres.types import SESSION_SETTINGS
from rhei_pipeline.sql.text import literal

#: A row as it is; a row that is no more; the table was truncated. What was logged is in `misfit`.
OTHER_ROW, OTHER_GONE, OTHER_TRUNCATED = "R", "D", "T"
OTHER_KINDS = f"'{OTHER_ROW}', '{OTHER_GONE}', '{OTHER_TRUNCATED}'"

#: A value as the server writes it for a client of ours, whatever the application's settings are.
_SHOWN = f"""
create or replace function {OWN_NAMESPACE}.shown(value anyelement) returns text
language plpgsql stable strict
{" ".join(f"set {n} = {literal(v)}" for n, v in SESSION_SETTINGS.items() if n != "client_encoding")}
as $body$ begin return pg_catalog.format('%s', value); end $body$
"""
#: Writes the statements that log what a statement did to a table. Rows differ by `key`, or
#: by the primary key where those columns do not tell them apart any more. Then the rows that still
#: have a `key` of which one is gone are logged as well: it may be unique again when they are read.
#: Only the trigger itself can run them: nobody else sees its transition tables.
_MISFIT = f"""
create or replace function {OWN_NAMESPACE}.misfit(
    relation oid, log text, operation text, key smallint[]
) returns text[] language plpgsql stable set search_path = pg_catalog, pg_temp as $body$
declare
    place text;
    image text;
    known smallint[];
    is_unique boolean;
    same text;
    alike text;
    logged text;
    gone text;
    left_over text[];
begin
    select format('%I.%I', n.nspname, c.relname),
        format('jsonb_build_object(''table'', %L::text', n.nspname || '.' || c.relname)
    into strict place, image
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = relation;
    if operation = 'TRUNCATE' then
        return array[format('insert into %s(kind, misfit) values (''{OTHER_TRUNCATED}'', %s))',
            log, image)];
    end if;
    with recursive base(attnum, oid) as (
        select a.attnum, a.atttypid from pg_attribute a
        where a.attrelid = relation and a.attnum > 0 and not a.attisdropped
        union all
        select b.attnum, t.typbasetype from base b join pg_type t on t.oid = b.oid
        where t.typtype = 'd'
    )
    select image || format(', ''types'', %L::jsonb, ''row'', jsonb_object(%L::text[], array[%s]))',
        jsonb_object_agg(a.attnum, b.oid::bigint), array_agg(a.attnum::text order by a.attnum),
        string_agg(format('{OWN_NAMESPACE}.shown(row_.%I)', a.attname), ', ' order by a.attnum))
    into strict image
    from base b join pg_type t on t.oid = b.oid and t.typtype <> 'd'
    join pg_attribute a on a.attrelid = relation and a.attnum = b.attnum;
    is_unique := exists (
        select from pg_index i where i.indrelid = relation and i.indisunique and i.indisvalid
        and i.indimmediate and i.indpred is null and i.indexprs is null and key @> array(
            select k.attnum from unnest(i.indkey::int2[]) with ordinality k(attnum, nth)
            where k.nth <= i.indnkeyatts));
    select coalesce(case when is_unique then key end, (
        select array(select k.attnum from unnest(i.indkey::int2[]) with ordinality k(attnum, nth)
                     where k.nth <= i.indnkeyatts)
        from pg_index i where i.indrelid = relation and i.indisprimary
    ), key) into strict known;
    select string_agg(c.text, ' and ') filter (where c.attnum = any(known)),
        string_agg(c.text, ' and ') filter (where c.attnum = any(key))
    into strict same, alike
    from (select a.attnum, format('row_.%1$I operator(%2$I.%3$s) other_.%1$I', a.attname,
            coalesce(o.nspname, 'pg_catalog'), coalesce(o.oprname, '='))
        || case when a.atttypid not in (700, 701) then
           format(' and {OWN_NAMESPACE}.shown(row_.%1$I) collate "C" ='
                ' {OWN_NAMESPACE}.shown(other_.%1$I) collate "C"', a.attname) else '' end
    from pg_attribute a left join lateral (
        select n.nspname, p.oprname
        from pg_index i cross join unnest(i.indkey::int2[], i.indclass::oid[]) k(attnum, class)
        join pg_opclass c on c.oid = k.class
        join pg_am m on m.oid = c.opcmethod and m.amname = 'btree'
        join pg_amop f on f.amopfamily = c.opcfamily and f.amopstrategy = 3
            and f.amoplefttype = c.opcintype and f.amoprighttype = c.opcintype
        join pg_operator p on p.oid = f.amopopr join pg_namespace n on n.oid = p.oprnamespace
        where i.indrelid = relation and i.indisunique and k.attnum = a.attnum limit 1
    ) o on true
    where a.attrelid = relation and a.attnum = any(known || key) and not a.attisdropped
    ) c(attnum, text);
    if same is null then
        raise exception 'no column tells rows apart';
    end if;
    logged := format('insert into %s(kind, misfit) select ''{OTHER_ROW}'', %s from %s row_'
        ' join _rhei_new other_ on %s', log, image, place, same);
    gone := format('insert into %s(kind, misfit) select ''{OTHER_GONE}'', %s from _rhei_old row_'
        ' where not exists (select from %s other_ where %s)', log, image, place, same);
    if not is_unique and alike is not null then
        left_over := array[format('insert into %s(kind, misfit) select ''{OTHER_ROW}'', %s from %s'
            ' row_ join _rhei_old other_ on %s', log, image, place, alike)];
    end if;
    return case operation when 'INSERT' then array[logged]
        when 'UPDATE' then array[gone, logged] || left_over else array[gone] || left_over end;
end $body$
"""
#: By which the server's catalogue shows that it has the function as it is here.
MISFIT_BODY = _MISFIT.split("$body$")[1]
#: What all triggers share.
FUNCTIONS = (
    _SHOWN,
    f"revoke all on function {OWN_NAMESPACE}.shown(anyelement) from public",
    _MISFIT,
    f"revoke all on function {OWN_NAMESPACE}.misfit(oid, text, text, smallint[]) from public",
)


def log_misfit(relation: str, log: str, key: str, *, otherwise: str) -> str:
    """Return SQL of a trigger that logs such rows; `otherwise`: what to do if that fails.

    The application's statement succeeds in any case.
    """
    return (
        f"begin foreach sentence in array {OWN_NAMESPACE}.misfit({relation}, {literal(log)}, tg_op,"
        f" {literal(key)}) loop execute sentence; end loop;"
        f" {note_misfit(relation, lost=False)};"
        f" exception when others then {otherwise} end;"
    )


def note_misfit(relation: str, *, lost: bool) -> str:
    """Return SQL that records that a table differs from what its triggers expect.

    `lost`: it was changed in a way that no log contains.
    """
    return (
        f"insert into {OWN_NAMESPACE}.broken(relation, lost) select {relation}, {lost}"
        f" where not exists (select from {OWN_NAMESPACE}.broken b"
        f" where b.relation = {relation} and b.lost = {lost})"
    )


def part_of(attribute: int) -> str:
    """Return SQL of an entry's value of a column, as text."""
    return f"misfit->'row'->>'{attribute}'"


def type_of(attribute: int) -> str:
    """Return SQL of the oid of a column's type when an entry was logged, as text."""
    return f"misfit->'types'->>'{attribute}'"
