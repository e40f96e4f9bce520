"""Queries as people and tools ask them, which answer as the server by itself does."""

WORLD = (
    "create table orders(id int primary key, customer text, status text not null,"
    " amount numeric(10,2), tags text[], doc jsonb, at timestamptz, during tstzrange)",
    "insert into orders select g, 'c' || g % 5, case when g % 3 = 0 then 'new' else 'paid' end,"
    " g * 1.25, array['a', 'b' || g % 2], jsonb_build_object('n', g, 'l', jsonb_build_array(g)),"
    " timestamptz '2024-01-01 00:00+00' + g * interval '7 hours',"
    " tstzrange('2024-01-01 00:00+00', '2024-02-01 00:00+00') from generate_series(1, 40) g",
    "create view paid as select * from orders where status = 'paid'",
    "create type mood as enum ('good', 'bad')",
    "create function twice(int) returns int language sql immutable as $$ select $1 * 2 $$",
    "create function today() returns date language sql stable as $$ select current_date $$",
)
ORDINARY: dict[str, list[str]] = {
    "rows and expressions": [
        "select * from orders order by id",
        "select id, amount * 2 as double, -amount, amount % 3, id ^ 2, id # 3 from orders"
        " order by 1",
        "select count(*), sum(amount), avg(amount), min(at), max(at) from orders",
        "select status, count(*) filter (where amount > 10) from orders group by status order by 1",
        "select status, customer, sum(amount) from orders"
        " group by grouping sets ((status), (customer), ()) order by 1, 2",
        "select status, grouping(status), count(*) from orders group by rollup (status) order by 1",
        "select customer, status, count(*) from orders group by cube (1, 2) order by 1, 2",
        "select id, row_number() over w, lag(amount, 1, 0) over w from orders"
        " window w as (partition by status order by id) order by id",
        "select id, sum(amount) over (order by id rows between 2 preceding and current row)"
        " from orders order by id",
        "select id, ntile(4) over (order by id), percent_rank() over (order by id) from orders"
        " order by id",
        "select percentile_cont(0.5) within group (order by amount),"
        " mode() within group (order by status) from orders",
        "select string_agg(customer, ',' order by id), array_agg(id order by id) from orders",
        "select o.id, x.n from orders o, lateral (select o.id + 1 as n) x order by 1",
        "select * from generate_series(1, 5) g",
        "select d::date from generate_series(date '2024-01-01', date '2024-01-05', '1 day') d",
        "with recursive n(i) as (values (1) union all select i + 1 from n where i < 5)"
        " select * from n",
        "with a as materialized (select 1 as x), b as not materialized (select 2) table a",
        "select distinct on (customer) customer, id from orders order by customer, id desc",
        "select * from orders order by amount desc nulls last limit 3 offset 2",
        "select id from orders order by id fetch first 2 rows with ties",
        "select 1 union select 2 union all select 2 except select 3 intersect select 3 order by 1",
        "values (1, 'a'), (2, 'b')",
        "table paid order by id",
        "(select 1)",
        "select exists (select 1 from orders where id = 3), 3 in (select id from orders)",
        "select id from orders where (id, status) in ((1, 'paid'), (3, 'new')) order by 1",
        "select id from orders where id = any(array[1, 2]) and id <> all(array[2]) order by 1",
        "select id from orders where id between 2 and 4 or id not between symmetric 40 and 2",
        "select case when id > 2 then 'a' else 'b' end, case id when 1 then 2 end from orders"
        " order by id",
        "select coalesce(null, 1), nullif(1, 1), greatest(1, 2), least(1, 2)",
        "select 1 is distinct from null, null is null, true is not false, row(1, 2) = row(1, 2)",
        "select a.id from orders a join orders b using (id) natural left join (select 1 as"
        " x) c order by 1",
        "select count(*) from orders a full join orders b on a.id = b.id + 1",
        "select count(*) from orders a cross join orders b",
        "select count(*) >= 0 from orders tablesample bernoulli (50) repeatable (1)",
        "select $$it's$$, E'a\\nb', U&'\\0041', B'101'::int, X'1F'::int",
        "select 1 /* a comment ; */ -- and another ;",
        "select 1;",
        "select 5 % 3, '50%'",
        'select "id" as "select", \'delete from t\' as "insert" from orders order by 1 limit 1',
        "select twice(4), today() is not null, 'good'::mood, 'bad'::mood > 'good'",
    ],
    "types and functions": [
        "select customer like 'c%', customer ilike 'C_', customer similar to 'c(1|2)',"
        " customer ~ '^c', customer !~* 'X' from orders order by id limit 1",
        "select regexp_replace('abc', 'b', 'x'), regexp_matches('abab', 'a', 'g'),"
        " split_part('a,b', ',', 2)",
        "select substring('abc' from 2 for 1), overlay('abc' placing 'x' from 2),"
        " position('b' in 'abc'), trim(both 'x' from 'xax'), upper('a') || lower('B')",
        "select substring('abc' from 'b.'), substring('abcd' similar 'a#\"bc#\"d' escape '#')",
        "select extract(year from at), date_part('month', at), date_trunc('day', at), at::date"
        " from orders order by id limit 3",
        "select at at time zone 'Asia/Tokyo', at + interval '1 month' from orders order by"
        " id limit 2",
        "select age(timestamp '2024-03-01', timestamp '2024-01-01'), make_date(2024, 2, 29)",
        "select now() is not null, current_timestamp is not null, clock_timestamp() is not null,"
        " localtime is not null, timeofday() is not null, statement_timestamp() is not null",
        "select (timestamp '2024-01-01', interval '1 day') overlaps"
        " (timestamp '2024-01-01 12:00', interval '1 hour')",
        "select to_char(at, 'YYYY-MM-DD'), to_char(amount, '999D99'), to_date('2024', 'YYYY')"
        " from orders order by id limit 2",
        "select doc->'n', doc->>'n', doc #> '{l,0}', doc @> '{\"n\": 1}', doc ? 'n' from orders"
        " order by id limit 2",
        "select jsonb_path_query(doc, '$.l[*]'), jsonb_array_elements(doc->'l') from orders"
        " order by id limit 2",
        "select json_build_object('a', 1), to_json(row(1, 2)), row_to_json(o), json_agg(1)"
        " from orders o where id = 1 group by o.*",
        "select * from json_to_recordset('[{\"a\": 1}]') as x(a int, b text)",
        "select json_object('a': 1), json_array(1, 2), json_value('{\"a\": 1}', '$.a')",
        "select * from json_table('[1, 2]', '$[*]' columns (n int path '$'))",
        "select tags[1], tags[1:1], array_length(tags, 1), tags && array['a'], unnest(tags)"
        " from orders order by id limit 2",
        "select array[1, 2] || 3, array(select id from orders order by id limit 2),"
        " cardinality(array[[1], [2]])",
        "select u, n from unnest(array['a', 'b']) with ordinality as x(u, n)",
        "select * from rows from (generate_series(1, 2), unnest(array['a', 'b'])) as x(a, b)",
        "select during @> timestamptz '2024-01-15 00:00+00', lower(during), int4range(1, 3) * "
        "int4range(2, 5) from orders where id = 1",
        "select 1::text, '1'::int, cast('2024-01-01' as date), 1.5::int, '{1,2}'::int[], true::int",
        "select 'orders'::regclass::text, 'now'::regproc, 'int4'::regtype, 23::regtype::text",
        "select to_tsvector('english', 'a cat') @@ to_tsquery('cats')",
        "select ts_rank(to_tsvector('a'), plainto_tsquery('a')), ts_headline('a cat',"
        " 'cat'::tsquery)",
        "select md5('a'), encode(sha256('a'), 'hex'), length('abc'), octet_length('é'), ascii('a')",
        "select random() between 0 and 1, gen_random_uuid() is not null",
        "select round(1.5), floor(1.5), ceil(1.5), abs(-1), mod(5, 3), power(2, 3), sqrt(4)",
        "select corr(id, amount), stddev(amount), regr_slope(id, amount), bool_and(id > 0)"
        " from orders",
        "select format('%s %I %L', 'a', 'b c', 'd'), quote_ident('a b'), concat_ws('-', 1,"
        " null, 2)",
        "select inet '10.0.0.1' << inet '10.0.0.0/8', point(1, 2) <-> point(1, 3)",
        "select pg_sleep(0) is null",
        "select 'a' collate \"C\" < 'B', pg_collation_for('a' collate \"C\")",
        "select date '2024-01-01' + 1, time '10:00' - interval '1 hour', interval '1-2'"
        " year to month",
    ],
    "tools": [
        "select 1",
        "select version()",
        "show server_version",
        "show search_path",
        "show transaction isolation level",
        "select current_database(), current_schema(), current_user, session_user, current_catalog",
        "select current_schemas(false)::text[]",
        "select current_setting('server_version_num')::int > 0, current_setting('no.such', true)",
        "select pg_backend_pid() > 0, pg_is_in_recovery(), inet_server_port() is null or true",
        "select set_config is null from (select null as set_config) x",
        "select pg_total_relation_size('orders') > 0, pg_size_pretty(1024::bigint),"
        " pg_database_size(current_database()) > 0",
        "select has_table_privilege('orders', 'select'), has_schema_privilege('public', 'usage')",
        "select pg_get_userbyid(relowner), obj_description(oid, 'pg_class') from pg_class"
        " where relname = 'orders'",
        # DBeaver
        "select n.oid, n.*, d.description from pg_catalog.pg_namespace n left outer join"
        " pg_catalog.pg_description d on d.objoid = n.oid and d.objsubid = 0"
        " and d.classoid = 'pg_namespace'::regclass order by nspname",
        "select c.relname, a.*, pg_catalog.pg_get_expr(ad.adbin, ad.adrelid, true) as def_value"
        " from pg_catalog.pg_attribute a inner join pg_catalog.pg_class c on a.attrelid = c.oid"
        " left outer join pg_catalog.pg_attrdef ad on a.attrelid = ad.adrelid"
        " and a.attnum = ad.adnum where not a.attisdropped and c.relname = 'orders'"
        " order by a.attnum",
        "select t.oid, t.typname, c.relkind, format_type(nullif(t.typbasetype, 0), t.typtypmod)"
        " from pg_catalog.pg_type t left outer join pg_catalog.pg_class c on c.oid = t.typrelid"
        " where t.typname = 'mood'",
        # Superset, SQLAlchemy
        "select pg_catalog.pg_class.relname from pg_catalog.pg_class join pg_catalog.pg_namespace"
        " on pg_catalog.pg_namespace.oid = pg_catalog.pg_class.relnamespace"
        " where pg_catalog.pg_class.relkind = any (array['r', 'p'])"
        " and pg_catalog.pg_class.relpersistence != 't'"
        " and pg_catalog.pg_table_is_visible(pg_catalog.pg_class.oid)"
        " and pg_catalog.pg_namespace.nspname != 'pg_catalog' order by 1",
        "select a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull,"
        " pg_catalog.col_description(a.attrelid, a.attnum) from pg_catalog.pg_attribute a"
        " where a.attrelid = 'orders'::regclass and a.attnum > 0 order by a.attnum",
        "select con.conname, pg_catalog.pg_get_constraintdef(con.oid, true)"
        " from pg_catalog.pg_constraint con where con.conrelid = to_regclass('orders') order by 1",
        "select i.relname, ix.indisunique, pg_get_indexdef(ix.indexrelid),"
        " array_to_string(ix.indkey::int2[], ' ') from pg_index ix"
        " join pg_class i on i.oid = ix.indexrelid where ix.indrelid = 'orders'::regclass",
        "select nspname from pg_namespace where nspname not like 'pg_%%' order by nspname",
        # Grafana
        "select quote_ident(table_name) from information_schema.tables where"
        " quote_ident(table_schema) in (select case when trim(s[i]) = '\"$user\"' then user else"
        " trim(s[i]) end from generate_series(array_lower(string_to_array("
        "current_setting('search_path'), ','), 1), array_upper(string_to_array("
        "current_setting('search_path'), ','), 1)) as i,"
        " string_to_array(current_setting('search_path'), ',') s) order by 1",
        "select floor(extract(epoch from at) / 3600) * 3600 as time, count(*) from orders"
        " where at between '2024-01-01T00:00:00Z' and '2024-02-01T00:00:00Z' group by 1 order by 1",
        # Metabase
        "select n.nspname as schema, c.relname as name, case c.relkind when 'r' then 'TABLE'"
        " when 'p' then 'PARTITIONED TABLE' when 'v' then 'VIEW' else null end as type,"
        " d.description, stat.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n"
        " on c.relnamespace = n.oid left join pg_catalog.pg_description d on c.oid = d.objoid and"
        " d.objsubid = 0 left join pg_stat_user_tables stat on n.nspname = stat.schemaname and"
        " c.relname = stat.relname where c.relnamespace = n.oid and n.nspname !~"
        " '^information_schema|catalog_history|pg_' and c.relkind in ('r', 'p', 'v', 'f', 'm')"
        " order by type, schema, name",
        "with table_privileges as (select null as role, t.schemaname as schema, t.objectname as"
        " table, pg_catalog.has_any_column_privilege(current_user, '\"' || t.schemaname || '\"' ||"
        " '.' || '\"' || t.objectname || '\"', 'update') as update from (select schemaname,"
        " tablename as objectname from pg_catalog.pg_tables union select schemaname, viewname as"
        " objectname from pg_views) t where t.schemaname !~ '^pg_' and t.schemaname <>"
        " 'information_schema') select * from table_privileges order by 2, 3",
        # dbt
        "select 'db' as database, tablename as name, schemaname as schema, 'table' as type"
        " from pg_tables where schemaname ilike 'public' union all select 'db', viewname,"
        " schemaname, 'view' from pg_views where schemaname ilike 'public' order by 2",
        "select distinct nspname from pg_namespace order by 1",
        # JDBC, Power BI
        "select null as table_cat, n.nspname as table_schem, ct.relname as table_name, a.attname as"
        " column_name, (information_schema._pg_expandarray(i.indkey)).n as key_seq,"
        " ci.relname as pk_name from pg_catalog.pg_class ct join pg_catalog.pg_attribute a on"
        " (ct.oid = a.attrelid) join pg_catalog.pg_namespace n on (ct.relnamespace = n.oid) join"
        " pg_catalog.pg_index i on (a.attrelid = i.indrelid) join pg_catalog.pg_class ci on"
        " (ci.oid = i.indexrelid) where ct.relname = 'orders' and i.indisprimary"
        " order by table_name, pk_name, key_seq, column_name",
        "select table_schema, table_name, column_name, ordinal_position, data_type, is_nullable,"
        " column_default from information_schema.columns where table_schema = 'public'"
        " order by 1, 2, 4",
        "select tc.constraint_name, kcu.column_name from information_schema.table_constraints tc"
        " join information_schema.key_column_usage kcu using (constraint_name, table_name)"
        " where tc.table_name = 'orders' order by 1",
        "select viewname, definition from pg_views where schemaname = 'public'",
        "select pg_get_viewdef('paid'::regclass, true), pg_get_functiondef('twice'::regproc)",
        "select p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid)"
        " from pg_proc p where p.pronamespace = 'public'::regnamespace order by 1",
        "select extname, extversion from pg_extension order by 1",
        "select rolname, rolsuper from pg_roles where rolname = current_user",
        "select datname, pg_encoding_to_char(encoding), datcollate from pg_database"
        " where datname = current_database()",
        "select enumlabel from pg_enum where enumtypid = 'mood'::regtype order by enumsortorder",
        "select name, setting from pg_settings where name in ('max_connections', 'TimeZone')"
        " order by 1",
        "select count(*) > 0 from pg_locks",
        "select state is not null or true from pg_stat_activity limit 1",
        "explain (costs off) select * from orders where id = 1",
        "explain (costs off, format json) select count(*) from orders",
    ],
}
