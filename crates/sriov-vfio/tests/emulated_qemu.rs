//! Our capability beside the one of QEMU's `igb`: the same writes to both, then all registers and all virtual functions compared.
//!
//! QEMU 10.0 stores things that the specification leaves undefined and that we refuse: page sizes that are not one bit, and ARI, which
//! may change while virtual functions exist. Neither is written here.
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod nic;

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nic::{Machine, SRIOV, igb};
use pio_mmio_bus::pci::RequesterId;
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::spec::sriov::{self, CONTROL, Control, NUM_VFS, SYSTEM_PAGE_SIZE, VF_BAR0};

const ECAM: u64 = 0xb000_0000;
const DEVFN: u8 = RequesterId::devfn_of(5, 0);

/// QEMU's device models alone, with no CPU running. Ends with the test.
struct Qemu {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Qemu {
    fn start() -> Option<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let theirs = OwnedFd::from(theirs);
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg",
                "-S",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args([
                "-qtest",
                "stdio",
                "-qtest-log",
                "none",
                "-device",
                "igb,addr=5.0",
            ])
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => {
                let mut qemu = Self {
                    child,
                    stream: BufReader::new(ours),
                };
                // PCIEXBAR of the host bridge.
                qemu.ask("outl 0xcf8 0x80000060");
                qemu.ask(&format!("outl 0xcfc {:#x}", ECAM | 1));
                Some(qemu)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("SKIPPED: qemu-system-x86_64 is not installed");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.stream.get_mut(), "{command}").unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        answer
            .trim_end()
            .strip_prefix("OK")
            .unwrap()
            .trim()
            .to_owned()
    }

    fn address(id: RequesterId, offset: usize) -> String {
        format!(
            "{:#x}",
            ECAM + (u64::from(id.0) << 12) + u64::try_from(offset).unwrap()
        )
    }

    fn read(&mut self, id: RequesterId, offset: usize) -> u32 {
        let answer = self.ask(&format!("readl {}", Self::address(id, offset)));
        u32::from_str_radix(answer.strip_prefix("0x").unwrap(), 16).unwrap()
    }

    fn write(&mut self, id: RequesterId, offset: usize, width: usize, value: u32) {
        let suffix = if width == 2 { 'w' } else { 'l' };
        self.ask(&format!(
            "write{suffix} {} {value:#x}",
            Self::address(id, offset)
        ));
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that are the same in each run (xorshift64*).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        u32::try_from(number).unwrap() % bound
    }
}

fn ours(machine: &Machine, id: RequesterId, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    machine
        .root
        .read_config(id, u16::try_from(offset).unwrap(), &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn random_walks_agree_with_qemus_igb() {
    let Some(mut qemu) = Qemu::start() else {
        return;
    };
    let machine = Machine::new(igb());
    machine
        .root
        .bus()
        .insert(DEVFN, machine.physical.clone())
        .unwrap();
    let id = RequesterId::new(0, DEVFN);
    let mut config = Vec::new();
    for offset in (0..4096).step_by(4) {
        config.extend(qemu.read(id, offset).to_le_bytes());
    }
    let theirs = SriovCapability::find(&config).unwrap().unwrap();
    let at = usize::from(theirs.offset());
    let functions: Vec<_> = (0..theirs.total_vfs())
        .map(|index| theirs.vf_requester(id, index).unwrap())
        .collect();

    let mut numbers = Numbers(0x5109);
    let mut log = Vec::new();
    let mut compared = 0;
    for _ in 0..1500 {
        let enabled = machine.read16(CONTROL) & Control::VF_ENABLE.bits() != 0;
        let ari = u32::from(machine.read16(CONTROL) & Control::ARI_CAPABLE_HIERARCHY.bits());
        let (offset, width, value) = match numbers.below(10) {
            0..3 => (CONTROL, 2, numbers.below(32) & !0x10 | ari),
            3..6 => (NUM_VFS, 2, numbers.below(12)),
            6 if !enabled => (SYSTEM_PAGE_SIZE, 4, 1),
            7 if !enabled => (CONTROL, 2, numbers.below(2) << 4),
            _ => {
                let bar = usize::try_from(numbers.below(6)).unwrap();
                (VF_BAR0 + 4 * bar, 4, numbers.below(u32::MAX))
            }
        };
        log.push((offset, value));
        qemu.write(id, at + offset, width, value);
        let bytes = value.to_le_bytes();
        machine.write(offset, bytes.get(..width).unwrap());
        // The header differs: what comes next.
        for register in (4..sriov::LENGTH).step_by(4) {
            assert_eq!(
                ours(&machine, id, usize::from(SRIOV) + register),
                qemu.read(id, at + register),
                "{register:#x} after {log:x?}"
            );
            compared += 1;
        }
        for &function in &functions {
            // The class tells a function, which has none as a vendor, from nothing.
            let there = ours(&machine, function, 8) != u32::MAX;
            assert_eq!(
                there,
                qemu.read(function, 8) != u32::MAX,
                "{function} after {log:x?}"
            );
            if there {
                assert_eq!(ours(&machine, function, 0), qemu.read(function, 0));
            }
            compared += 1;
        }
    }
    println!(
        "{compared} registers and functions compared after {} writes",
        log.len()
    );
}
