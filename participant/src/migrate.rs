//! Which changes of tables a coordinator may ask for: a fail-closed allow-list.
//!
//! Only CREATE TABLE, ALTER TABLE and CREATE INDEX inside one schema called `concord_*`. It owns
//! the check and nothing else: the resource manager applies the plan, outside any branch.

use std::ops::ControlFlow;

use concord_core::limits::SQL_BYTES_MAX;
use concord_proto::convert::{At, Violations};
use concord_proto::v1;
use sqlparser::ast::{
    AlterTable, AlterTableOperation, ColumnDef, ColumnOption, CreateIndex, CreateTable,
    CreateTableOptions, DataType, Expr, Ident, IndexColumn, ObjectName, Query, SqlOption,
    Statement, TableConstraint, Visit, Visitor,
};

use crate::resource::mysql::expressions::check_expr;
use crate::resource::mysql::parse::parse_whole;

/// How the name of every schema begins.
const SCHEMA_PREFIX: &str = "concord_";
/// Characters after that: MySQL's names have at most 64, and this leaves room in lock names.
const SCHEMA_SUFFIX_MAX: usize = 24;
/// Migrations of one schema.
const MIGRATIONS_MAX: usize = 1_000;
/// Statements of one migration.
const STATEMENTS_MAX: usize = 64;
/// Text that servers read in another way than the parser does, depending on their settings: a
/// comment that is executed, an escape, a string that may be a name, a variable. None is needed.
const REFUSED_TEXT: &[&str] = &["/*", "--", "#", "\\", "\"", ";", "@", "\0"];

/// Words that begin a query, or another table's name, where a column could stand.
const QUERY_WORDS: &[&str] = &["SELECT", "TABLE", "VALUES", "WITH", "LIKE"];

/// One versioned change that passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    /// Its number, from 1 without gaps.
    pub version: u32,
    /// Its statements, in order. Each can be repeated.
    pub statements: Vec<String>,
}

/// All changes of one schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The schema: `concord_` and letters, digits and underscores.
    pub schema: String,
    /// By version.
    pub migrations: Vec<Migration>,
}

/// Checks a plan.
pub fn check(raw: v1::MigrateRequest) -> Result<Plan, Violations> {
    let mut v = Violations::default();
    if !is_schema(&raw.schema) {
        let text = format!("must be {SCHEMA_PREFIX} and 1 to {SCHEMA_SUFFIX_MAX} of [a-z0-9_]");
        v.add(&At::root("schema"), text);
    }
    let at = At::root("migrations");
    if raw.migrations.len() > MIGRATIONS_MAX {
        v.add(&at, format_args!("must be at most {MIGRATIONS_MAX}"));
        return v.finish(|| None);
    }
    for (i, migration) in raw.migrations.iter().enumerate() {
        let at = at.index(i);
        if usize::try_from(migration.version).ok() != i.checked_add(1) {
            let version = migration.version;
            v.add(
                &at.field("version"),
                format_args!("must be {}, and is {version}", i + 1),
            );
        }
        let at = at.field("statements");
        let count = migration.statements.len();
        if count == 0 || count > STATEMENTS_MAX {
            v.add(
                &at,
                format_args!("must be from 1 to {STATEMENTS_MAX}, and are {count}"),
            );
            continue;
        }
        for (i, sql) in migration.statements.iter().enumerate() {
            if let Err(why) = judge(&raw.schema, sql) {
                v.add(&at.index(i), why);
            }
        }
    }
    v.finish(|| {
        let migrations = raw.migrations.into_iter().map(|raw| Migration {
            version: raw.version,
            statements: raw.statements,
        });
        Some(Plan {
            schema: raw.schema,
            migrations: migrations.collect(),
        })
    })
}

fn is_schema(name: &str) -> bool {
    name.strip_prefix(SCHEMA_PREFIX).is_some_and(|suffix| {
        (1..=SCHEMA_SUFFIX_MAX).contains(&suffix.len())
            && suffix
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
    })
}

fn judge(schema: &str, sql: &str) -> Result<(), String> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(format!("must have at most {SQL_BYTES_MAX} bytes"));
    }
    if let Some(text) = REFUSED_TEXT.iter().find(|text| sql.contains(**text)) {
        return Err(format!("must not have {text:?}"));
    }
    let statement = parse_whole(sql)?;
    match &statement {
        Statement::CreateTable(create) => create_table(create),
        Statement::CreateIndex(create) => create_index(schema, create),
        Statement::AlterTable(alter) => alter_table(alter),
        _ => Err("must be CREATE TABLE, ALTER TABLE or CREATE INDEX".to_owned()),
    }?;
    match statement.visit(&mut Inside(schema)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(why) => Err(why),
    }
}

/// Every table is named with the schema, and nothing is read.
struct Inside<'a>(&'a str);

impl Visitor for Inside<'_> {
    type Break = String;

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<String> {
        match inside(self.0, name) {
            Ok(()) => ControlFlow::Continue(()),
            Err(why) => ControlFlow::Break(why),
        }
    }

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<String> {
        ControlFlow::Break("must not read other tables".to_owned())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<String> {
        check_expr(expr)
    }
}

fn inside(schema: &str, name: &ObjectName) -> Result<(), String> {
    let parts: Option<Vec<&str>> = name
        .0
        .iter()
        .map(|part| part.as_ident().map(|ident| ident.value.as_str()))
        .collect();
    match parts.as_deref() {
        Some([of, _]) if *of == schema => Ok(()),
        _ => Err(format!("must name its table as {schema}.<table>")),
    }
}

fn create_table(create: &CreateTable) -> Result<(), String> {
    let plain = create.query.is_none()
        && create.like.is_none()
        && create.clone.is_none()
        && create.location.is_none()
        && create.file_format.is_none()
        && !create.or_replace
        && !create.temporary
        && !create.external;
    if !plain {
        return Err("must be a plain CREATE TABLE with its columns".to_owned());
    }
    if !create.if_not_exists {
        return Err("must say IF NOT EXISTS: it runs again after a crash".to_owned());
    }
    create.constraints.iter().try_for_each(constraint)?;
    create.columns.iter().try_for_each(column)?;
    match &create.table_options {
        CreateTableOptions::None => Ok(()),
        CreateTableOptions::Plain(options) => options.iter().try_for_each(table_option),
        _ => Err("has table options that are not allowed".to_owned()),
    }
}

fn constraint(constraint: &TableConstraint) -> Result<(), String> {
    match constraint {
        TableConstraint::Unique(key) => key.columns.iter().try_for_each(key_part),
        TableConstraint::PrimaryKey(key) => key.columns.iter().try_for_each(key_part),
        TableConstraint::Index(key) => key.columns.iter().try_for_each(key_part),
        TableConstraint::Check(_) => Ok(()),
        // A foreign key takes locks in tables that no statement of the branch names.
        _ => Err("must have no constraints but keys and checks".to_owned()),
    }
}

fn column(column: &ColumnDef) -> Result<(), String> {
    column_form(&column.name, &column.data_type)?;
    column
        .options
        .iter()
        .try_for_each(|option| column_option(&option.option))
}

/// What a column is called and holds. To a server the parenthesis of a CREATE TABLE may also hold
/// a query: `(SELECT LOAD_FILE('a'))`, which the parser takes for a column `SELECT` of a type
/// called `LOAD_FILE`.
fn column_form(name: &Ident, data_type: &DataType) -> Result<(), String> {
    let begins_query = name.quote_style.is_none()
        && QUERY_WORDS
            .iter()
            .any(|word| name.value.eq_ignore_ascii_case(word));
    if begins_query {
        return Err(format!("must have {name} in backticks"));
    }
    match data_type {
        DataType::Custom(..) => Err(format!("must not have the type {data_type}")),
        _ => Ok(()),
    }
}

fn column_option(option: &ColumnOption) -> Result<(), String> {
    match option {
        ColumnOption::Null
        | ColumnOption::NotNull
        | ColumnOption::Default(_)
        | ColumnOption::PrimaryKey(_)
        | ColumnOption::Unique(_)
        | ColumnOption::Check(_)
        // AUTO_INCREMENT, for one.
        | ColumnOption::DialectSpecific(_)
        | ColumnOption::CharacterSet(_)
        | ColumnOption::Collation(_)
        | ColumnOption::Comment(_)
        | ColumnOption::OnUpdate(_)
        | ColumnOption::Generated { .. }
        | ColumnOption::Invisible => Ok(()),
        // MariaDB from 10.5 and MySQL from 9.0 make a foreign key of a column's REFERENCES.
        other => Err(format!("must not have the column option {other}")),
    }
}

fn table_option(option: &SqlOption) -> Result<(), String> {
    let allowed = match option {
        SqlOption::Comment(_) => true,
        // `ENGINE = InnoDB` is parsed as a list that has a name and is empty.
        SqlOption::NamedParenthesizedList(list) => {
            let engine = list.name.as_ref().map(|name| name.value.as_str());
            list.key.value.eq_ignore_ascii_case("ENGINE")
                && engine.is_some_and(|engine| engine.eq_ignore_ascii_case("InnoDB"))
                && list.values.is_empty()
        }
        SqlOption::KeyValue { key, .. } => {
            let key = key.value.to_ascii_uppercase();
            key.ends_with("CHARSET")
                || key.ends_with("CHARACTER SET")
                || key.ends_with("COLLATE")
                || key == "ROW_FORMAT"
        }
        _ => false,
    };
    if allowed {
        Ok(())
    } else {
        Err(format!("must not have the table option {option}"))
    }
}

fn create_index(schema: &str, create: &CreateIndex) -> Result<(), String> {
    let plain = create.predicate.is_none()
        && create.include.is_empty()
        && create.with.is_empty()
        && create.nulls_distinct.is_none()
        && !create.concurrently
        && !create.r#async
        && create.alter_options.is_empty();
    if !plain {
        return Err("must be a plain CREATE INDEX".to_owned());
    }
    create.columns.iter().try_for_each(key_part)?;
    inside(schema, &create.table_name)
}

/// A column, perhaps in descending order. The parser takes a second name after it for a class of
/// operators, which no server has.
fn key_part(part: &IndexColumn) -> Result<(), String> {
    let plain = matches!(part.column.expr, Expr::Identifier(_))
        && part.column.with_fill.is_none()
        && part.column.options.nulls_first.is_none()
        && part.operator_class.is_none();
    if plain {
        Ok(())
    } else {
        Err(format!("must have keys of columns only, not of {part}"))
    }
}

fn alter_table(alter: &AlterTable) -> Result<(), String> {
    alter.operations.iter().try_for_each(|change| match change {
        AlterTableOperation::AddConstraint {
            constraint: added, ..
        } => constraint(added),
        AlterTableOperation::AddColumn { column_def, .. } => column(column_def),
        AlterTableOperation::ChangeColumn {
            new_name: name,
            data_type,
            options,
            ..
        }
        | AlterTableOperation::ModifyColumn {
            col_name: name,
            data_type,
            options,
            ..
        } => {
            column_form(name, data_type)?;
            options.iter().try_for_each(column_option)
        }
        AlterTableOperation::DropColumn { .. }
        | AlterTableOperation::RenameColumn { .. }
        | AlterTableOperation::AlterColumn { .. }
        | AlterTableOperation::DropConstraint { .. }
        | AlterTableOperation::DropIndex { .. }
        | AlterTableOperation::DropPrimaryKey { .. } => Ok(()),
        other => Err(format!("must not have {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "CREATE TABLE IF NOT EXISTS concord_bank.accounts (\
         id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, \
         balance BIGINT NOT NULL, opened DATETIME(6) NOT NULL, \
         memo VARCHAR(200) CHARACTER SET utf8mb4 NOT NULL, gtrid BINARY(16) NOT NULL, \
         PRIMARY KEY (id), KEY by_time (opened, id), UNIQUE KEY u (memo), \
         CONSTRAINT balance_not_negative CHECK (balance >= 0)) ENGINE=InnoDB";

    fn refused(sql: &str) -> String {
        judge("concord_bank", sql).expect_err(sql)
    }

    #[test]
    fn what_the_gateway_needs_passes() {
        for sql in [
            TABLE,
            "CREATE TABLE IF NOT EXISTS `concord_bank`.`a b` (id INT PRIMARY KEY)",
            "ALTER TABLE concord_bank.accounts ADD COLUMN note TEXT",
            "ALTER TABLE concord_bank.accounts DROP COLUMN note, ADD CONSTRAINT c CHECK (a > 0)",
            "CREATE INDEX IF NOT EXISTS i ON concord_bank.accounts (balance, opened DESC)",
            "ALTER TABLE concord_bank.t ADD COLUMN at DATETIME(6) DEFAULT CURRENT_TIMESTAMP(6) \
             ON UPDATE CURRENT_TIMESTAMP(6)",
        ] {
            assert_eq!(judge("concord_bank", sql), Ok(()), "{sql}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for sql in [
            "",
            "SELECT 1",
            "DROP TABLE concord_bank.accounts",
            "DROP DATABASE concord_bank",
            "CREATE USER u",
            "GRANT ALL ON *.* TO u",
            "CREATE TABLE concord_bank.t (a INT)",
            "CREATE TABLE IF NOT EXISTS t (a INT)",
            "CREATE TABLE IF NOT EXISTS concord.ledger (a INT)",
            "CREATE TABLE IF NOT EXISTS mysql.t (a INT)",
            "CREATE TABLE IF NOT EXISTS concord_bank.t AS SELECT * FROM mysql.user",
            "CREATE TABLE IF NOT EXISTS concord_bank.t LIKE mysql.user",
            "CREATE TEMPORARY TABLE IF NOT EXISTS concord_bank.t (a INT)",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT) ENGINE=MyISAM",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT) DATA DIRECTORY='/tmp'",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT, FOREIGN KEY (a) REFERENCES m.t (a))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT); DROP DATABASE mysql",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT) /*!50000 ENGINE=MyISAM */",
            "CREATE INDEX i ON mysql.user (a)",
            "CREATE INDEX i ON concord_bank.t (a*REFERENCES mysql.user)",
            "CREATE INDEX i ON concord_bank.t (a int_ops)",
            "CREATE INDEX i ON concord_bank.t ((LOAD_FILE(a)))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT, KEY k ((a + 1)))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT DEFAULT (SLEEP(9)))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT, CHECK (my_function(a)))",
            "ALTER TABLE concord_bank.t ADD COLUMN a INT AS (BYTES(3) 'x')",
            "ALTER TABLE mysql.user ADD COLUMN a INT",
            "ALTER TABLE concord_bank.t RENAME TO mysql.t",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT REFERENCES mysql.user (a))",
            "ALTER TABLE concord_bank.t ADD COLUMN a INT REFERENCES m.t (a)",
            "ALTER TABLE concord_bank.t MODIFY COLUMN a INT REFERENCES m.t (a)",
            "ALTER TABLE concord_bank.t CHANGE COLUMN a b INT REFERENCES m.t (a)",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a INT) END SELECT 1",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (a VARCH@R(1))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (SELECT LOAD_FILE('/etc/passwd'))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (SELECT SLEEP(9))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (SELECT CHAR(77))",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (TABLE mysql.user)",
            "CREATE TABLE IF NOT EXISTS concord_bank.t (LIKE mysql.user)",
            "ALTER TABLE concord_bank.t ADD COLUMN a mysql.user",
            "ALTER TABLE concord_bank.t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES m.t (a)",
        ] {
            refused(sql);
        }
    }

    #[test]
    fn a_plan_is_checked_as_a_whole() {
        let migration = |version| v1::Migration {
            version,
            statements: vec![TABLE.to_owned()],
        };
        let raw = |schema: &str, migrations| v1::MigrateRequest {
            schema: schema.to_owned(),
            migrations,
        };
        let good = check(raw("concord_bank", vec![migration(1), migration(2)])).expect("good");
        assert_eq!(good.migrations.len(), 2);
        for schema in [
            "",
            "concord",
            "concord_",
            "mysql",
            "concord_A",
            "concord_a`b",
        ] {
            assert!(check(raw(schema, vec![])).is_err(), "{schema}");
        }
        for versions in [vec![2], vec![1, 1], vec![0], vec![1, 3]] {
            let migrations = versions.into_iter().map(migration).collect();
            assert!(check(raw("concord_bank", migrations)).is_err());
        }
        let empty = v1::Migration {
            version: 1,
            statements: vec![],
        };
        assert!(check(raw("concord_bank", vec![empty])).is_err());
    }
}
