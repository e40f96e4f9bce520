"""Statements for a SQLite source with a table `t(id, v, w)`: hostile ones, and ordinary reads."""

#: `{dir}` is a directory that the process may write; it holds `other.db`.
HOSTILE = """
insert into t values (9, 'x', 9)
insert into t select 9, 'x', 9
insert into t values (9, 'x', 9) returning id
replace into t values (1, 'x', 9)
update t set v = 'x'
update t set v = 'x' returning *
delete from t
delete from t returning *
with x as (select 9 as a) insert into t(id) select a from x
with x as (select 1 as a) update t set v = 'x' where id in x returning *
with x as (select 1 as a) delete from t where id in x
explain delete from t
explain query plan delete from t
explain /**/ query plan /**/ insert into t values (9, 'x', 9)
create table pwned(a)
create table pwned as select 1
create temp table t as select 1 as id
create temp table pwned(a)
create table temp.t(id)
create temp view t as select 1 as id
create temporary trigger tr after insert on t begin delete from t; end
create view pwned as select 1
create index pwned on t(v)
create trigger tr after insert on t begin delete from t; end
create virtual table pwned using fts5(x)
create virtual table temp.pwned using fts5(x)
drop table t
drop index i
drop view w
alter table t rename to pwned
alter table t add column pwned
reindex
reindex t
analyze
analyze t
vacuum
vacuum into '{dir}/pwned.db'
attach '{dir}/pwned.db' as x
attach database '{dir}/other.db' as other
attach ':memory:' as mem
attach 'file:{dir}/other.db?mode=ro' as other
detach main
begin
begin immediate
begin exclusive
commit
end
rollback
savepoint s
release s
select 1; delete from t
select 1; pragma user_version = 7
pragma user_version = 7
pragma user_version(7)
PRAGMA main.user_version=7
pragma "user_version" = 7
pragma schema_version = 99
pragma application_id = 7
pragma journal_mode = delete
pragma journal_mode(off)
pragma query_only = off
pragma writable_schema = on
pragma case_sensitive_like = on
pragma reverse_unordered_selects = on
pragma full_column_names = on
pragma short_column_names = off
pragma cache_size = 5
pragma temp_store = memory
pragma temp_store_directory = '{dir}'
pragma data_store_directory = '{dir}'
pragma mmap_size = 1000000000
pragma locking_mode = exclusive
pragma synchronous = off
pragma busy_timeout = 0
pragma foreign_keys = off
pragma recursive_triggers = on
pragma trusted_schema = off
pragma threads = 8
pragma hard_heap_limit = 1
pragma soft_heap_limit = 1
pragma wal_checkpoint(truncate)
pragma wal_autocheckpoint = 1
pragma incremental_vacuum(1)
pragma auto_vacuum = 1
pragma optimize
pragma shrink_memory
pragma encoding = 'UTF-16'
pragma page_size = 8192
pragma max_page_count = 1
pragma secure_delete = on
pragma database_list
pragma key = 'x'
select * from pragma_optimize
select * from pragma_database_list
select file from pragma_database_list()
select * from pragma_wal_checkpoint
select * from pragma_hard_heap_limit(1)
select * from pragma_cache_size(5)
select * from pragma_journal_mode('delete')
select * from pragma_user_version(7)
select load_extension('{dir}/x')
select "load_extension"('{dir}/x', 'y')
select LOAD_EXTENSION ('{dir}/x')
select edit('x', 'sh')
select readfile('{dir}/other.db')
select writefile('{dir}/pwned', 'x')
select fts3_tokenizer('simple')
select fts3_tokenizer('simple', x'0000000000000000')
select hex(fts3_tokenizer('simple'))
select sqlite_log(1, 'pwned')
select optimize(f) from f
select fts5('x')
select * from sqlite_stmt
select sql from sqlite_stmt where sql like '%secret%'
select * from dbstat
select * from sqlite_dbpage
select * from fsdir('{dir}')
select * from zipfile('{dir}/x')
select * from csv('{dir}/x')
select * from bytecode('select 1')
select * from fts3tokenize
update sqlite_master set sql = 'x'
delete from sqlite_master
insert into f(f) values ('optimize')
insert into f(f, rank) values ('rank', 'bm25(10.0)')
insert into r_node values (9, x'00')
delete from r_rowid
update r set a = 1
insert into sqlite_temp_master values (1, 2, 3, 4, 5)
select length(hex(zeroblob(300000000)))
select hex(zeroblob(300000000))
select length(randomblob(400000000))
select length(replace(hex(zeroblob(60000)), '0', hex(zeroblob(60000))))
with recursive r(s) as (select 'x' union all select s || s from r) select max(length(s)) from r
/* select */ delete from t
-- select 1
 delete from t
; delete from t
EXPLAIN
"""

READS = """
select * from t
values (1, 'a'), (2, 'b')
select id, v as "a b" from t where id > 1 order by v desc nulls last limit 1 offset 0
select count(*), sum(w), avg(w), min(v), max(v), count(distinct v), total(w) from t
select v, count(*) filter (where w > 1) as n from t group by v having n >= 0 order by 1
select group_concat(v, ','), group_concat(distinct v) from t
select row_number() over (order by id), lag(v) over (order by id), sum(w) over win from t
 window win as (partition by v order by id rows between 1 preceding and current row)
select rank() over (order by v), dense_rank() over (order by v),
 ntile(2) over (order by id) from t
select first_value(v) over (order by id), nth_value(v, 2) over (order by id),
 cume_dist() over () from t
select a.* from t a join t b using (id) left join t c on c.id = a.id
select a.id as one, b.id as two from t a cross join t b
select a.id as one from t a natural join t b
select a.id as one, b.id as two from t a full outer join t b on a.id = b.w
with a as (select 1 as x) select * from a
with a as materialized (select * from t) select count(*) from a
with recursive r(n) as (select 1 union all select n + 1 from r where n < 9) select sum(n) from r
select 1 union select 2
select 1 union all select 1
select 1 except select 2
select 1 intersect select 1
select * from t where id in (select id from t) and v not in ('x')
select * from t where exists (select 1 from t u where u.id = t.id)
select (select max(id) from t) as m
select case when id = 1 then 'one' else v end, coalesce(v, 'x'), nullif(v, 'a'), iif(id, 1,
 2) from t
select id + 1, id - 1, id * 2, id / 2, id % 2, -id, id & 1, id | 1, id << 1, ~id from t
select v || 'x', v like 'a%', v not like 'A_' escape '!', v glob 'a*', v is null,
 v is not w from t
select upper(v), lower(v), length(v), substr(v, 1, 2), replace(v, 'insert into', 'x'),
 trim(v) from t
select instr(v, 'a'), hex(v), quote(v), unicode(v), char(65, 66), printf('%05d', id),
 soundex(v) from t
select abs(-1), round(1.5, 1), max(1, 2), min(1, 2), sign(-2), random() is not null, typeof(1)
select ceil(1.2), floor(1.2), sqrt(4), ln(2), log10(2), pow(2, 3), pi(), mod(5, 2), trunc(1.5),
 sin(1)
select cast(id as text), cast(v as integer), cast(w as real) from t
select date('now') is not null, time('12:00'), datetime('2024-01-01'), julianday('2024-01-01')
select strftime('%Y', '2024-05-06'), unixepoch('2024-01-01'), current_timestamp is not null
select json('{"a": [1]}'), json_extract('{"a": 1}', '$.a'), '{"a": 1}' -> '$.a',
 '{"a": 1}' ->> 'a'
select json_array(1, 2), json_object('a', 1), json_type('1'), json_valid('x'), json_patch('{}',
 '{}')
select json_group_array(v), json_group_object(id, v) from t
select json_set('{}', '$.a', 1), json_insert('{}', '$.a', 1), json_remove('{"a": 1}', '$.a'),
 json_quote(1)
select key, value from json_each('{"a": 1, "b": 2}')
select t.id, e.value from t, json_each('[1, 2]') e
select fullkey, atom from json_tree('{"a": [1, 2]}')
select * from t tt where tt.id in (select value from json_each('[1, 3]'))
select * from t not indexed
select * from t indexed by i where v = 'a'
select rowid, oid from t
select v collate nocase from t order by v collate rtrim
select distinct v from t
select likely(id), unlikely(v), likelihood(w, 0.5) from t
select zeroblob(10), randomblob(4) is not null, x'00ff'
select last_insert_rowid(), changes(), total_changes(), sqlite_version()
select name, sql from sqlite_master
select name from sqlite_schema where type = 'table'
select count(*) from sqlite_temp_master
select * from w
pragma table_info(t)
pragma main.table_xinfo('t')
pragma index_list(t)
pragma foreign_key_list(t)
pragma user_version
pragma main.schema_version
pragma journal_mode
pragma integrity_check
pragma quick_check(1)
pragma foreign_key_check
pragma compile_options
pragma table_list
pragma page_count
select name, type from pragma_table_info('t')
select m.name, c.name as col from sqlite_master m,
 pragma_table_info(m.name) c where m.type = 'table'
select name from pragma_index_list('t')
select name from pragma_function_list limit 1
select compile_options from pragma_compile_options limit 1
select user_version from pragma_user_version
explain query plan select * from t
explain select 1
EXPLAIN QUERY PLAN with a as (select 1) select * from a
select x from f where f match 'hello'
select highlight(f, 0, '<', '>'), bm25(f) < 1 from f where f match 'hello' order by rank
select snippet(f4) from f4 where f4 match 'hello'
select id, a from r where a < 9
select replace("delete", 'a', 'b') from (select 'abc' as "delete")
select [insert], `update` from (select 1 as [insert], 2 as `update`)
select 'pragma user_version = 7; drop table t' as txt -- delete from t
select 1;
"""
