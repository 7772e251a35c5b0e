//! Writes the inputs that fuzzing begins with: `seeds TARGET FOLDER`.

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (target, folder) = (arguments.next().unwrap_or_default(), PathBuf::from(arguments.next().unwrap_or_default()));
    let Some(target) = duet_fuzz::TARGETS.iter().find(|known| known.name == target) else {
        let known: Vec<&str> = duet_fuzz::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("There is no target \"{target}\": use one of {}.", known.join(", "));
        return ExitCode::FAILURE;
    };
    for (number, seed) in (target.seeds)().iter().enumerate() {
        if let Err(error) = std::fs::write(folder.join(format!("seed-{number:02}")), seed) {
            eprintln!("{} cannot be written to: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
