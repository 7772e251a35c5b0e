//! Names of pools and datasets: what zfs(8) ("ZFS Component Naming Requirements") and zpool-create(8) allow, less what
//! people hardly use. None of them begins with a dash, so none is an option to a program.

/// The longest name of a dataset here. ZFS takes 255 bytes, of which a layer's snapshot needs 81.
const LONGEST: usize = 160;

/// What zpool-create(8) keeps for itself, at the beginning of a pool's name or as the whole.
const RESERVED_BEGINNINGS: [&str; 4] = ["mirror", "raidz", "draid", "spare"];
const RESERVED: [&str; 4] = ["log", "cache", "special", "dedup"];

/// Checks the name of a pool or of a dataset in one: `tank`, `tank/duet`.
///
/// # Errors
/// What is wrong with it, as a part of a sentence.
pub fn check_dataset(name: &str) -> Result<(), &'static str> {
    let pool = zpool_of(name);
    if name.len() > LONGEST {
        return Err("it is longer than 160 characters");
    }
    if !pool.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Err("the name of a ZFS pool begins with a letter");
    }
    if RESERVED_BEGINNINGS.iter().any(|word| pool.starts_with(word)) || RESERVED.contains(&pool) {
        return Err("ZFS keeps this name of a pool for itself");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
    for part in name.split('/') {
        if part.is_empty() || part == "." || part == ".." {
            return Err("between slashes there are names");
        }
        if !part.bytes().all(allowed) {
            return Err("only ASCII letters, digits, dashes, underscores, dots, colons and slashes are allowed");
        }
    }
    Ok(())
}

/// The pool that a dataset is in.
pub(super) fn zpool_of(dataset: &str) -> &str {
    dataset.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_zfs() {
        for good in ["tank", "tank/duet", "a", "Tank-1_x.y:z/0", "tank/a/b/c", "logs", "tank/mirror"] {
            assert_eq!(check_dataset(good), Ok(()), "{good}");
        }
        let long = format!("tank/{}", "x".repeat(160));
        for bad in [
            "",
            "/",
            "-r",
            "1tank",
            "tank/",
            "/tank",
            "tank//x",
            "tank/..",
            "tank/./x",
            "tank@snap",
            "tank x",
            "tank\n",
            "tank#mark",
            "mirror",
            "mirror1/x",
            "raidz2",
            "log",
            "tank/ä",
            "tank/%",
            "tank,x",
            &long,
        ] {
            assert!(check_dataset(bad).is_err(), "{bad:?}");
        }
        assert_eq!((zpool_of("tank/duet/x"), zpool_of("tank")), ("tank", "tank"));
    }
}
