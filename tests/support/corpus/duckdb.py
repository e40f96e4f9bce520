"""Statements for a DuckDB mirror with a table `t(id, v, w)`: hostile ones, and ordinary reads."""

#: `{dir}` is a directory that the process may write; it holds `secret.csv` and `other.duckdb`.
HOSTILE = """
explain /**/ (analyze) set global default_collation = 'nocase'
explain set global default_collation = 'nocase'
explain analyze set max_expression_depth = 1
explain (analyze, format json) create table pwned as select 1 as a
explain (analyze) insert into t values (9, 'x', 9)
explain /* */ analyze -- x
 delete from t
explain explain analyze delete from t
explain analyze select * from read_text('{dir}/secret.csv')
with d as (delete from t returning id) select * from d
explain (analyze) (delete from t)
set global default_collation = 'nocase'
set max_expression_depth = 1
set session search_path = 'information_schema'
set threads = 1
set memory_limit = '1MB'
set default_null_order = 'nulls_first'
set timezone = 'Asia/Tokyo'
set variable v = 1
reset all
reset global threads
pragma enable_profiling
pragma default_collation = 'nocase'
pragma memory_limit = '1MB'
pragma database_size
pragma force_checkpoint
pragma import_database('{dir}')
pragma copy_database('memory', 'other')
call enable_logging()
call pragma_version()
call force_checkpoint()
create table pwned(a int)
create temp table t as select 1 as id
create or replace view t2 as select 1
create macro abs(x) as 7
create or replace temp macro count(x) as 7
create type mood as enum ('a')
create schema pwned
create sequence pwned
create secret s (type s3, key_id 'a', secret 'b')
create index pwned on t(id)
insert into t values (9, 'x', 9)
insert into t by name select 9 as id
insert or replace into t select 9, 'x', 9
update t set v = 'x'
delete from t
truncate t
merge into t using (select 9 as id) s on t.id = s.id when not matched then insert (id) values (s.id)
drop table t
alter table t add column pwned int
alter table t rename to pwned
comment on table t is 'pwned'
with a as (delete from t returning *) select * from a
with a as (insert into t values (9, 'x', 9) returning *) select * from a
with a as (update t set v = 'x' returning *) select count(*) from a
with b as (with a as (delete from t returning id) select * from a) select * from b
select * from (select 1) where exists (with a as (delete from t returning *) select * from a)
attach '{dir}/pwned.duckdb'
attach '{dir}/other.duckdb' as other (read_only)
detach memory
use information_schema
copy t to '{dir}/pwned.csv'
copy (select 1) to '{dir}/pwned.parquet' (format parquet)
copy t from '{dir}/secret.csv'
export database '{dir}/pwned'
import database '{dir}/pwned'
install httpfs
load httpfs
force install httpfs from 'http://127.0.0.1:9/'
update extensions
checkpoint
force checkpoint
vacuum
vacuum analyze t
analyze
begin
begin; delete from t
commit
rollback
abort
prepare p as delete from t
execute p
deallocate p
select 1; drop table t
select 1; set global default_collation = 'nocase'
select * from read_csv('{dir}/secret.csv')
select * from READ_TEXT ('{dir}/secret.csv')
select * from "read_blob"('{dir}/*')
select * from system.main.read_csv_auto('{dir}/secret.csv')
select * from '{dir}/secret.csv'
from "{dir}/secret.csv"
select * from t, '{dir}/secret.csv'
select * from glob('{dir}/*')
select * from sniff_csv('{dir}/secret.csv')
select * from parquet_metadata('{dir}/secret.csv')
select * from read_duckdb('{dir}/other.duckdb')
select * from query('delete from t returning *')
select * from query('select * from duckdb_settings()')
select * from query_table('duckdb_databases')
select * from json_execute_serialized_sql(json_serialize_sql('select * from duckdb_settings()'))
select getenv('HOME')
select current_setting('temp_directory')
select * from duckdb_settings()
select * from duckdb_databases()
select * from duckdb_databases
select * from system.main.duckdb_databases
select * from pragma_database_list
select * from pg_catalog.pg_settings
select * from duckdb_secrets()
select * from duckdb_extensions()
select * from duckdb_logs
select * from duckdb_temporary_files()
select * from duckdb_variables()
select * from which_secret('s3://a', 's3')
select * from pragma_storage_info('t')
select * from _rhei_mirror
select * from main."_RHEI_watermark"
select _rhei_valid_from from (select 1 as _rhei_valid_from), _rhei_history
describe _rhei_mirror
summarize _rhei_watermark
select write_log('pwned')
select * from enable_logging()
select * from enable_profiling()
select * from truncate_duckdb_logs()
select * from force_checkpoint()
select * from checkpoint()
select nextval('s')
select setseed(0.5)
select sleep_ms(100000)
select pg_sleep(100000)
select setval('s', 1)
select * from pandas_scan(1)
select * from seq_scan('t')
select * from arrow_scan(1, 2, 3)
select * from python_map_function('t')
select __internal_compress_string_hugeint(v) from t
select repeat('x', 1000000000)
select length(repeat(repeat('x', 60000), 60000))
select lpad(v, 500000000, 'y') from t
select unnest(range(1000000000))
select list_resize([1], 1000000000)
select printf('%500000000d', id) from t
select format('{{:{{}}}}', id, 1000000000) from t
select list_transform(range(60000), lambda x: repeat('x', 60000))
select x.repeat(1000000000) from (select 'x' as x)
pivot t on v using sum(w)
"""

READS = """
select * from t
from t
from t select v
table t
values (1, 'a'), (2, 'b')
select id, v as "a b" from t where id > 1 order by v desc nulls last limit 1 offset 0
select count(*), sum(w), avg(w), min(v), max(v), count(distinct v) from t
select v, count(*) filter (where w > 1) as n from t group by all having n >= 0 order by all
select string_agg(v, ',' order by id desc), list(v), array_agg(id), median(w), mode(v) from t
select quantile_cont(w, 0.5), approx_quantile(w, 0.5), stddev(w), corr(id, w), arg_max(v,
 w) from t
select row_number() over (order by id), lag(v) over (order by id),
 sum(w) over (partition by v) from t
select sum(w) over (order by id rows between 1 preceding and current row) from t
select * from t qualify row_number() over (partition by v order by id) = 1
select * from t a join t b using (id) left join t c on c.id = a.id
select * from t a cross join t b
select * from t a semi join t b on a.id = b.id
select * from t a anti join t b on a.id = b.w
select * from t a asof join t b on a.id >= b.id
select * from t a full outer join t b on a.id = b.w
from t positional join (select 1 as one)
select * from t a, lateral (select a.id + 1 as next) l
with a as (select 1 as x) select * from a
with a as materialized (select * from t) select count(*) from a a1 join a a2 on a1.id = a2.id
with recursive r(n) as (select 1 union all select n + 1 from r where n < 9) select sum(n) from r
select 1 union select 2 except select 3 intersect select 4
select 1 as a union all by name select 2 as b
select * from t where id in (select id from t) and exists (select 1 from t) and v not in ('x')
select (select max(id) from t), id = any(select w from t), id > all(select 0) from t
select case when id = 1 then 'one' else v end, coalesce(v, 'x'), nullif(v, 'a'), ifnull(v,
 'b') from t
select id + 1, id - 1, id * 2, id / 2, id // 2, id % 2, id ** 2, -id, id & 1, id | 1,
 id << 1 from t
select v || 'x', v like 'a%', v not ilike 'A_', v ~ 'a', v similar to 'a.', v glob 'a*' from t
select id between 1 and 2, id is null, v is not null, id is distinct from w, not (id = 1) from t
select upper(v), lower(v), length(v), substr(v, 1, 2), replace(v, 'insert', 'x'), trim(v) from t
select lpad(v, 10, ' '), rpad(v, 10, ' '), repeat(v, 3), reverse(v), left(v, 1),
 position('a' in v) from t
select regexp_matches(v, 'a'), regexp_replace(v, 'a', 'b'), regexp_extract(v, '(a)', 1),
 split(v, '') from t
select concat(v, id), concat_ws('-', v, w), format('{} {:>5}', v, id), printf('%05d', id) from t
select abs(-1), round(1.5, 1), ceil(1.2), floor(1.2), sqrt(4), ln(2), power(2, 3), pi(),
 greatest(1, 2)
select cast(id as varchar), try_cast(v as integer), id::double, id::decimal(10, 2) from t
select date '2024-01-01' + interval 3 day, timestamp '2024-01-01 00:00:00', current_date, now()
select extract(year from date '2024-05-06'), date_trunc('month', date '2024-05-06'),
 age(date '2024-01-01')
select strftime(date '2024-05-06', '%Y'), strptime('2024', '%Y'), make_date(2024, 1, 2),
 epoch_ms(0)
select date_diff('day', date '2024-01-01', date '2024-01-05'), datepart('dow', date '2024-01-01')
select timestamptz '2024-01-01 00:00:00+00' at time zone 'Europe/Berlin'
select [1, 2, 3][1], [1, 2][1:1], list_transform([1], lambda x: x + 1), [x * 2 for x in [1, 2]]
select unnest([1, 2]), unnest(range(3)), len([1]), list_sort([2, 1]), list_contains([1], 1)
select {'a': 1, 'b': 'x'}.a, struct_pack(x := 1), map {1: 'a'}[1], (1, 2), row(1, 2)
select '{"a": [1]}'::json -> '$.a', json_extract('{"a": 1}', '$.a'), '{"a": 1}' ->> '$.a',
 to_json(v) from t
select * from json_each('{"a": 1}')
select json_object('a', 1), json_array(1, 2), json_group_array(v) from t
select * from range(10)
select * from generate_series(date '2024-01-01', date '2024-01-05', interval 1 day)
select * from unnest([1, 2, 3]) u(x)
select * exclude (v), t.* from t
select * replace (w + 1 as w), columns('i.*') from t
select distinct v from t
select distinct on (v) * from t order by v, id
select v, w, sum(id), grouping(v) from t group by rollup (v, w)
select v, w, count(*) from t group by grouping sets ((v), (w), ())
select * from t tablesample 50 percent
select * from t using sample reservoir(1 rows)
pivot t on v in ('a', 'b') using sum(w)
unpivot t on w into name n value x
describe t
describe select id, v from t
summarize t
show tables
show all tables
explain select * from t
explain analyze select count(*) from t
explain (format json) select 1
EXPLAIN (ANALYZE, FORMAT JSON) with a as (select 1) select * from a
explain (select 1)
select table_name from duckdb_tables()
select column_name, data_type from duckdb_columns() where table_name = 't'
select table_name, column_name from information_schema.columns
select relname from pg_catalog.pg_class
select * from pragma_table_info('t')
select sql from sqlite_master
select version(), current_database(), current_schema(), typeof(1), current_user
select hash(v), md5(v), sha256(v), base64(v::blob), hex(v), gen_random_uuid() is not null,
 random() < 2 from t
select v collate nocase from t order by v collate de
select * from _rhei_dead_letter
select "delete", "insert" from (select 1 as "delete", 2 as "insert")
select 'set global x = 1; drop table t' as txt -- delete from t
(select 1) union all (select 2) order by 1
select 1;
"""


def statements(text: str) -> list[str]:
    """Return the statements of a list, one a line; a line that begins with a space goes on."""
    joined = text.strip().replace("\n ", "\x00 ").split("\n")
    return [statement.replace("\x00", "\n") for statement in joined]
