//! The `concord` command line. Everything is in `concord_client::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    concord_client::cli::main()
}
