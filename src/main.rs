use std::process::ExitCode;

fn main() -> ExitCode {
    clipcap::cli::main()
}
