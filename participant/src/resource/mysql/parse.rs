//! One statement as the parser reads it, or a sentence why it reads none.

use sqlparser::ast::Statement;
use sqlparser::dialect::MySqlDialect;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// Nesting that the parser follows. Deeper statements are refused, not answered with a crash.
const NESTING_MAX: usize = 40;
/// Where the parser meets its limit within a keyword's operand, it may take the keyword for a
/// name, which nests one level less: `NOT +…+ v` is then a sum. What it read without meeting the
/// limit it reads alike with a higher one.
const NESTING_OF_THE_CHECK: usize = 56;

/// Parses text that is one statement, to its very end.
pub fn parse_whole(text: &str) -> Result<Statement, String> {
    let unparsed = |error: ParserError| format!("it cannot be parsed ({error})");
    let statement = parse_within(text, NESTING_MAX).map_err(unparsed)?;
    if parse_within(text, NESTING_OF_THE_CHECK).as_ref() == Ok(&statement) {
        Ok(statement)
    } else {
        Err("it is nested too deeply".into())
    }
}

fn parse_within(text: &str, nesting: usize) -> Result<Statement, ParserError> {
    let mut parser = Parser::new(&MySqlDialect {})
        .with_recursion_limit(nesting)
        .try_with_sql(text)?;
    let statement = parser.parse_statement()?;
    // To the very end: what the parser leaves, the server still runs. Its own loop over statements
    // stops before a word END, which is an alias to the server.
    if parser.peek_token_ref().token == Token::EOF {
        Ok(statement)
    } else {
        Err(ParserError::ParserError(
            "exactly one statement is allowed".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keyword_is_no_name_because_its_operand_is_deep() {
        for pluses in 0..64 {
            for more in 0..64 {
                let text = format!("SELECT {}NOT {}1", "+".repeat(pluses), "+".repeat(more));
                if let Ok(statement) = parse_whole(&text) {
                    let read = statement.to_string().replace("NOT ", "NOT");
                    assert_eq!(read, text.replace("NOT ", "NOT"));
                }
            }
        }
    }
}
