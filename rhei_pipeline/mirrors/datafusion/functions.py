"""What a query may call in DataFusion, by its catalogue of this version.

A session holds no other function. One that a new version brings is on neither list: it is taken
out of the session, and a test asks to which list it belongs.
"""

import pyarrow as pa
import pyarrow.compute as pc
from datafusion import SessionContext, udf

from rhei_pipeline.mirrors.names import names

#: Functions that only work out values.
ALLOWED = names(
    """
    abs acos acosh any_value approx_distinct approx_median approx_percentile_cont
    approx_percentile_cont_with_weight array_add array_agg array_any_value array_append array_avg
    array_cat array_compact array_concat array_contains array_dims array_distance array_distinct
    array_element array_empty array_except array_extract array_has array_has_all array_has_any
    array_indexof array_intersect array_join array_length array_max array_min array_ndims
    array_normalize array_pop_back array_pop_front array_position array_positions array_prepend
    array_product array_push_back array_push_front array_remove array_remove_all array_remove_n
    array_replace array_replace_all array_replace_n array_reverse array_scale array_slice
    array_sort array_subtract array_sum array_to_string array_union arrays_overlap arrays_zip
    arrow_cast arrow_field arrow_metadata arrow_try_cast arrow_typeof ascii asin asinh atan atan2
    atanh avg bit_and bit_length bit_or bit_xor bool_and bool_or btrim cardinality cast_to_type
    cbrt ceil char_length character_length chr coalesce concat concat_ws contains corr cos cosh
    cosine_distance cot count covar covar_pop covar_samp cume_dist current_date current_time
    current_timestamp date_bin date_format date_part date_trunc datepart datetrunc decode degrees
    dense_rank digest dot_product element_at empty encode ends_with exp factorial find_in_set
    first_value flatten floor from_unixtime gcd generate_series get_field greatest grouping
    ifnull initcap inner_product instr isnan iszero lag last_value lcm lead least left length
    levenshtein list_add list_any_value list_append list_avg list_cat list_compact list_concat
    list_contains list_dims list_distance list_distinct list_element list_empty list_except
    list_extract list_has list_has_all list_has_any list_indexof list_intersect list_join
    list_length list_max list_ndims list_normalize list_pop_back list_pop_front list_position
    list_positions list_prepend list_product list_push_back list_push_front list_remove
    list_remove_all list_remove_n list_replace list_replace_all list_replace_n list_reverse
    list_scale list_slice list_sort list_subtract list_sum list_to_string list_union list_zip ln
    log log10 log2 lower lpad ltrim make_array make_date make_list make_time map map_entries
    map_extract map_keys map_values max md5 mean median min named_struct nanvl now nth_value
    ntile nullif nvl nvl2 octet_length overlay percent_rank percentile_cont pi position pow power
    quantile_cont radians rand random range rank regexp_count regexp_instr regexp_like
    regexp_match regexp_replace regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope
    regr_sxx regr_sxy regr_syy repeat replace reverse right round row row_number rpad rtrim
    sha224 sha256 sha384 sha512 signum sin sinh split_part sqrt starts_with stddev stddev_pop
    stddev_samp string_agg string_to_array string_to_list strpos struct substr substr_index
    substring substring_index sum tan tanh to_char to_date to_hex to_local_time to_time
    to_timestamp to_timestamp_micros to_timestamp_millis to_timestamp_nanos to_timestamp_seconds
    to_unixtime today translate trim trunc try_cast_to_type union_extract union_tag upper uuid
    var var_pop var_population var_samp var_sample version with_metadata
    """
)

#: What tells of files, and what makes lists of any length out of nothing.
REFUSED = names(
    """
    array_repeat array_resize list_repeat list_resize input_file_name file_row_index
    """
)

#: Stand for scalar functions in a session no more: in FROM they give row after row.
_ONLY_IN_FROM = {"generate_series", "range"}
#: The longest text that a function may make of one value; DataFusion works on 8192 rows at a time,
#: outside of its memory limit.
MOST_LENGTH = 65_536


def restrict(context: SessionContext) -> None:
    """Take out of a session what no query may call; bound what texts can be blown up to."""
    for name in (set(context.udfs()) - ALLOWED) | _ONLY_IN_FROM:
        context.deregister_udf(name)
    for name in set(context.udafs()) - ALLOWED:
        context.deregister_udaf(name)
    for name in set(context.udwfs()) - ALLOWED:
        context.deregister_udwf(name)
    text, number = pa.string(), pa.int64()
    context.register_udf(udf(_repeat, [text, number], text, "immutable", "repeat"))
    context.register_udf(udf(_left_padded, [text, number, text], text, "immutable", "lpad"))
    context.register_udf(udf(_right_padded, [text, number, text], text, "immutable", "rpad"))


def _repeat(texts: pa.Array, counts: pa.Array) -> pa.Array:
    counts = pc.max_element_wise(counts, pa.scalar(0, counts.type), skip_nulls=False)
    # As reals: a product of whole numbers might wrap around.
    lengths = pc.multiply(
        pc.cast(pc.binary_length(texts), pa.float64()), pc.cast(counts, pa.float64(), safe=False)
    )
    _refuse_long(pc.max(lengths).as_py() or 0)
    return pc.binary_repeat(texts, counts)


def _left_padded(texts: pa.Array, widths: pa.Array, fills: pa.Array) -> pa.Array:
    return _padded(texts, widths, fills, at_left=True)


def _right_padded(texts: pa.Array, widths: pa.Array, fills: pa.Array) -> pa.Array:
    return _padded(texts, widths, fills, at_left=False)


def _padded(texts: pa.Array, widths: pa.Array, fills: pa.Array, *, at_left: bool) -> pa.Array:
    """Fill texts up to a width, or cut them to it, as PostgreSQL does."""
    _refuse_long(pc.max(widths).as_py() or 0)
    found: list[str | None] = []
    for text, width, fill in zip(
        texts.to_pylist(), widths.to_pylist(), fills.to_pylist(), strict=True
    ):
        if text is None or width is None or fill is None:
            found.append(None)
            continue
        cut = text[: max(width, 0)]
        lacking = max(width, 0) - len(cut) if fill else 0
        filling = (fill * (lacking // len(fill) + 1))[:lacking] if fill else ""
        found.append(filling + cut if at_left else cut + filling)
    return pa.array(found, pa.string())


def _refuse_long(length: float) -> None:
    if length > MOST_LENGTH:
        raise ValueError(f"a text of more than {MOST_LENGTH:,} characters would be made")
