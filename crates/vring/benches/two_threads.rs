//! Driver and device on two cores beside the C rings of the kernel's `tools/virtio/ringtest`, which measure the same: a driver that adds and
//! takes one buffer at a time, a device that uses one at a time, neither of them ever asleep.
//!
//! Each is a process of its own, timed from its start to its end. `RINGTEST` names the folder of the C programs; without them nothing runs.
//! Prints the rows of a table in Markdown: nanoseconds a buffer.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    reason = "benchmark"
)]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_setaffinity};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vring::{Buffer, DriverQueue, Features, Queue, QueueConfig};

const BUFFERS: u64 = 10_000_000;
const SIZE: u16 = 256;
/// Not more than this many buffers are in flight.
const OUTSTANDING: u64 = 64;
const DRIVER_CPU: usize = 0;
const DEVICE_CPU: usize = 1;

/// Ours, and the C program that is its peer.
const SIDES: [(&str, Features, &str); 4] = [
    ("split", Features::empty(), "virtio_ring_0_9"),
    ("packed", Features::RING_PACKED, "ring"),
    ("split, in order", Features::IN_ORDER, "virtio_ring_inorder"),
    (
        "packed, in order",
        Features::RING_PACKED.union(Features::IN_ORDER),
        "virtio_ring_inorder",
    ),
];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, run, side, buffers] = args.as_slice()
        && run == "run"
    {
        let (_, features, _) = SIDES.into_iter().find(|(name, ..)| name == side).unwrap();
        return exchange(features, buffers.parse().unwrap());
    }
    let Some(ringtest) = std::env::var_os("RINGTEST") else {
        eprintln!("two_threads: SKIPPED: `cargo xtask bench ringtest` runs it beside its peers");
        return;
    };
    for (name, _, peer) in SIDES {
        let ours = nanoseconds(Command::new(std::env::current_exe().unwrap()).args([
            "run",
            name,
            &BUFFERS.to_string(),
        ]));
        let mut command = Command::new(Path::new(&ringtest).join(peer));
        command.args(["--ring-size", &SIZE.to_string()]);
        command.args(["--run-cycles", &BUFFERS.to_string()]);
        command.args(["--outstanding", &OUTSTANDING.to_string()]);
        command.args(["--guest-affinity", &DRIVER_CPU.to_string()]);
        let theirs = nanoseconds(command.args(["--host-affinity", &DEVICE_CPU.to_string()]));
        println!("| {name} | {ours:.1} | {peer} | {theirs:.1} |");
    }
}

/// The best of three runs, for each buffer.
fn nanoseconds(command: &mut Command) -> f64 {
    let runs = (0..3).map(|_| {
        let start = Instant::now();
        assert!(command.status().unwrap().success());
        start.elapsed().as_nanos() as f64 / BUFFERS as f64
    });
    runs.fold(f64::INFINITY, f64::min)
}

fn run_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    // On fewer cores it is slow, not wrong.
    let _ = sched_setaffinity(None, &set);
}

/// Passes the buffers from a driver's thread to a device's and back.
fn exchange(features: Features, buffers: u64) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
    let config = QueueConfig {
        size: SIZE.into(),
        desc: GuestAddress(0x1000),
        avail: GuestAddress(0x3000),
        used: GuestAddress(0x5000),
        features: features | Features::VERSION_1,
    };
    let (memory, config) = (&memory, &config);
    let mut driver = DriverQueue::new(memory, config).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            run_on(DEVICE_CPU);
            let mut device = Queue::new(memory, config, None).unwrap();
            let mut used = 0;
            while used < buffers {
                while let Some(chain) = device.pop(&memory).unwrap() {
                    device.push(chain, 0).unwrap();
                    used += 1;
                }
            }
        });
        run_on(DRIVER_CPU);
        let buffer = [Buffer {
            addr: GuestAddress(0x8000),
            len: 64,
            writable: false,
        }];
        let (mut added, mut taken) = (0, 0);
        while taken < buffers {
            if added < buffers && added - taken < OUTSTANDING && driver.add(&buffer, added).is_ok()
            {
                added += 1;
            }
            if driver.take().unwrap().is_some() {
                taken += 1;
            }
        }
    });
}
