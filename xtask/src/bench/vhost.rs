//! vhost-user backends side by side: `vring-vhost` beside DPDK's `net_vhost`, and beside qemu-storage-daemon.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Section;
use crate::lab::debian;
use crate::lab::vhost::backend::{self, Running};
use crate::lab::vhost::testpmd::{Testpmd, ensure_testpmd, total};
use crate::lab::vhost::{Lab, wait_for};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// How long each backend is measured at a time.
const TURN: Duration = Duration::from_millis(500);
/// How often each is measured, in turn; the median counts.
const TURNS: usize = 3;

/// How DPDK's driver is told of the layouts of rings.
const LAYOUTS: [(&str, &str); 4] = [
    ("split", ",mrg_rxbuf=0"),
    ("split, mergeable", ",mrg_rxbuf=1"),
    ("packed", ",packed_vq=1,mrg_rxbuf=0"),
    ("packed, in order", ",packed_vq=1,mrg_rxbuf=0,in_order=1"),
];

/// What the driver does, what DPDK's backend does then, and the driver's counter.
const MODES: [(&str, &str, &str, &str); 3] = [
    ("receive", "rxonly", "txonly", "RX-packets"),
    ("transmit", "txonly", "rxonly", "TX-packets"),
    ("forward", "io", "io", "RX-packets"),
];

/// Bytes of the disk.
const DISK: u64 = 256 << 20;

#[derive(Debug, Serialize)]
struct Figures {
    net: Vec<Net>,
    block: Vec<Block>,
}

/// Packets per second.
#[derive(Debug, Serialize)]
struct Net {
    layout: String,
    mode: String,
    ours: f64,
    dpdk: f64,
}

#[derive(Debug, Serialize)]
struct Block {
    medium: String,
    kind: String,
    depth: u16,
    ours: Rate,
    qemu: Rate,
}

/// What a disk did.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    iops: f64,
    /// Processor time of the backend, for each request.
    cpu_ns: f64,
}

/// Measures all.
pub fn measure(progress: &Progress) -> Result<Section> {
    ensure_testpmd()?;
    debian::ensure_program("qemu-storage-daemon", &["qemu-utils"], true)?;
    let lab = Lab::new("bench-vhost")?;
    let mut figures = Figures {
        net: Vec::new(),
        block: blocks(&lab, progress)?,
    };
    for (layout, options) in LAYOUTS {
        for (mode, driver, peer, counter) in MODES {
            progress.step(&format!("vhost-user-net: {layout}, {mode}"));
            let mut rates = (Vec::new(), Vec::new());
            for _ in 0..TURNS {
                let network = if mode == "forward" {
                    "--loopback"
                } else {
                    "--flood"
                };
                let socket = lab.path("ours.sock");
                let args = ["net", network, "--socket", &socket];
                let ours = lab.backend(&args, Some(&socket))?;
                rates.0.push(packets(&socket, options, driver, counter)?);
                backend::stopped(ours)?;
                let socket = lab.path("dpdk.sock");
                let device = format!("net_vhost0,iface={socket},queues=1");
                let mut dpdk = Testpmd::start_at(0, "backend", &device, &[])?;
                dpdk.tell(&format!("set fwd {peer}\nstart"))?;
                rates.1.push(packets(&socket, options, driver, counter)?);
                dpdk.end()?;
            }
            figures.net.push(Net {
                layout: layout.to_owned(),
                mode: mode.to_owned(),
                ours: median(rates.0),
                dpdk: median(rates.1),
            });
        }
    }
    Section::new(&figures, text(&figures)?)
}

/// Packets per second of DPDK's driver at `socket`.
fn packets(socket: &str, options: &str, mode: &str, counter: &str) -> Result<f64> {
    let device = format!("net_virtio_user0,path={socket},queue_size=256{options}");
    let mut testpmd = Testpmd::start("driver", &device, &[])?;
    let first = if mode == "io" { " tx_first 8" } else { "" };
    testpmd.tell(&format!("set fwd {mode}\nstart{first}"))?;
    let start = Instant::now();
    sleep(TURN);
    testpmd.tell("stop")?;
    let took = start.elapsed();
    let output = testpmd.end()?;
    Ok(count(total(&output, counter)?) / took.as_secs_f64())
}

fn blocks(lab: &Lab, progress: &Progress) -> Result<Vec<Block>> {
    let load = load_program()?;
    // In memory.
    let image = tempfile::NamedTempFile::new_in("/dev/shm")?;
    process::run_quietly(
        Command::new("dd")
            .arg("if=/dev/zero")
            .arg(format!("of={}", image.path().display()))
            .args(["bs=1M", &format!("count={}", DISK >> 20)]),
    )?;
    let (path, size) = (image.path().to_string_lossy(), DISK.to_string());
    let file = format!("driver=file,node-name=disk,filename={path}");
    let null = format!("driver=null-co,node-name=disk,size={size},read-zeroes=off");
    let media = [
        ("file in memory", ["--file", &*path], file),
        ("null", ["--null", &size], null),
    ];
    let mut blocks = Vec::new();
    for (medium, ours, blockdev) in &media {
        for kind in ["read", "write"] {
            for depth in [1, 32] {
                progress.step(&format!("vhost-user-blk: {medium}, {kind}, depth {depth}"));
                let mut rates = (Vec::new(), Vec::new());
                for _ in 0..TURNS {
                    let socket = lab.path("disk.sock");
                    let args = [&["blk", "--socket", &socket][..], ours].concat();
                    let running = lab.backend(&args, Some(&socket))?;
                    rates.0.push(rate(&load, &running, &socket, kind, depth)?);
                    backend::stopped(running)?;
                    let socket = lab.path("qemu.sock");
                    let running = storage_daemon(blockdev, &socket)?;
                    rates.1.push(rate(&load, &running, &socket, kind, depth)?);
                    drop(running);
                    fs::remove_file(&socket)?;
                }
                blocks.push(Block {
                    medium: (*medium).to_owned(),
                    kind: kind.to_owned(),
                    depth,
                    ours: Rate::median(&rates.0),
                    qemu: Rate::median(&rates.1),
                });
            }
        }
    }
    Ok(blocks)
}

/// Builds the program that loads a disk.
fn load_program() -> Result<PathBuf> {
    let example = "vhost-user-load";
    let build = ["build", "--release", "-p", "vring-virtio-devices"];
    process::run_quietly(workspace::cargo()?.args(build).args(["--example", example]))?;
    Ok(workspace::target()?.join("release/examples").join(example))
}

/// qemu-storage-daemon with a thread for its export, as its manual advises.
fn storage_daemon(blockdev: &str, socket: &str) -> Result<Running> {
    let export = format!(
        "vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,addr.type=unix,addr.path={socket}"
    );
    let child = Command::new("qemu-storage-daemon")
        .args(["--object", "iothread,id=io", "--blockdev", blockdev])
        .args(["--export", &export])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu-storage-daemon")?;
    let running = Running(child);
    wait_for("qemu-storage-daemon's socket", || Ok(fs::exists(socket)?))?;
    Ok(running)
}

/// Loads the disk at `socket`, and looks at what that cost the backend.
fn rate(load: &PathBuf, backend: &Running, socket: &str, kind: &str, depth: u16) -> Result<Rate> {
    let before = cpu_ns(backend.0.id())?;
    let output = process::output_text(Command::new(load).args([
        socket,
        kind,
        &depth.to_string(),
        &TURN.as_millis().to_string(),
    ]))?;
    let cpu = cpu_ns(backend.0.id())? - before;
    let words: Vec<u64> = output
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [requests, nanoseconds] = words[..] else {
        anyhow::bail!("the load reports {output}");
    };
    Ok(Rate {
        iops: count(requests) * 1e9 / count(nanoseconds),
        cpu_ns: count(cpu) / count(requests),
    })
}

/// Nanoseconds that a process has spent on processors: the first of the numbers in each thread's schedstat.
fn cpu_ns(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .parse::<u64>()?;
    }
    Ok(sum)
}

impl Rate {
    /// The median of each figure.
    fn median(rates: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(rates.iter().map(figure).collect());
        Self {
            iops: of(|rate| rate.iops),
            cpu_ns: of(|rate| rate.cpu_ns),
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures of which nobody reads the sixteenth digit"
)]
fn count(number: u64) -> f64 {
    number as f64
}

fn text(figures: &Figures) -> Result<String> {
    let mut text = String::from(
        "## vhost-user\n\n\
         Frames of 64 bytes (60 without their checksum) between DPDK's virtio-user driver and a backend, in millions a second: \
         `vring-vhost net` beside DPDK's own `net_vhost`. To receive and to transmit, the backend makes or takes frames without \
         end; to forward, it hands back what it is given. Each figure is the median of three turns.\n\n\
         | rings | driver | vring-vhost | net_vhost | ratio |\n|---|---|---:|---:|---:|\n",
    );
    for Net {
        layout,
        mode,
        ours,
        dpdk,
    } in &figures.net
    {
        let (ours_m, dpdk_m, ratio) = (ours / 1e6, dpdk / 1e6, ours / dpdk);
        writeln!(
            text,
            "| {layout} | {mode} | {ours_m:.2} | {dpdk_m:.2} | {ratio:.2} |"
        )?;
    }
    text.push_str(
        "\nWhat costs the rest: each frame is a chain of its own, popped and pushed in some 220 instructions of a packed ring \
         (`cargo bench -p vring --bench instructions`), where DPDK takes the four descriptors of a cache line at once; and a frame \
         that is forwarded lies in a batch between the two queues, which is written and read beside the guest's memory.\n",
    );
    text.push_str(
        "\n4 KiB requests at random places, from a driver that polls (`crates/virtio-devices/examples/vhost-user-load.rs`): \
         `vring-vhost blk` beside qemu-storage-daemon's export in an iothread. Processor time is the backend's.\n\n\
         | medium | requests | depth | vring-vhost, requests/s | qemu-storage-daemon | ratio | vring-vhost, CPU/request | \
         qemu-storage-daemon | ratio |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for Block {
        medium,
        kind,
        depth,
        ours,
        qemu,
    } in &figures.block
    {
        writeln!(
            text,
            "| {medium} | {kind} | {depth} | {:.0} | {:.0} | {:.2} | {:.2} µs | {:.2} µs | {:.2} |",
            ours.iops,
            qemu.iops,
            ours.iops / qemu.iops,
            ours.cpu_ns / 1e3,
            qemu.cpu_ns / 1e3,
            ours.cpu_ns / qemu.cpu_ns
        )?;
    }
    Ok(text)
}
