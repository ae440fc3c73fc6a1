//! Words that inputs are made of.

/// Words and pieces that statements, and attacks on them, are made of. Their places are what the
/// corpus of `sql_words` is written in: new ones go to the end.
#[rustfmt::skip]
pub const SQL: &[&str] = &[
    "SELECT", "INSERT", "INTO", "UPDATE", "DELETE", "REPLACE", "FROM", "WHERE", "SET", "VALUES",
    "VALUE", "WITH", "RECURSIVE", "AS", "UNION", "ALL", "DISTINCT", "JOIN", "LEFT", "INNER",
    "CROSS", "NATURAL", "STRAIGHT_JOIN", "ON", "USING", "GROUP BY", "HAVING", "ORDER BY", "LIMIT",
    "OFFSET", "FOR UPDATE", "FOR SHARE", "NOWAIT", "SKIP LOCKED", "LOCK IN SHARE MODE",
    "ON DUPLICATE KEY UPDATE", "IGNORE", "LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "QUICK",
    "PARTITION", "RETURNING", "INTO OUTFILE", "INTO DUMPFILE", "PROCEDURE", "CALL", "XA",
    "XA END", "XA COMMIT", "COMMIT", "ROLLBACK", "BEGIN", "START TRANSACTION", "PREPARE",
    "EXECUTE", "HANDLER", "LOAD", "TABLE", "LATERAL", "JSON_TABLE", "COLUMNS", "PATH", "CASE",
    "WHEN", "THEN", "ELSE", "END", "IF", "EXISTS", "NOT", "AND", "OR", "XOR", "DIV", "MOD", "IN",
    "LIKE", "ESCAPE", "BETWEEN", "IS", "NULL", "TRUE", "DEFAULT", "REGEXP", "RLIKE",
    "SOUNDS LIKE", "BINARY", "COLLATE", "INTERVAL", "DAY", "CAST", "CONVERT", "TRY_CONVERT",
    "TRY_CAST", "CHAR", "SIGNED", "DECIMAL", "EXTRACT", "POSITION", "SUBSTRING", "TRIM",
    "OVERLAY", "CEIL", "FLOOR", "MATCH", "AGAINST", "OVER", "WINDOW", "ROWS", "ROW", "ARRAY",
    "STRUCT", "MAP", "TUPLE", "COUNT", "SUM", "ABS", "NOW", "UUID", "SLEEP", "sleep", "GET_LOCK",
    "BENCHMARK", "LOAD_FILE", "LAST_INSERT_ID", "NEXT VALUE FOR", "f", "my_function", "t", "u",
    "v", "k", "`t`", "`sleep`", "`f`", "concord", "mysql", "sys", "information_schema",
    "performance_schema", "`concord`", "ledger", "user", "_utf8mb4", "_latin1", "N", "x", "b",
    "date", "time", "timestamp", "?", "1", "0", "1.5", ".5", "1e3", "0x4f", "0b01", "x'4f'",
    "b'01'", "'a'", "''", "'it''s'", "'?'", "(", ")", ",", ".", ";", "=", "<=>", "<>", "!=", "<",
    ">", "<=", ">=", "<<", ">>", "+", "-", "*", "/", "%", "&", "&&", "|", "||", "^", "~", "!",
    "->", "->>", ":=", "@a", "@@b", "\\", "\"", "'", "`", "#", "-- ", "--", "/*", "*/", "/*!",
    "/*M!", "/*+", "{", "}", "[", "]", "$", ":", "\n", "\t", "\0", "\u{a0}", "\u{e9}",
    "\u{1f600}", "OF", "SYSTEM_TIME", "FOR", "FORCE INDEX", "CURRENT_USER", "CURRENT_TIMESTAMP",
    "DUAL", "GROUPING SETS", "ROLLUP", "CUBE", "FETCH FIRST", "ONLY", "TOP", "UNNEST",
    "CONNECT BY", "PRIOR", "GLOBAL", "ANY", "SOME", "MEMBER OF", "OVERLAPS", "AT TIME ZONE",
    "SEPARATOR", "SQL_NO_CACHE", "EXCEPT", "INTERSECT", "FORMAT",
];

/// The same for changes of tables.
#[rustfmt::skip]
pub const DDL: &[&str] = &[
    "CREATE TABLE", "IF NOT EXISTS", "concord_bank.accounts", "ALTER TABLE", "ADD COLUMN",
    "ADD KEY", "DROP COLUMN", "CREATE INDEX", "UNIQUE", "PRIMARY KEY", "ENGINE=InnoDB",
    "ENGINE=MyISAM", "BIGINT", "NOT NULL", "DEFAULT", "AS SELECT", "LIKE", "REFERENCES",
    "mysql.user", "SELECT", "(", ")", ",", "\"", "\\", "--", "/*!", ";", "CHECK", "COMMENT",
    "DATA DIRECTORY", "UNION", "RENAME TO",
];
