//! A guest of QEMU with its root on a vhost-user disk.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Lab;
use super::backend::stopped;
use crate::lab::host::ensure_qemu;
use crate::lab::kernel::{Kernel, Series};
use crate::lab::{initramfs, root_disk};
use crate::process;
use crate::workspace;

/// How long the guest may take.
const BOUND: Duration = Duration::from_secs(150);
/// Files that each of the guest's four writers writes.
const FILES: u32 = 40;
/// How often the guest's disk is taken away.
const KILLS: u32 = 3;

const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "crc32c_generic",
];
const ROOT: &str = concat!(
    include_str!("../../../lab/fio.sh"),
    include_str!("../../../lab/vhost-root.sh")
);

/// Boots a guest with its root on a vhost-user disk, where fio verifies what it wrote. Then kills the disk's backend under the guest's
/// writes, and has it check its files.
pub fn run(lab: &Lab) -> Result<Vec<String>> {
    ensure_qemu()?;
    let cache = workspace::lab()?;
    let kernel = Kernel::obtain(&cache, Series::V6_12)?;
    let initrd = lab.path("initrd");
    fs::write(
        &initrd,
        initramfs::build(&cache, &kernel, &MODULES, root_disk::INIT, &[])?,
    )?;
    let image = root_image(lab, &cache)?;
    let (disk, card) = (lab.path("disk.sock"), lab.path("card.sock"));
    let disk_args = ["blk", "--file", &image, "--socket", &disk];
    let mut backend = lab.backend(&disk_args, Some(&disk))?;
    let card_args = ["net", "--loopback", "--socket", &card];
    let _card = lab.backend(&card_args, Some(&card))?;
    let serial = lab.path("serial.log");
    let qemu = qemu(lab, &kernel, &initrd, &serial, &disk, &card)?.spawn();
    let (mut kills, mut seen) = (0, 0);
    let ended = process::wait_bounded(qemu.context("cannot start QEMU")?, BOUND, || {
        let written = read(&serial).matches("guest: wrote").count();
        // Each time after some more files.
        if kills < KILLS && written > seen {
            backend.0.kill()?;
            backend.0.wait()?;
            backend = lab.backend(&disk_args, None)?;
            kills += 1;
            seen = written + 5;
        }
        Ok(())
    })?;
    let log = read(&serial);
    ensure!(
        ended.is_some(),
        "the guest did not end; see {}\n{log}",
        lab.folder.display()
    );
    let line = |what: &str| {
        let found = log.lines().find_map(|line| line.trim().strip_prefix(what));
        found.with_context(|| format!("the guest does not say `{what}`:\n{log}"))
    };
    ensure!(
        line("guest: root: ")? == "1",
        "the root is not on the disk:\n{log}"
    );
    ensure!(
        line("guest: fio: ")? == "ok",
        "fio read something else than it wrote:\n{log}"
    );
    let frames: Vec<u64> = line("guest: frames: ")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    ensure!(
        matches!(frames[..], [sent, received] if sent > 0 && received > 0),
        "the card does not work: {frames:?}"
    );
    let files = 4 * FILES;
    ensure!(
        line("guest: acknowledged: ")? == format!("{files}, lost: 0"),
        "writes were lost:\n{log}"
    );
    ensure!(kills == KILLS, "the backend was killed {kills} times only");
    stopped(backend)?;
    process::run_quietly(Command::new("e2fsck").args(["-fn", &image]))?;
    Ok(vec![
        "guest of QEMU: its root is the disk, the card works".to_owned(),
        "guest of QEMU: fio verified what it wrote".to_owned(),
        format!("guest of QEMU: {files} files, backend killed {kills} times, nothing lost"),
    ])
}

fn qemu(
    lab: &Lab,
    kernel: &Kernel,
    initrd: &str,
    serial: &str,
    disk: &str,
    card: &str,
) -> Result<Command> {
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"])
        .args(["-M", "q35,memory-backend=memory", "-m", "512M", "-object"])
        .arg("memory-backend-memfd,id=memory,size=512M,share=on")
        .args(["-display", "none", "-monitor", "none"])
        .args(["-nodefaults", "-no-reboot"])
        .args(["-serial", &format!("file:{serial}"), "-initrd", initrd])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-append")
        .arg(format!(
            "console=ttyS0 panic=-1 quiet lab.root=/dev/vda files={FILES}"
        ))
        .arg("-chardev")
        .arg(format!("socket,id=disk,path={disk},reconnect=1"))
        .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"])
        .arg("-chardev")
        .arg(format!("socket,id=card,path={card}"))
        .args(["-netdev", "vhost-user,id=net,chardev=card"])
        .args(["-device", "virtio-net-pci,netdev=net"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(lab.path("qemu.log"))?);
    Ok(qemu)
}

/// An ext4 image with busybox, fio and the guest's script.
fn root_image(lab: &Lab, cache: &Path) -> Result<String> {
    let root = lab.folder.join("root");
    root_disk::fill(&root, cache, &[("fio", "fio")], ROOT)?;
    let image = lab.path("disk.img");
    root_disk::make(Path::new(&image), "192M", &root)?;
    Ok(image)
}

fn read(path: &str) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into(),
    )
}
