//! The one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    paceline_cli::main()
}
