//! AppArmor: a profile for each running instance, loaded when it starts and removed when it has ended.
//!
//! Compiling a profile takes apparmor_parser(8) some 100 ms, several times as long as the rest of a start. So a compiled
//! one is kept, for each set of rules and length of name, and an instance's own name is put into it ([`policy`]). What
//! is kept lies in `$DUET_DIR/apparmor`; it is made anew for another kernel or parser.
//!
//! With `security.nesting` the instance has a policy namespace as well, in which it loads profiles for what it runs
//! itself. Its processes are then confined by both: `duet_c1//&:lxc-duet_c1:` (the kernel's
//! Documentation/admin-guide/LSM/apparmor.rst, apparmor.d(5), and `aa_label_parse` in security/apparmor/label.c).
//!
//! A host without AppArmor, or a daemon that is itself confined, has none of this.

mod policy;
mod profile;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use profile::Rules;

use crate::error::{Error, Result, blocking};
use crate::program::{Program, complaint};

/// The kernel's interface: a file for each thing that can be done to profiles.
const KERNEL: &str = "/sys/kernel/security/apparmor";
/// The compiler of profiles.
const PARSER: Program = Program { name: "apparmor_parser", package: "apparmor" };

/// What the names of policy namespaces begin with. Debian's apparmor.service and snapd, inside, load profiles only where
/// they find themselves in one that begins as those of LXC, LXD or Incus do.
const NAMESPACE: &str = "lxc-";

/// The host's AppArmor, or that it has none.
pub struct AppArmor {
    /// None: the host has no AppArmor that can be used.
    compiler: Option<Compiler>,
    /// What the names of all profiles of this daemon begin with.
    prefix: String,
}

/// What compiles profiles, and keeps them compiled.
#[derive(Clone)]
struct Compiler {
    /// Where they are kept.
    kept: PathBuf,
    /// Over what a compiled profile depends on besides its text: the kernel's features and the parser's version.
    host: Sha256,
}

impl AppArmor {
    /// Looks at the host. `prefix` tells daemons of one host apart.
    pub fn detect(root: &Path, prefix: &str) -> Self {
        let compiler = match usable() {
            Ok(host) => Some(Compiler { kept: root.join("apparmor"), host }),
            Err(reason) => {
                tracing::info!("instances have no AppArmor profiles: {reason}");
                None
            }
        };
        Self { compiler, prefix: prefix.to_owned() }
    }

    /// Loads an instance's profile, in place of one that is there. Returns the label that its processes get; none on a
    /// host without AppArmor.
    ///
    /// # Errors
    /// Where the profile cannot be compiled or the kernel refuses it.
    pub async fn load(&self, instance: &str, rules: Rules) -> Result<Option<String>> {
        let Some(compiler) = &self.compiler else { return Ok(None) };
        let name = self.name(instance);
        let policy = compiler.compiled(&name, rules).await?;
        blocking(move || load(policy, name, rules)).await.map(Some)
    }

    /// Removes an instance's profile and namespace, if there are any. No process of it is left.
    pub fn unload(&self, instance: &str) {
        if self.compiler.is_some() {
            remove(&self.name(instance));
        }
    }

    /// Removes what instances that no longer run left behind.
    pub fn sweep(&self, running: &HashSet<String>) {
        if self.compiler.is_none() {
            return;
        }
        let kept: HashSet<String> = running.iter().map(|instance| self.name(instance)).collect();
        let profiles = fs::read_to_string(kernel("profiles")).unwrap_or_default();
        // "name (enforce)"; profiles of namespaces are written ":namespace://name (enforce)".
        let profiles = profiles.lines().filter_map(|line| line.split(' ').next().map(str::to_owned));
        let spaces = fs::read_dir(kernel("policy/namespaces")).into_iter().flatten().flatten();
        let spaces = spaces.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(NAMESPACE)?.to_owned()));
        let begins = format!("{}_", self.prefix);
        let left: HashSet<String> =
            profiles.chain(spaces).filter(|name| name.starts_with(&begins) && !kept.contains(name)).collect();
        left.iter().for_each(|name| remove(name));
    }

    /// The name of an instance's profile. An underscore is in no instance's name.
    fn name(&self, instance: &str) -> String {
        format!("{}_{instance}", self.prefix)
    }
}

/// Loads a profile that was compiled under another name, and returns the label of those whom it confines.
fn load(compiled: Vec<u8>, name: String, rules: Rules) -> Result<String> {
    let failure = |error: io::Error| Error::internal(format!("cannot load the AppArmor profile {name}: {error}"));
    let policy = policy::named(compiled, &policy::placeholder(name.len()), &name)
        .ok_or_else(|| failure(io::Error::other("the parser's output is not understood")))?;
    fs::write(kernel(".replace"), policy).map_err(failure)?;
    if !rules.nesting {
        return Ok(name);
    }
    match fs::create_dir(namespace(&name)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            remove(&name);
            Err(Error::internal(format!("cannot make the AppArmor namespace {name}: {error}")))
        }
        _ => Ok(format!("{name}//&:{NAMESPACE}{name}:")),
    }
}

/// Whether profiles can be loaded here; then a hash over what compiled ones depend on.
fn usable() -> std::result::Result<Sha256, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if read("/sys/module/apparmor/parameters/enabled").trim() != "Y" {
        return Err("the kernel runs without AppArmor".into());
    }
    if !kernel(".replace").exists() {
        return Err(format!("{KERNEL} is not mounted"));
    }
    let own = read("/proc/self/attr/apparmor/current");
    if own.trim_end_matches(['\n', '\0']) != "unconfined" {
        return Err(format!("this daemon is itself confined by {}", own.trim()));
    }
    let parser = PARSER.find().map_err(|error| error.to_string())?;
    let parser = fs::metadata(parser).map_err(|error| error.to_string())?;
    let mut hash = Sha256::new();
    hash.update(rustix::system::uname().release().to_bytes());
    hash.update(parser.mtime().to_le_bytes());
    hash.update(parser.size().to_le_bytes());
    Ok(hash)
}

impl Compiler {
    /// The compiled profile with these rules, whose name is a placeholder of the length of `name`.
    async fn compiled(&self, name: &str, rules: Rules) -> Result<Vec<u8>> {
        let text = profile::text(&policy::placeholder(name.len()), rules);
        let path = self.kept.join(self.key(&text));
        if let Ok(policy) = fs::read(&path) {
            return Ok(policy);
        }
        let options = ["--skip-kernel-load", "--skip-cache", "--stdout", "--quiet"].map(OsStr::new);
        let failure = |what: String| Error::internal(format!("cannot compile the AppArmor profile {name}: {what}"));
        let output = PARSER.run(&options, &text).await.map_err(|error| failure(error.to_string()))?;
        if !output.status.success() {
            return Err(failure(complaint(&output)));
        }
        let keep = || {
            fs::create_dir_all(&self.kept)?;
            let new = path.with_extension(format!("new.{name}"));
            fs::write(&new, &output.stdout)?;
            fs::rename(&new, &path)
        };
        if let Err(error) = keep() {
            tracing::warn!(%error, path = %path.display(), "a compiled AppArmor profile is not kept");
        }
        Ok(output.stdout)
    }

    /// The name under which a profile of this text is kept.
    fn key(&self, text: &str) -> String {
        let hash = self.host.clone().chain_update(text).finalize();
        hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

fn remove(name: &str) {
    let gone = |outcome: io::Result<()>| match outcome {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, profile = name, "an AppArmor profile stays behind");
        }
        _ => {}
    };
    gone(fs::remove_dir(namespace(name)));
    gone(fs::write(kernel(".remove"), name));
}

fn kernel(file: &str) -> PathBuf {
    Path::new(KERNEL).join(file)
}

fn namespace(name: &str) -> PathBuf {
    kernel("policy/namespaces").join(format!("{NAMESPACE}{name}"))
}
