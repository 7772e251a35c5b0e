//! The monitor of one container, see [`duet_container::monitor`]; or, called with `files`, the service for a container's
//! files, see [`duet_container::files::server`].

fn main() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "files") {
        return duet_container::files::server::main();
    }
    duet_container::monitor::main()
}
