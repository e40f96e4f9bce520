"""What the server's catalogue says of names: functions, operators, types, casts, relations."""

#: Objects below it were made with the server; whoever makes one later is a user.
FIRST_OF_USERS = 16384
_SUPPORT = (
    "a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn,"
    " a.aggminvtransfn, a.aggmfinalfn"
)
#: A function as `_Function` has it, but for the types that are given to it.
_FUNCTION = f"""
f.proname::text, fn.nspname::text, f.oid::bigint, f.pronargs, f.pronargdefaults,
f.provariadic <> 0,
case when f.oid < {FIRST_OF_USERS} then f.provolatile::text else
    greatest(f.provolatile::text collate "C", (
        select max(s.provolatile::text collate "C") from pg_aggregate a
        join pg_proc s on s.oid in ({_SUPPORT}) where a.aggfnoid = f.oid)) end,
case when f.oid >= {FIRST_OF_USERS} then (
    select e.extname::text from pg_depend d join pg_extension e on e.oid = d.refobjid
    where d.classid = 'pg_proc'::regclass and d.objid = f.oid and d.deptype = 'e'
    and d.refclassid = 'pg_extension'::regclass) end
"""
_OF_FUNCTION = "join pg_namespace fn on fn.oid = f.pronamespace"
#: By name: also what is no cast or operator yet shares its name, so that all have the one form.
_FUNCTIONS = f"""
select f.proname::text, fn.nspname::text, {_FUNCTION},
    f.proargtypes::oid[]::bigint[] || array[f.prorettype::bigint],
    'cstring'::regtype = any(f.proargtypes::oid[]),
    f.pronargs - f.pronargdefaults <= 1 and coalesce((
        select t.typtype in ('c', 'p') from pg_type t where t.oid = f.proargtypes[0]), false)
from pg_proc f {_OF_FUNCTION}
where f.proname = any(%s) and f.prokind <> 'p'
    and not 'internal'::regtype = any(f.proargtypes::oid[])
"""
_OPERATORS = f"""
select o.oprname::text, n.nspname::text, {_FUNCTION},
    array[o.oprleft::bigint, o.oprright::bigint, o.oprresult::bigint], false, false
from pg_operator o join pg_namespace n on n.oid = o.oprnamespace
join pg_proc f on f.oid = o.oprcode {_OF_FUNCTION}
where o.oprname = any(%s) and f.oid >= {FIRST_OF_USERS}
"""
#: Of the server's own operators, none is VOLATILE; that there is one is all that matters.
_OWN_OPERATORS = """
select distinct o.oprname::text, 'pg_catalog', o.oprname::text, 'pg_catalog', 0, 0, 0, false, 'i',
    null, array[]::bigint[], false, false
from pg_operator o where o.oprname = any(%s) and o.oprnamespace = 'pg_catalog'::regnamespace
"""
#: Casts to a type that are functions of users, and what the checks of a domain call.
TYPES = f"""
with recursive named as (
    select t.oid, t.typname::text as name, n.nspname::text as schema, t.typtype
    from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.typname = any(%s)
), parts as (
    select oid, oid as part, name, schema from named
    union
    select p.oid, made.part, p.name, p.schema from parts p join pg_type t on t.oid = p.part
    cross join lateral (
        select t.typbasetype union select t.typelem union select a.atttypid from pg_attribute a
        where a.attrelid = t.typrelid and a.attnum > 0 and not a.attisdropped
    ) made(part) where made.part <> 0
), checked as (
    select p.oid, p.name, p.schema, found[1] as kind, found[2]::oid as called from parts p
    join pg_constraint k on k.contypid = p.part and k.conbin is not null,
    regexp_matches(k.conbin::text, ':(funcid|opno|aggfnoid|winfnoid) (\\d+)', 'g') found
)
select p.name, p.schema, {_FUNCTION}, array[c.castsource::bigint, p.part::bigint], false, false
from parts p join pg_cast c on c.casttarget = p.part
join pg_proc f on f.oid = c.castfunc {_OF_FUNCTION} where f.oid >= {FIRST_OF_USERS}
union all
select y.name, y.schema, {_FUNCTION}, array[y.oid::bigint], false, false
from checked y left join pg_operator o on y.kind = 'opno' and o.oid = y.called
join pg_proc f on f.oid = coalesce(o.oprcode, y.called) {_OF_FUNCTION}
"""
#: Types of users; an enumeration's values are made by nobody else's code.
_TYPES_OF_USERS = f"""
select t.typname::text, n.nspname::text, t.typname::text, n.nspname::text, t.oid::bigint, 0, 0,
    false, 'i', null, array[t.oid::bigint], false, false
from pg_type t join pg_namespace n on n.oid = t.typnamespace
where t.typname = any(%s) and t.oid >= {FIRST_OF_USERS} and t.typtype <> 'e'
"""
#: Casts by functions of users; who applies an implicit one names nothing.
_CASTS_OF_USERS = f"""
select c.castcontext::text, '', {_FUNCTION}, array[c.castsource::bigint, c.casttarget::bigint],
    false, false
from pg_cast c join pg_proc f on f.oid = c.castfunc {_OF_FUNCTION}
where c.castcontext::text = any(%s) and f.oid >= {FIRST_OF_USERS} and f.provolatile = 'v'
"""
#: Relations whose reading may run functions: views, tables with policies, foreign tables.
_RELATIONS = f"""
select c.relname::text, n.nspname::text from pg_class c
join pg_namespace n on n.oid = c.relnamespace
where c.relname = any(%s) and c.oid >= {FIRST_OF_USERS}
    and (c.relkind not in ('r', 'p', 'm', 'S', 't') or c.relrowsecurity)
"""
#: The types of users that values of a read may have, with all that these are made of.
TOUCHED = f"""
with recursive touched(oid) as (
    select a.atttypid from pg_attribute a join pg_class c on c.oid = a.attrelid
    where c.relname = any(%s) and a.attnum > 0 and not a.attisdropped
    union
    select c.reltype from pg_class c where c.relname = any(%s) and c.reltype <> 0
    union
    select t.oid from pg_type t where t.typname = any(%s)
    union
    select unnest(%s::bigint[])::oid
    union
    select part.oid from touched t join pg_type y on y.oid = t.oid cross join lateral (
        select y.typelem union select y.typbasetype
        union select a.atttypid from pg_attribute a
        where a.attrelid = y.typrelid and a.attnum > 0 and not a.attisdropped
        union select r.rngsubtype from pg_range r where r.rngtypid = y.oid
    ) part(oid) where part.oid <> 0
)
select oid::bigint from touched where oid >= {FIRST_OF_USERS}
"""
KINDS = {
    "function": (_FUNCTIONS,),
    "operator": (_OPERATORS, _OWN_OPERATORS),
    "type": (_TYPES_OF_USERS,),
    "cast": (_CASTS_OF_USERS,),
    "relation": (_RELATIONS,),
}
