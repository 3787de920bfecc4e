//! The lab's inputs: Debian packages, resolved by name when needed, unpacked below `target/lab`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};

use crate::process;

const BACKPORTS: &str = "bookworm-backports";

/// Scenarios run side by side, and ask for the same packages.
static PACKAGES: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    PACKAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Unpacks package `name`, once, and returns the folder that now plays the root.
pub fn unpacked(cache: &Path, name: &str) -> Result<PathBuf> {
    let root = cache.join("packages").join(name);
    let _others = one_at_a_time();
    if root.exists() {
        return Ok(root);
    }
    let staging = root.with_extension("partial");
    if staging.exists() {
        fs::remove_dir_all(&staging)?;
    }
    fs::create_dir_all(&staging)?;
    download(&staging, name)?;
    let deb = fs::read_dir(&staging)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no file for {name}"))?;
    process::run_quietly(Command::new("dpkg").arg("-x").arg(&deb).arg(&staging))?;
    fs::remove_file(&deb)?;
    fs::rename(&staging, &root)?;
    Ok(root)
}

fn download(into: &Path, name: &str) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["download", name]).current_dir(into);
    if process::run_quietly(&mut command).is_ok() {
        return Ok(());
    }
    // The lists may be older than the mirror.
    update_lists()?;
    process::run_quietly(&mut command)
}

/// The newest package whose name is `prefix`, a version made of digits and `.+-`, then `suffix`.
pub fn newest(prefix: &str, suffix: &str, from_backports: bool) -> Result<String> {
    if !is_debian() {
        bail!("the lab takes its kernels from Debian's packages: this is not a Debian machine");
    }
    let _others = one_at_a_time();
    if from_backports {
        ensure_backports()?;
    }
    let resolve = || -> Result<Option<String>> {
        let names = process::output_text(Command::new("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names
            .lines()
            .filter_map(|name| {
                let version = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
                version_key(version).map(|key| (key, name.to_owned()))
            })
            .max()
            .map(|(_, name)| name))
    };
    if let Some(name) = resolve()? {
        return Ok(name);
    }
    update_lists()?;
    resolve()?.with_context(|| format!("no Debian package is called {prefix}*{suffix}"))
}

/// The numbers of `version` in order; `None` if it holds words other than Debian's release tag.
fn version_key(version: &str) -> Option<Vec<u64>> {
    let version = version.replace("deb", "");
    version
        .split(['.', '+', '-'])
        .map(|number| number.parse().ok())
        .collect()
}

/// Installs `packages` unless `program` is there already.
pub fn ensure_program(program: &str, packages: &[&str], from_backports: bool) -> Result<()> {
    let _others = one_at_a_time();
    if process::exists(program) {
        return Ok(());
    }
    if !is_debian() || !is_root() {
        bail!(
            "`{program}` is missing: install it (on Debian: apt-get install {}{}), or run this as root on Debian",
            if from_backports {
                "-t bookworm-backports "
            } else {
                ""
            },
            packages.join(" ")
        );
    }
    let mut install = apt_get();
    install.args(["install", "-y", "--no-install-recommends"]);
    if from_backports {
        ensure_backports()?;
        install.args(["-t", BACKPORTS]);
    }
    install.args(packages);
    if process::run_quietly(&mut install).is_err() {
        update_lists()?;
        process::run_quietly(&mut install)?;
    }
    ensure!(
        process::exists(program),
        "{packages:?} is installed, but `{program}` does not start"
    );
    Ok(())
}

/// Adds the backports suite, on the mirror that is already configured, where it is missing.
fn ensure_backports() -> Result<()> {
    let targets = process::output_text(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE)",
    ]))?;
    let of = |release: &str| {
        targets
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(_, suite)| *suite == release)
            .map(|(uri, _)| uri.to_owned())
    };
    if of(BACKPORTS).is_some() {
        return Ok(());
    }
    let mirror = of("bookworm").context("apt has no source for Debian bookworm")?;
    ensure!(
        is_root(),
        "add {BACKPORTS} of {mirror} to apt's sources, or run this as root"
    );
    let source = format!(
        "Types: deb\nURIs: {mirror}\nSuites: {BACKPORTS}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write("/etc/apt/sources.list.d/bookworm-backports.sources", source)
        .context("cannot add bookworm-backports to apt's sources")?;
    update_lists()
}

fn update_lists() -> Result<()> {
    ensure!(
        is_root(),
        "apt's package lists are too old or missing: run `apt-get update` as root"
    );
    process::run_quietly(apt_get().arg("update"))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=120"]);
    command
}

fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| text.lines().any(|l| l == "ID=debian"))
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    Command::new("id")
        .arg("-u")
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"0\n")
}

#[cfg(test)]
mod tests {
    use super::version_key;

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(version_key("6.12.117+deb12") > version_key("6.12.95+deb12"));
        assert!(version_key("6.12.90+deb12.1") > version_key("6.12.90+deb12"));
        assert!(version_key("56") > version_key("9"));
        assert_eq!(version_key("6.12.95+deb12-cloud"), None);
        assert_eq!(version_key("6.12.95+deb12-rt"), None);
    }
}
