//! The functions that a statement may call: those of the servers themselves that have no effect
//! outside the branch. Everything else is refused, so that neither a stored function nor a plug-in
//! nor one that a later version brings can wait, lock, write files or end the branch.

/// Sorted, in lower case.
const ALLOWED: &[&str] = &[
    "abs", "acos", "adddate", "addtime", "aes_decrypt", "aes_encrypt", "any_value", "ascii", "asin",
    "atan", "atan2", "avg", "bin", "bin_to_uuid", "bit_and", "bit_count", "bit_length", "bit_or",
    "bit_xor", "cast", "ceil", "ceiling", "char", "char_length", "character_length", "charset",
    "coalesce", "coercibility", "collation", "compress", "concat", "concat_ws", "connection_id",
    "conv", "convert", "convert_tz", "cos", "cot", "count", "crc32", "cume_dist", "curdate",
    "current_date", "current_time", "current_timestamp", "current_user", "curtime", "database",
    "date", "date_add", "date_format", "date_sub", "datediff", "day", "dayname", "dayofmonth",
    "dayofweek", "dayofyear", "default", "degrees", "dense_rank", "elt", "exp", "export_set",
    "extract", "field", "find_in_set", "first_value", "floor", "format", "from_base64",
    "from_days", "from_unixtime", "get_format", "greatest", "group_concat", "grouping", "hex",
    "hour", "if", "ifnull", "inet6_aton", "inet6_ntoa", "inet_aton", "inet_ntoa", "insert",
    "instr", "interval", "is_uuid", "isnull", "json_array", "json_array_append",
    "json_array_insert", "json_arrayagg", "json_contains", "json_contains_path", "json_depth",
    "json_extract", "json_insert", "json_keys", "json_length", "json_merge_patch",
    "json_merge_preserve", "json_object", "json_objectagg", "json_overlaps", "json_pretty",
    "json_quote", "json_remove", "json_replace", "json_search", "json_set", "json_type",
    "json_unquote", "json_valid", "json_value", "lag", "last_day", "last_insert_id", "last_value",
    "lcase", "lead", "least", "left", "length", "ln", "localtime", "localtimestamp", "locate",
    "log", "log10", "log2", "lower", "lpad", "ltrim", "make_set", "makedate", "maketime", "max",
    "md5", "microsecond", "mid", "min", "minute", "mod", "month", "monthname", "now", "nth_value",
    "ntile", "nullif", "oct", "octet_length", "ord", "percent_rank", "period_add", "period_diff",
    "pi", "position", "pow", "power", "quarter", "quote", "radians", "rand", "random_bytes",
    "rank", "regexp_instr", "regexp_like", "regexp_replace", "regexp_substr", "repeat", "replace",
    "reverse", "right", "round", "row_count", "row_number", "rpad", "rtrim", "schema",
    "sec_to_time", "second", "session_user", "sha", "sha1", "sha2", "sign", "sin", "soundex",
    "space", "sqrt", "std", "stddev", "stddev_pop", "stddev_samp", "str_to_date", "strcmp",
    "subdate", "substr", "substring", "substring_index", "subtime", "sum", "sysdate",
    "system_user", "tan", "time", "time_format", "time_to_sec", "timediff", "timestamp",
    "timestampadd", "timestampdiff", "to_base64", "to_days", "to_seconds", "trim", "truncate",
    "ucase", "uncompress", "uncompressed_length", "unhex", "unix_timestamp", "upper", "user",
    "utc_date", "utc_time", "utc_timestamp", "uuid", "uuid_short", "uuid_to_bin", "value",
    "values", "var_pop", "var_samp", "variance", "version", "week", "weekday", "weekofyear",
    "weight_string", "year", "yearweek",
];

/// Functions that must not even seem to be called: refused by name wherever a parenthesis follows,
/// whatever the parser made of it. Sorted, in lower case.
const DANGEROUS: &[&str] = &[
    "benchmark", "get_lock", "is_free_lock", "is_used_lock", "load_file", "master_gtid_wait",
    "master_pos_wait", "nextval", "release_all_locks", "release_lock", "setval", "sleep",
    "source_pos_wait", "sys_eval", "sys_exec", "wait_for_executed_gtid_set",
    "wait_until_sql_thread_after_gtids",
];

/// Whether a statement may call it.
pub fn is_allowed(name: &str) -> bool {
    ALLOWED.binary_search(&name.to_ascii_lowercase().as_str()).is_ok()
}

/// Whether its name must not stand before a parenthesis.
pub fn is_dangerous(name: &str) -> bool {
    DANGEROUS.binary_search(&name.to_ascii_lowercase().as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_sorted_and_do_not_meet() {
        assert!(ALLOWED.is_sorted() && DANGEROUS.is_sorted());
        assert!(!DANGEROUS.iter().any(|name| is_allowed(name)));
        assert!(is_allowed("Count") && is_dangerous("Sleep") && !is_allowed("no_such"));
    }
}
