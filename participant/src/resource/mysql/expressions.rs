//! Which expressions may stand in SQL that comes from outside: a fail-closed allow-list.

use std::ops::ControlFlow;

use sqlparser::ast::{
    BinaryOperator, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgumentClause,
    FunctionArguments, JsonTableColumn, TimezoneInfo, TypedString, UnaryOperator,
    Value as AstValue,
};

use super::functions::is_allowed;

/// Ends a walk with a sentence for the client.
pub fn stop(message: impl Into<String>) -> ControlFlow<String> {
    ControlFlow::Break(message.into())
}

/// Expressions of both servers, each by its name: the parser knows those of many others, and what
/// it takes for one of them may be a call to a server.
pub fn check_expr(expr: &Expr) -> ControlFlow<String> {
    match expr {
        Expr::Function(function) => check_function(function),
        // TRY_CAST and SAFE_CAST are names of functions here.
        Expr::Cast {
            kind: CastKind::Cast,
            data_type,
            format: None,
            ..
        }
        | Expr::Convert {
            is_try: false,
            data_type: Some(data_type),
            ..
        } => check_type(data_type),
        Expr::TypedString(literal) => check_typed_literal(literal),
        Expr::BinaryOp { op, .. } => check_operator(op),
        Expr::UnaryOp {
            op:
                UnaryOperator::Plus
                | UnaryOperator::Minus
                | UnaryOperator::Not
                | UnaryOperator::BitwiseNot,
            ..
        }
        | Expr::Identifier(_)
        | Expr::CompoundIdentifier(_)
        | Expr::IsFalse(_)
        | Expr::IsNotFalse(_)
        | Expr::IsTrue(_)
        | Expr::IsNotTrue(_)
        | Expr::IsNull(_)
        | Expr::IsNotNull(_)
        | Expr::IsUnknown(_)
        | Expr::IsNotUnknown(_)
        | Expr::InList { .. }
        | Expr::InSubquery { .. }
        | Expr::Between { .. }
        | Expr::Like { any: false, .. }
        | Expr::RLike { .. }
        | Expr::AnyOp { .. }
        | Expr::AllOp { .. }
        | Expr::Convert {
            is_try: false,
            data_type: None,
            ..
        }
        | Expr::Extract { .. }
        | Expr::Ceil { .. }
        | Expr::Floor { .. }
        | Expr::Position { .. }
        | Expr::Substring { .. }
        | Expr::Trim { .. }
        | Expr::Collate { .. }
        | Expr::Nested(_)
        | Expr::Value(_)
        | Expr::Case { .. }
        | Expr::Exists { .. }
        | Expr::Subquery(_)
        | Expr::Tuple(_)
        | Expr::Interval(_)
        | Expr::MatchAgainst { .. }
        | Expr::MemberOf(_)
        | Expr::Wildcard(_)
        | Expr::QualifiedWildcard(..) => ControlFlow::Continue(()),
        other => stop(format!("the expression {other} is not allowed")),
    }
}

/// `DATE '…'`, `TIME '…'` and `TIMESTAMP '…'`. The parser takes any type for the beginning of such
/// a literal, and to a server `BYTES(3) 'x'` calls a stored function and names its column.
fn check_typed_literal(literal: &TypedString) -> ControlFlow<String> {
    let plain = matches!(
        literal.data_type,
        DataType::Date
            | DataType::Time(None, TimezoneInfo::None)
            | DataType::Timestamp(None, TimezoneInfo::None)
    );
    let text = matches!(literal.value.value, AstValue::SingleQuotedString(_));
    if plain && text && !literal.uses_odbc_syntax {
        ControlFlow::Continue(())
    } else {
        stop(format!("the literal {literal} is not allowed"))
    }
}

/// Types of the servers' casts that the parser does not know. It does not tell `X` from `X()`, so
/// that any other name may be a call.
const UNKNOWN_TO_THE_PARSER: [&str; 4] = ["INET4", "INET6", "NCHAR", "YEAR"];

/// Types that one of the servers casts to.
fn check_type(data_type: &DataType) -> ControlFlow<String> {
    let known = match data_type {
        DataType::Custom(name, _) => {
            let name = name.to_string();
            UNKNOWN_TO_THE_PARSER
                .iter()
                .any(|known| known.eq_ignore_ascii_case(&name))
        }
        DataType::Char(_)
        | DataType::Character(_)
        | DataType::Varchar(_)
        | DataType::Binary(_)
        | DataType::Varbinary(_)
        | DataType::Decimal(_)
        | DataType::Numeric(_)
        | DataType::Dec(_)
        | DataType::Float(_)
        | DataType::Double(_)
        | DataType::DoublePrecision
        | DataType::Real
        | DataType::Int(_)
        | DataType::Integer(_)
        | DataType::Signed
        | DataType::SignedInteger
        | DataType::Unsigned
        | DataType::UnsignedInteger
        | DataType::Date
        | DataType::Time(_, TimezoneInfo::None)
        | DataType::Datetime(_)
        | DataType::Timestamp(_, TimezoneInfo::None)
        | DataType::JSON
        | DataType::Uuid => true,
        _ => false,
    };
    if known {
        ControlFlow::Continue(())
    } else {
        stop(format!("the type {data_type} is not allowed"))
    }
}

/// Operators of both servers. The parser knows words of other ones as operators, which here are
/// names, and with a parenthesis after them calls.
fn check_operator(op: &BinaryOperator) -> ControlFlow<String> {
    match op {
        BinaryOperator::Plus
        | BinaryOperator::Minus
        | BinaryOperator::Multiply
        | BinaryOperator::Divide
        | BinaryOperator::Modulo
        | BinaryOperator::MyIntegerDivide
        | BinaryOperator::StringConcat
        | BinaryOperator::Gt
        | BinaryOperator::Lt
        | BinaryOperator::GtEq
        | BinaryOperator::LtEq
        | BinaryOperator::Spaceship
        | BinaryOperator::Eq
        | BinaryOperator::NotEq
        | BinaryOperator::And
        | BinaryOperator::Or
        | BinaryOperator::Xor
        | BinaryOperator::BitwiseOr
        | BinaryOperator::BitwiseAnd
        | BinaryOperator::BitwiseXor
        | BinaryOperator::PGBitwiseShiftLeft
        | BinaryOperator::PGBitwiseShiftRight
        | BinaryOperator::Arrow
        | BinaryOperator::LongArrow => ControlFlow::Continue(()),
        other => stop(format!("the operator {other} is not allowed")),
    }
}

/// Whether it is LAST_INSERT_ID.
pub fn is_last_insert_id(function: &Function) -> bool {
    let last = function.name.0.last().and_then(|part| part.as_ident());
    last.is_some_and(|name| name.value.eq_ignore_ascii_case("last_insert_id"))
}

fn check_function(function: &Function) -> ControlFlow<String> {
    let [part] = function.name.0.as_slice() else {
        return stop(format!(
            "the stored function {} is not allowed",
            function.name
        ));
    };
    let Some(name) = part.as_ident() else {
        return stop("it has a function call that is not allowed");
    };
    if !is_allowed(&name.value) || function.uses_odbc_syntax {
        return stop(format!("the function {} is not allowed", name.value));
    }
    check_form(function)?;
    // With an argument it changes the session, which serves other transactions later.
    let has_arguments =
        matches!(&function.args, FunctionArguments::List(list) if !list.args.is_empty());
    if is_last_insert_id(function) && has_arguments {
        return stop("LAST_INSERT_ID with an argument is not allowed");
    }
    ControlFlow::Continue(())
}

/// Calls as both servers write them; the parser knows those of others too.
fn check_form(function: &Function) -> ControlFlow<String> {
    let other = || stop(format!("the call {function} is not allowed"));
    if function.parameters != FunctionArguments::None
        || function.filter.is_some()
        || !function.within_group.is_empty()
    {
        return other();
    }
    let FunctionArguments::List(list) = &function.args else {
        return ControlFlow::Continue(());
    };
    if !list
        .args
        .iter()
        .all(|argument| matches!(argument, FunctionArg::Unnamed(_)))
    {
        return other();
    }
    list.clauses.iter().try_for_each(|clause| match clause {
        FunctionArgumentClause::OrderBy(_)
        | FunctionArgumentClause::Limit(_)
        | FunctionArgumentClause::Separator(_)
        | FunctionArgumentClause::IgnoreOrRespectNulls(_) => ControlFlow::Continue(()),
        FunctionArgumentClause::JsonReturningClause(returning) => check_type(&returning.data_type),
        _ => other(),
    })
}

/// What JSON_TABLE makes columns of, whose types are those of tables.
pub fn check_columns(columns: &[JsonTableColumn]) -> ControlFlow<String> {
    columns.iter().try_for_each(|column| match column {
        JsonTableColumn::Named(named) => match &named.r#type {
            DataType::Custom(..) => check_type(&named.r#type),
            _ => ControlFlow::Continue(()),
        },
        JsonTableColumn::ForOrdinality(_) => ControlFlow::Continue(()),
        JsonTableColumn::Nested(nested) => check_columns(&nested.columns),
    })
}
