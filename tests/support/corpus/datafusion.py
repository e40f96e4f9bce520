"""Statements for a DataFusion mirror with a table `t(k, v, w)`: hostile ones, ordinary reads."""

#: `{dir}` is a directory that the process may write; it holds `secret.csv`.
HOSTILE = """
create external table x stored as csv location '{dir}/secret.csv'
create external table t stored as csv location '{dir}/secret.csv'
create unbounded external table x stored as csv location '{dir}/secret.csv'
create table pwned as select 1 as a
create table pwned(a int)
create or replace table t as select 1 as k
create view pwned as select 1
create or replace view t as select 1 as k
create temp view t as select 1 as k
create schema pwned
create database pwned
create function abs(bigint) returns bigint return 7
create index pwned on t(k)
drop table t
drop view t
drop schema main cascade
drop function abs
alter table t add column pwned int
alter view t as select 1
insert into t values (9, 'x', 9)
insert overwrite t values (9, 'x', 9)
replace into t values (9, 'x', 9)
update t set v = 'x'
delete from t
truncate table t
merge into t using (select 9 as k) s on t.k = s.k when matched then delete
copy t to '{dir}/pwned.csv'
copy (select 1) to '{dir}/pwned.parquet' stored as parquet
copy t from '{dir}/secret.csv'
explain analyze insert into t values (9, 'x', 9)
explain create table pwned as select 1 as a
explain analyze create table pwned as select 1 as a
explain /**/ analyze delete from t
explain analyze copy (select 1) to '{dir}/pwned.csv'
explain verbose set datafusion.execution.batch_size = 1
explain format tree copy t to '{dir}/pwned.csv'
set datafusion.execution.batch_size = 1
set time zone = 'Asia/Tokyo'
set datafusion.sql_parser.enable_ident_normalization = false
reset datafusion.execution.batch_size
show all
show tables
show columns from t
show datafusion.execution.batch_size
prepare p as select 1
execute p
deallocate p
begin
start transaction
commit
rollback
select * into pwned from t
with x as (insert into t values (9, 'x', 9) returning *) select * from x
with x as (delete from t returning *) select * from x
select 1; drop table t
select 1; create table pwned(a int)
select * from '{dir}/secret.csv'
select * from "{dir}/secret.csv"
select * from `{dir}/secret.csv`
select * from read_csv('{dir}/secret.csv')
select * from read_parquet('{dir}/secret.csv')
select * from glob('{dir}/*')
select * from parquet_metadata('{dir}/secret.csv')
select * from metadata_cache()
select * from statistics_cache()
select * from list_files_cache()
select * from information_schema.tables
select * from information_schema.df_settings
select * from datafusion.information_schema.df_settings
select * from _rhei_segments.x
select * from "_rhei_segments"."x"
select * from "_RHEI_SEGMENTS".x
select * from rhei._rhei_segments.x
select 'a\\' , k from _rhei_segments.x --'
select input_file_name() from t
select file_row_index() from t
select repeat('x', 1000000000)
select repeat('x', 9223372036854775807)
select repeat(repeat('x', 60000), 60000)
select lpad('a', 500000000, 'x')
select rpad(cast(k as varchar), 500000000, 'x') from t
select array_repeat(1, 1000000000)
select list_repeat('x', 1000000000)
select array_resize(make_array(1), 1000000000)
select range(1000000000)
select generate_series(1, 1000000000)
vacuum
analyze t
attach '{dir}/secret.csv' as x
use pwned
call f()
load 'x'
lock table t
grant select on t to x
kill 1
"""

READS = """
select * from t
select * from t order by 1, 2
values (1, 'a'), (2, 'b')
select k, v as "a b" from t where k > 1 order by v desc nulls last limit 1 offset 0
select count(*), sum(w), avg(w), min(v), max(v), count(distinct v) from t
select v, count(*) filter (where w > 1) as n from t group by v having count(*) >= 0 order by 1
select string_agg(v, ','), array_agg(k), median(w), stddev(w), corr(k, w) from t
select approx_distinct(v), approx_median(w), approx_percentile_cont(w, 0.5) from t
select bool_and(k > 0), bool_or(k > 1), bit_and(k), bit_or(k), var_pop(w) from t
select row_number() over (order by k), lag(v) over (order by k),
 sum(w) over (partition by v) from t
select sum(w) over (order by k rows between 1 preceding and current row) from t
select rank() over (order by v), dense_rank() over (order by v), ntile(2) over (order by k) from t
select first_value(v) over (order by k), last_value(v) over (order by k), nth_value(v,
 1) over (order by k) from t
select * from t qualify row_number() over (partition by v order by k) = 1
select a.k from t a join t b using (k) left join t c on c.k = a.k
select a.k as one, b.k as two from t a cross join t b
select a.* from t a left semi join t b on a.k = b.k
select a.* from t a left anti join t b on a.k = b.w
select a.k as one, b.k as two from t a full outer join t b on a.k = b.w
with a as (select 1 as x) select * from a
with recursive r as (select 1 as n union all select n + 1 from r where n < 9) select sum(n) from r
select 1 union select 2
select 1 union all select 1
select 1 except select 2
select 1 intersect select 1
select * from t where k in (select k from t) and v not in ('x')
select * from t where exists (select 1 from t u where u.k = t.k)
select (select max(k) from t) as m
select case when k = 1 then 'one' else v end, coalesce(v, 'x'), nullif(v, 'a'), ifnull(v,
 'b') from t
select k + 1, k - 1, k * 2, k / 2, k % 2, -k, k & 1, k | 1, k << 1 from t
select v || 'x', v like 'a%', v not ilike 'A_', v ~ 'a', v similar to 'a.' from t
select k between 1 and 2, k is null, v is not null, k is distinct from w, not (k = 1) from t
select upper(v), lower(v), length(v), substr(v, 1, 2), replace(v, 'insert', 'x'), trim(v) from t
select lpad(v, 10, ' '), rpad(v, 10, ' '), repeat(v, 3), reverse(v), left(v, 1), strpos(v,
 'a') from t
select regexp_like(v, 'a'), regexp_replace(v, 'a', 'b'), regexp_match(v, '(a)'), split_part(v,
 'a', 1) from t
select concat(v, k), concat_ws('-', v, 'x'), initcap(v), ascii(v), chr(65), starts_with(v,
 'a') from t
select abs(-1), round(1.5, 1), ceil(1.2), floor(1.2), sqrt(4), ln(2), power(2, 3), pi(),
 greatest(1, 2)
select cast(k as varchar), try_cast(v as int) as i, k::double as d, cast(w as decimal(10,
 2)) from t
select arrow_cast(k, 'Int32'), arrow_typeof(k), arrow_metadata(k) from t
select date '2024-01-01' + interval '3 days', timestamp '2024-01-01 00:00:00', current_date, now()
select extract(year from date '2024-05-06'), date_trunc('month', date '2024-05-06'),
 date_part('dow', now())
select to_char(date '2024-05-06', '%Y'), to_date('2024-01-01'), to_timestamp('2024-01-01'),
 make_date(2024, 1, 2)
select date_bin(interval '1 hour', now()), from_unixtime(0), to_unixtime('2024-01-01')
select [1, 2, 3][1], make_array(1, 2), array_length([1]), array_sort([2, 1]), array_has([1], 1)
select unnest([1, 2])
select named_struct('a', 1), struct(1, 2), get_field(named_struct('a', 1), 'a'), map(['a'], [1])
select * from range(10)
select * from generate_series(1, 5)
select distinct v from t
select distinct on (v) v, k from t order by v, k
select v, w, sum(k), grouping(v) from t group by rollup (v, w)
select v, w, count(*) from t group by grouping sets ((v), (w), ())
select v, w, count(*) from t group by cube (v, w)
select * exclude (v) from t
select t.* from t
describe t
explain select * from t
explain analyze select count(*) from t
explain verbose select 1
select version(), md5(v), sha256(v), encode(v, 'hex'), digest(v, 'md5'), uuid() is not null,
 random() < 2 from t
select * from _rhei_dead_letter
select "delete", "insert" from (select 1 as "delete", 2 as "insert")
select 'set x = 1; drop table t' as txt -- delete from t
(select 1) union all (select 2) order by 1
select 1;
"""
