//! The `duet` command; see [`duet_client::cli`].

fn main() -> std::process::ExitCode {
    duet_client::cli::main()
}
