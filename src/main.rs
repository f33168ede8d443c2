//! The `aptmesh` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    aptmesh::cli::run()
}
