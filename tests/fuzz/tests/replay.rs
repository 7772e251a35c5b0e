//! What fuzzing begins with, and what it once found, with every test run.

use std::path::Path;

use duet_fuzz::TARGETS;

#[test]
fn seeds_hold_whole_and_cut_off() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty(), "{}", target.name);
        for seed in seeds {
            (target.run)(&seed);
            for cut in (0..seed.len()).step_by(seed.len().div_ceil(16).max(1)) {
                (target.run)(&seed[..cut]);
            }
        }
    }
}

#[test]
fn what_was_found_once_holds() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    for target in TARGETS {
        let Ok(files) = std::fs::read_dir(folder.join(target.name)) else { continue };
        for file in files {
            let path = file.unwrap().path();
            eprintln!("{}", path.display());
            (target.run)(&std::fs::read(&path).unwrap());
        }
    }
}
