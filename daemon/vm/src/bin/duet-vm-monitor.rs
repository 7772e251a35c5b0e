//! The monitor of one virtual machine, see [`duet_vm::monitor`].

fn main() -> std::process::ExitCode {
    duet_vm::monitor::main()
}
