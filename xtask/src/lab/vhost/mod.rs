//! Real counterparts of vhost-user: `vring-vhost` behind DPDK's virtio driver, and under a guest of QEMU.

pub mod backend;
mod guest;
pub mod testpmd;
mod traffic;

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::progress::Progress;
use crate::workspace;
use backend::Running;

/// How long any single thing may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs everything and returns what was checked, a line each.
pub fn run(progress: &Progress) -> Result<Vec<String>> {
    progress.step("building vring-vhost");
    let lab = Lab::new("vhost")?;
    let mut checks = traffic::run(&lab, progress)?;
    progress.step("a guest of QEMU with its root on a vhost-user disk");
    checks.extend(guest::run(&lab)?);
    Ok(checks)
}

/// Where things are.
pub struct Lab {
    program: PathBuf,
    folder: PathBuf,
}

impl Lab {
    /// Builds the backend, and empties the folder `name` for sockets and logs.
    pub fn new(name: &str) -> Result<Self> {
        let folder = workspace::lab()?.join("runs").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self {
            program: backend::build()?,
            folder,
        })
    }

    /// Of a file in the folder.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Starts the backend, and waits for `socket` if it is to listen there.
    pub fn backend(&self, args: &[&str], socket: Option<&str>) -> Result<Running> {
        backend::start(&self.program, args, socket)
    }
}

/// Waits until `done`, for as long as anything may take.
pub fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !done()? {
        ensure!(
            start.elapsed() < PATIENCE,
            "waited {} s for {what}",
            PATIENCE.as_secs()
        );
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
