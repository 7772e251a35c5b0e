//! The monitor of one container: see [`duet_container::monitor`].

fn main() -> std::process::ExitCode {
    duet_container::monitor::main()
}
