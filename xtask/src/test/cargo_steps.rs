//! The steps that need cargo alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::summary::Counts;
use super::{Outcome, Session, Step};
use crate::lab::debian;
use crate::lab::host::ensure_qemu;
use crate::process;
use crate::workspace::{self, Package, Target};

/// In this order: the cheap first, and those that share build products side by side.
pub const STEPS: &[Step] = &[
    ("tools", tools),
    ("format", format),
    ("clippy", clippy),
    ("tests, debug", tests_debug),
    ("tests, release", tests_release),
    ("loom", loom),
    ("instruction counts", instruction_counts),
    ("address sanitizer", address_sanitizer),
    ("fuzz targets", fuzz_targets),
    ("each crate alone", alone),
    ("packages", packages),
    ("documentation", documentation),
    ("book", book),
    ("licences and duplicates", deny),
];

/// The features of the programs that come with the libraries, and those that only tests switch on.
const PROGRAMS: &str = "vring-virtio-devices/bin,sriov-vfio/bin,sriov-vfio/iommu,vpio-model/bin";
/// All tests, in debug. A step that takes these words takes what another built.
pub const TESTS: [&str; 5] = ["test", "--locked", "--workspace", "--features", PROGRAMS];

/// For what nobody debugs.
const ONLY_BUILT: [(&str, &str); 2] =
    [("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_INCREMENTAL", "0")];

const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";

fn cargo(args: &[&str]) -> Result<Command> {
    let mut cargo = workspace::cargo()?;
    cargo.args(args);
    Ok(cargo)
}

/// What the tests compare with is there, so that none of them has to be left out.
fn tools(session: &Session) -> Result<Outcome> {
    session.progress.note("installing what is missing");
    let installed = ensure_qemu().and_then(|()| {
        let packages = ["qemu-utils"];
        debian::ensure_program("qemu-storage-daemon", &packages, true)
    });
    match installed {
        Ok(()) => Ok(Outcome::passed()),
        Err(error) if session.on_ci => Err(error),
        Err(error) => Ok(Outcome::skipped(&format!("{error:#}"))),
    }
}

fn format(session: &Session) -> Result<Outcome> {
    session.check("format", &mut cargo(&["fmt", "--all", "--check"])?)
}

fn clippy(session: &Session) -> Result<Outcome> {
    let args = [
        "clippy",
        "--locked",
        "--workspace",
        "--features",
        PROGRAMS,
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    session.check("clippy", &mut cargo(&args)?)
}

fn tests_debug(session: &Session) -> Result<Outcome> {
    let mut command = cargo(&TESTS)?;
    command.args(["--no-fail-fast", "--", "--show-output"]);
    session.tests("tests-debug", &mut command)
}

fn tests_release(session: &Session) -> Result<Outcome> {
    let mut command = cargo(&TESTS)?;
    command.args(["--release", "--no-fail-fast", "--", "--show-output"]);
    session.tests("tests-release", &mut command)
}

/// The crates' models of what is lock-free: the tests called `loom…`, with `--cfg loom`.
fn loom(session: &Session) -> Result<Outcome> {
    let is_model = |target: &Target| target.name.starts_with("loom");
    let mut command = cargo(&["test", "--locked", "--release", "--test", "loom*"])?;
    for package in packages_where(|package| package.targets.iter().any(is_model))? {
        command.args(["-p", &package]);
    }
    session.tests("loom", command.env("RUSTFLAGS", "--cfg loom"))
}

/// The hot paths of rings and models take as many instructions as is recorded, which valgrind counts.
fn instruction_counts(session: &Session) -> Result<Outcome> {
    match crate::lab::debian::ensure_program("valgrind", &["valgrind"], false) {
        Ok(()) => {}
        Err(error) if session.on_ci => return Err(error),
        Err(error) => return Ok(Outcome::skipped(&format!("{error:#}"))),
    }
    let args = ["bench", "--locked", "-p", "vring", "-p", "vpio-model"];
    let mut bench = cargo(&args)?;
    bench.args(["--bench", "instructions", "--", "check"]);
    session.check("instruction-counts", &mut bench)
}

/// The crates with unsafe code, under AddressSanitizer on the stable toolchain.
fn address_sanitizer(session: &Session) -> Result<Outcome> {
    let mut command = cargo(&[
        "test",
        "--locked",
        "--tests",
        "--no-fail-fast",
        "--target",
        HOST_TARGET,
    ])?;
    for package in packages_where(may_be_unsafe)? {
        command.args(["-p", &package]);
    }
    command.args(["--", "--show-output"]);
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address");
    session.tests("address-sanitizer", &mut command)
}

/// The targets build against libFuzzer; the tests of package `fuzz` already ran their functions.
fn fuzz_targets(session: &Session) -> Result<Outcome> {
    session.check(
        "fuzz",
        &mut cargo(&[
            "check",
            "--locked",
            "-p",
            "fuzz",
            "--bins",
            "--features",
            "libfuzzer",
        ])?,
    )
}

/// Each crate with default features and with none, without what other crates switch on.
fn alone(session: &Session) -> Result<Outcome> {
    let mut counts = Counts::default();
    for package in packages_where(Package::is_published)? {
        for features in [&["--all-features"][..], &[], &["--no-default-features"]] {
            let mut command = cargo(&["check", "--locked", "-p", &package])?;
            let outcome = session.check(&format!("alone-{package}"), command.args(features))?;
            counts = counts.and(outcome.counts);
        }
    }
    Ok(Outcome {
        counts,
        note: String::new(),
    })
}

/// What would be published, built from the packages' own files.
fn packages(session: &Session) -> Result<Outcome> {
    // A folder of its own each time: cargo takes the packages for crates of a registry, which never change, and would use what it
    // built of an older state of them.
    let folder = tempfile::tempdir_in(workspace::target()?)?;
    let mut command = cargo(&["package", "--locked", "--allow-dirty", "--target-dir"])?;
    command.arg(folder.path()).envs(ONLY_BUILT);
    let packages = packages_where(Package::is_published)?;
    for package in &packages {
        command.args(["-p", package]);
    }
    session.check("packages", &mut command)?;
    let passed = u64::try_from(packages.len())?;
    Ok(Outcome {
        counts: Counts {
            passed,
            ..Counts::default()
        },
        note: String::new(),
    })
}

fn documentation(session: &Session) -> Result<Outcome> {
    let mut command = cargo(&["doc", "--locked", "--workspace", "--no-deps"])?;
    session.check("documentation", command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn book(session: &Session) -> Result<Outcome> {
    let out = workspace::target()?.join("book");
    let mut command = tool(session, "mdbook", &["--no-default-features"])?;
    command.args(["build", "docs", "--dest-dir"]).arg(out);
    session.check("book", &mut command)
}

/// Licences, sources and duplicates, as `deny.toml` says. Advisories need the network's database
/// and are left to whoever has it.
fn deny(session: &Session) -> Result<Outcome> {
    let mut command = tool(session, "cargo-deny", &[])?;
    command.args(["check", "bans", "licenses", "sources"]);
    session.check("deny", &mut command)
}

/// A program from crates.io, to run at the workspace's root; installed below `target` where it is missing.
fn tool(session: &Session, name: &str, features: &[&str]) -> Result<Command> {
    let tools = workspace::target()?.join("tools");
    let installed = tools.join("bin").join(name);
    let program = if process::exists(name) {
        name.into()
    } else {
        if !installed.exists() {
            // Unoptimized: building it is what takes time.
            let mut install = cargo(&["install", "--locked", "--quiet", "--debug", name])?;
            install.args(features).arg("--root").arg(&tools);
            install.envs(ONLY_BUILT);
            session.check(&format!("install-{name}"), &mut install)?;
        }
        installed
    };
    let mut command = Command::new(program);
    command.current_dir(workspace::root()?);
    Ok(command)
}

/// The names of this workspace's packages for which `wanted` holds.
fn packages_where(wanted: impl Fn(&Package) -> bool) -> Result<Vec<String>> {
    let packages = workspace::packages()?;
    Ok(packages
        .into_iter()
        .filter(wanted)
        .map(|package| package.name)
        .collect())
}

/// Whether the crate is for others to use and does not forbid unsafe code.
fn may_be_unsafe(package: &Package) -> bool {
    let forbids = |root: &Path| {
        fs::read_to_string(root).is_ok_and(|text| text.contains("#![forbid(unsafe_code)]"))
    };
    let mut targets = package.targets.iter();
    package.is_published()
        && targets
            .any(|target| target.kind.iter().any(|k| k == "lib") && !forbids(&target.src_path))
}
