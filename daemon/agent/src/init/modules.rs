//! Loading the modules that the initramfs brings.

use std::ffi::CString;
use std::path::Path;
use std::{fs, io};

use super::{MODULE_LIST, warn};

/// Loads them in the order of the list. One that cannot be loaded may be for a device that this machine does not have;
/// whether the root is reached shows what it was worth.
pub(super) fn load_all(dir: &Path) {
    let list = match fs::read_to_string(dir.join(MODULE_LIST)) {
        Ok(list) => list,
        Err(error) => return warn(&format!("the list of modules cannot be read: {error}")),
    };
    for name in list.lines() {
        match load(&dir.join(name)) {
            Ok(()) => {}
            // It is there already: built in, or loaded.
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => warn(&format!("the module {name} cannot be loaded: {error}")),
        }
    }
}

fn load(path: &Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(rustix::system::finit_module(&file, &CString::default(), 0)?)
}
