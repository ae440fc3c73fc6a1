//! XA on MySQL and MariaDB.

pub mod functions;
pub mod lexer;
pub mod literal;
pub mod sql;
pub mod xa;
