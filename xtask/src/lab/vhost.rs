//! Real counterparts of vhost-user: `vring-vhost` behind DPDK's virtio driver, and under a guest of QEMU.

use std::fs;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::host::ensure_qemu;
use super::kernel::{Kernel, Series};
use super::{debian, initramfs};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// How long any single thing may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the guest may take.
const GUEST: Duration = Duration::from_secs(100);
/// How long traffic flows in each layout of rings.
const TRAFFIC: Duration = Duration::from_millis(700);
/// Files that each of the guest's four writers writes.
const FILES: u32 = 40;
/// How often the guest's disk is taken away.
const KILLS: u32 = 3;

const GUEST_MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "crc32c_generic",
];
const INIT: &str = include_str!("../../lab/vhost-init.sh");
const ROOT: &str = include_str!("../../lab/vhost-root.sh");

/// The layouts of rings that DPDK's driver can be made to use.
const LAYOUTS: [(&str, &str); 5] = [
    ("split", ""),
    ("split, in order, not mergeable", ",in_order=1,mrg_rxbuf=0"),
    ("packed", ",packed_vq=1"),
    ("packed, not mergeable", ",packed_vq=1,mrg_rxbuf=0"),
    ("packed, in order", ",packed_vq=1,in_order=1"),
];

/// Runs everything and returns what was checked, a line each.
pub fn run(progress: &Progress) -> Result<Vec<String>> {
    let lab = Lab::new(progress)?;
    let mut checks = Vec::new();
    debian::ensure_program("dpdk-testpmd", &["dpdk-dev"], false)?;
    for (name, options) in LAYOUTS {
        for pairs in [1, 2] {
            progress.step(&format!("testpmd: {name}, {pairs} queue pair(s)"));
            let frames = lab.forward(options, pairs)?;
            checks.push(format!(
                "testpmd, {name}, {pairs} pair(s): {frames} frames, all counted"
            ));
        }
    }
    progress.step("testpmd: one sends, one receives");
    checks.push(lab.transmit_and_receive()?);
    progress.step("testpmd: the backend is killed");
    checks.push(lab.killed_under_traffic()?);
    ensure_qemu()?;
    progress.step("a guest of QEMU with its root on a vhost-user disk");
    checks.push(lab.guest()?);
    Ok(checks)
}

/// Where things are.
struct Lab {
    program: PathBuf,
    folder: PathBuf,
}

/// A process that ends with this value.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    fn new(progress: &Progress) -> Result<Self> {
        progress.step("building vring-vhost");
        let build = [
            "build",
            "--release",
            "-p",
            "vring-virtio-devices",
            "--features",
            "bin",
        ];
        process::run_quietly(workspace::cargo()?.args(build))?;
        let folder = workspace::lab()?.join("runs/vhost");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self {
            program: workspace::target()?.join("release/vring-vhost"),
            folder,
        })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Starts the backend, and waits for `socket` if it is to listen there.
    fn backend(&self, args: &[&str], socket: Option<&str>) -> Result<Running> {
        let child = Command::new(&self.program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start vring-vhost")?;
        let running = Running(child);
        if let Some(socket) = socket {
            wait_for("the backend's socket", || Ok(Path::new(socket).exists()))?;
        }
        Ok(running)
    }

    /// Has testpmd forward what it receives, over a cable that ends where it begins, and returns the number of frames.
    fn forward(&self, options: &str, pairs: u16) -> Result<u64> {
        let (socket, pairs) = (self.path("net.sock"), pairs.to_string());
        let args = [
            "net",
            "--loopback",
            "--queue-pairs",
            &pairs,
            "--socket",
            &socket,
        ];
        let backend = self.backend(&args, Some(&socket))?;
        let device =
            format!("net_virtio_user0,path={socket},queues={pairs},queue_size=256{options}");
        let queues = [format!("--rxq={pairs}"), format!("--txq={pairs}")];
        let mut testpmd = Testpmd::start("forward", &device, &queues)?;
        testpmd.tell("set fwd mac\nstart tx_first 8")?;
        sleep(TRAFFIC);
        // Stopped and started again, it goes on.
        testpmd.tell("stop\nport stop all\nport start all\nstart tx_first 8")?;
        sleep(TRAFFIC);
        let output = testpmd.end()?;
        let [card] = stopped(backend)?[..] else {
            bail!("the backend reports another number of cards");
        };
        let (received, sent) = (total(&output, "RX-packets")?, total(&output, "TX-packets")?);
        ensure!(received > 0, "nothing came back:\n{output}");
        ensure!(
            card.transmitted + card.transmit_dropped == sent && card.transmit_dropped == 0,
            "testpmd sent {sent} frames, the backend counts {card:?}"
        );
        // Some wait in the driver's ring when it stops.
        ensure!(
            card.received >= received && card.received <= sent,
            "testpmd received {received} frames, the backend counts {card:?}"
        );
        Ok(sent)
    }

    /// One testpmd sends as fast as it can, another receives.
    fn transmit_and_receive(&self) -> Result<String> {
        let (one, two) = (self.path("one.sock"), self.path("two.sock"));
        let args = ["net", "--forward", "--socket", &one, "--socket", &two];
        let backend = self.backend(&args, Some(&two))?;
        let device = |socket: &str| format!("net_virtio_user0,path={socket},queue_size=256");
        let mut receiver = Testpmd::start("rxonly", &device(&two), &[])?;
        receiver.tell("set fwd rxonly\nstart")?;
        let mut sender = Testpmd::start("txonly", &device(&one), &[])?;
        sender.tell("set fwd txonly\nstart")?;
        sleep(2 * TRAFFIC);
        let sent = total(&sender.end()?, "TX-packets")?;
        sleep(TRAFFIC);
        let received = total(&receiver.end()?, "RX-packets")?;
        let [first, second] = stopped(backend)?[..] else {
            bail!("the backend reports another number of cards");
        };
        ensure!(
            first.transmitted + first.transmit_dropped == sent,
            "testpmd sent {sent} frames, the backend counts {first:?}"
        );
        ensure!(
            received > 0 && received == second.received && first.transmitted >= received,
            "testpmd received {received} frames, the backend counts {first:?} and {second:?}"
        );
        Ok(format!(
            "testpmd, txonly to rxonly: {sent} frames sent, {received} received, all counted"
        ))
    }

    /// The backend is killed under traffic; another takes its place.
    fn killed_under_traffic(&self) -> Result<String> {
        let socket = self.path("server.sock");
        let args = ["net", "--loopback", "--connect", "--socket", &socket];
        let backend = self.backend(&args, None)?;
        let device = format!("net_virtio_user0,path={socket},queue_size=256,server=1");
        let mut testpmd = Testpmd::start("server", &device, &[])?;
        testpmd.tell("set fwd mac\nstart tx_first 8")?;
        sleep(TRAFFIC);
        drop(backend);
        let backend = self.backend(&args, None)?;
        wait_for("testpmd to take the new backend", || {
            Ok(testpmd.text().contains("reconnection succeeds"))
        })
        .with_context(|| testpmd.text())?;
        testpmd.tell("stop\nstart tx_first 8")?;
        sleep(TRAFFIC);
        let output = testpmd.end()?;
        let [card] = stopped(backend)?[..] else {
            bail!("the backend reports another number of cards");
        };
        ensure!(
            card.received > 10_000,
            "no traffic after the backend was killed: {card:?}\n{output}"
        );
        Ok(format!(
            "testpmd, backend killed: {} frames after that",
            card.received
        ))
    }

    /// Boots a guest with its root on a vhost-user disk, kills the disk's backend under its writes, and has it check its files.
    fn guest(&self) -> Result<String> {
        let lab = workspace::lab()?;
        let kernel = Kernel::obtain(&lab, Series::V6_12)?;
        let initrd = self.path("initrd");
        fs::write(
            &initrd,
            initramfs::build(&lab, &kernel, &GUEST_MODULES, INIT, &[])?,
        )?;
        let image = self.root_image(&lab)?;
        let (disk, net) = (self.path("disk.sock"), self.path("card.sock"));
        let disk_args = ["blk", "--file", &image, "--socket", &disk];
        let mut backend = self.backend(&disk_args, Some(&disk))?;
        let net_args = ["net", "--loopback", "--socket", &net];
        let _net = self.backend(&net_args, Some(&net))?;
        let serial = self.path("serial.log");
        let mut qemu = Command::new("setpriv");
        qemu.args([
            "--pdeathsig",
            "KILL",
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
        ])
        .args([
            "-M",
            "q35,memory-backend=memory",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "512M",
        ])
        .args([
            "-object",
            "memory-backend-memfd,id=memory,size=512M,share=on",
        ])
        .args([
            "-display",
            "none",
            "-nodefaults",
            "-no-reboot",
            "-monitor",
            "none",
        ])
        .args(["-serial", &format!("file:{serial}"), "-initrd", &initrd])
        .arg("-kernel")
        .arg(&kernel.image)
        .args([
            "-append",
            &format!("console=ttyS0 panic=-1 quiet files={FILES}"),
        ])
        .args([
            "-chardev",
            &format!("socket,id=disk,path={disk},reconnect=1"),
        ])
        .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=1"])
        .args(["-chardev", &format!("socket,id=card,path={net}")])
        .args(["-netdev", "vhost-user,id=net,chardev=card"])
        .args(["-device", "virtio-net-pci,netdev=net"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(self.path("qemu.log"))?);
        let child = qemu.spawn().context("cannot start QEMU")?;
        let (mut kills, mut seen) = (0, 0);
        let ended = process::wait_bounded(child, GUEST, || {
            let written = read(&serial).matches("guest: wrote").count();
            // Each time after some more files.
            if kills < KILLS && written > seen {
                backend = {
                    backend.0.kill()?;
                    backend.0.wait()?;
                    self.backend(&disk_args, None)?
                };
                kills += 1;
                seen = written + 5;
            }
            Ok(())
        })?;
        let log = read(&serial);
        ensure!(
            ended.is_some(),
            "the guest did not end; see {}\n{log}",
            self.folder.display()
        );
        let line = |what: &str| {
            let found = log.lines().find_map(|line| line.trim().strip_prefix(what));
            found.with_context(|| format!("the guest does not say `{what}`:\n{log}"))
        };
        ensure!(
            line("guest: root: ")? == "1",
            "the root is not on the disk:\n{log}"
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
        let wanted = format!("{files}, lost: 0");
        ensure!(
            line("guest: acknowledged: ")? == wanted,
            "writes were lost:\n{log}"
        );
        ensure!(kills == KILLS, "the backend was killed {kills} times only");
        stopped(backend)?;
        process::run_quietly(Command::new("e2fsck").args(["-fn", &image]))?;
        Ok(format!(
            "guest of QEMU: {files} files, backend killed {kills} times, nothing lost"
        ))
    }

    /// An ext4 image with busybox and the guest's script.
    fn root_image(&self, lab: &Path) -> Result<String> {
        debian::ensure_program("mkfs.ext4", &["e2fsprogs"], false)?;
        let root = self.folder.join("root");
        for folder in ["bin", "proc", "sys", "dev", "tmp"] {
            fs::create_dir_all(root.join(folder))?;
        }
        let busybox = debian::unpacked(lab, "busybox-static")?.join("bin/busybox");
        fs::copy(busybox, root.join("bin/busybox"))?;
        fs::write(root.join("init"), ROOT)?;
        let image = self.path("disk.img");
        process::run_quietly(
            Command::new("mkfs.ext4")
                .args(["-q", "-d"])
                .arg(&root)
                .args([&image, "64M"]),
        )?;
        Ok(image)
    }
}

/// What the backend says of a card in the end.
#[derive(Clone, Copy, Debug)]
struct Card {
    received: u64,
    transmitted: u64,
    transmit_dropped: u64,
}

/// Ends a backend as a service manager does, and returns what it says of its cards.
fn stopped(mut backend: Running) -> Result<Vec<Card>> {
    let pid = backend.0.id().to_string();
    process::run_quietly(Command::new("kill").args(["-TERM", &pid]))?;
    wait_for("the backend to end", || Ok(backend.0.try_wait()?.is_some()))?;
    let status = backend.0.wait()?;
    ensure!(status.success(), "the backend ended with {status}");
    let mut output = String::new();
    if let Some(mut stdout) = backend.0.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    output
        .lines()
        .map(|line| {
            let field = |name: &str| number_after(line, &format!(" {name}: "));
            Ok(Card {
                received: field("received")?,
                transmitted: field("transmitted")?,
                transmit_dropped: field("transmit_dropped")?,
            })
        })
        .collect()
}

/// DPDK's program that drives network cards.
struct Testpmd {
    process: Running,
    input: ChildStdin,
    output: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Testpmd {
    fn start(name: &str, device: &str, more: &[String]) -> Result<Self> {
        // What it says of lost connections goes to its standard error.
        let mut child = Command::new("sh")
            .args(["-c", "exec dpdk-testpmd \"$@\" 2>&1", "testpmd"])
            .args([
                "-l",
                "0,1",
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
                "--no-telemetry",
            ])
            .args(["--file-prefix", &format!("vring-{name}"), "--vdev", device])
            .args(["--", "-i", "--total-num-mbufs=4096", "--no-mlockall"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpdk-testpmd")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let process = Running(child);
        let (input, mut stdout) = pipes.context("dpdk-testpmd has no pipes")?;
        let output = Arc::<Mutex<String>>::default();
        let lines = Arc::clone(&output);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default());
                lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        let testpmd = Self {
            process,
            input,
            output,
            reader,
        };
        wait_for("testpmd's prompt", || {
            Ok(testpmd.text().contains("testpmd> "))
        })
        .with_context(|| testpmd.text())?;
        Ok(testpmd)
    }

    fn text(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn tell(&mut self, commands: &str) -> Result<()> {
        Ok(writeln!(self.input, "{commands}")?)
    }

    /// Stops forwarding and ends it; returns what it printed.
    fn end(mut self) -> Result<String> {
        self.tell("stop\nquit")?;
        wait_for("testpmd to end", || {
            Ok(self.process.0.try_wait()?.is_some())
        })?;
        ensure!(self.reader.join().is_ok(), "testpmd's output is lost");
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(output.clone())
    }
}

/// The sum of `counter` over the reports on all ports that testpmd printed, one each time it stopped.
fn total(output: &str, counter: &str) -> Result<u64> {
    let mut sum = 0;
    let mut reports = output
        .split("+++ Accumulated forward statistics")
        .skip(1)
        .peekable();
    ensure!(
        reports.peek().is_some(),
        "testpmd reports nothing:\n{output}"
    );
    for report in reports {
        sum += number_after(report, &format!("{counter}: "))?;
    }
    Ok(sum)
}

fn number_after(text: &str, label: &str) -> Result<u64> {
    let rest = text
        .split_once(label)
        .with_context(|| format!("no `{label}` in {text}"))?
        .1;
    let digits = rest
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    Ok(digits.unwrap_or_default().parse()?)
}

fn read(path: &str) -> String {
    fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into(),
    )
}

fn wait_for(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
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
