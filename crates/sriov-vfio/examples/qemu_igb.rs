//! Our SR-IOV capability beside that of QEMU's `igb` (qtest): random programs of configuration writes to both, hostile ones among them, then
//! all registers, all virtual functions and where their BARs are decoded compared. Where the two differ on purpose is in `DIFFERENCES.md`,
//! and checked to be all that differs.
//!
//! `qemu_igb [PROGRAMS [SEED]]`, 200 programs from seed 1 unless told otherwise.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test program"
)]

#[path = "../tests/nic/mod.rs"]
mod nic;

use std::collections::BTreeMap;
use std::ops::Range;

use nic::{ECAM, Machine, SRIOV, igb};
use pio_mmio_bus::pci::{PciFunction, RequesterId};
use qtest::{Qemu, if_installed};
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::spec::sriov::{
    self, CONTROL, Control, MANDATORY_PAGE_SIZES, NUM_VFS, Registers, SYSTEM_PAGE_SIZE, VF_BAR0,
};
use zerocopy::FromBytes;

/// Both have it on bus 0.
const DEVFN: u8 = RequesterId::devfn_of(5, 0);

/// QEMU's card and functions, reached through ECAM.
struct Theirs(Qemu);

impl Theirs {
    fn start() -> Option<Self> {
        let mut qemu = if_installed(Qemu::stopped("-device igb,addr=5.0"))?;
        // PCIEXBAR of the host bridge.
        qemu.configure(0, 0x60, u32::try_from(ECAM | 1).unwrap());
        Some(Self(qemu))
    }

    fn address(id: RequesterId, offset: usize) -> String {
        format!(
            "{:#x}",
            ECAM + (u64::from(id.0) << 12) + u64::try_from(offset).unwrap()
        )
    }

    fn memory(&mut self, address: &str) -> u32 {
        u32::try_from(self.0.number(&format!("readl {address}"))).unwrap()
    }

    fn read(&mut self, id: RequesterId, offset: usize) -> u32 {
        self.memory(&Self::address(id, offset))
    }

    fn write(&mut self, id: RequesterId, offset: usize, width: usize, value: u32) {
        let suffix = match width {
            1 => 'b',
            2 => 'w',
            _ => 'l',
        };
        self.0.tell(&format!(
            "write{suffix} {} {value:#x}",
            Self::address(id, offset)
        ));
    }
}

/// Writes of a program.
const LENGTH: u32 = 24;
/// Where the first virtual function's BARs are put to see where they are decoded: QEMU's has its MSI-X table in the second.
const BARS: [(usize, u32); 2] = [(VF_BAR0, 0xc000_0000), (VF_BAR0 + 12, 0xd000_0000)];
/// Size of a share of either.
const SHARE: u64 = 0x4000;
/// Vector control of the first MSI-X entry, whose mask bit is set after a reset.
const VECTOR_CONTROL: u64 = 0xc;

/// A write to the capability.
#[derive(Clone, Copy, Debug)]
struct Write {
    offset: usize,
    width: usize,
    value: u32,
}

impl Write {
    fn new(offset: usize, width: usize, value: u32) -> Self {
        Self {
            offset,
            width,
            value,
        }
    }

    fn random(numbers: &mut fastrand::Rng) -> Self {
        let (register, size, value) = match numbers.u32(..8) {
            0 | 1 => (CONTROL, 2, numbers.u32(..32)),
            2 | 3 => (NUM_VFS, 2, numbers.u32(..12)),
            4 => (SYSTEM_PAGE_SIZE, 4, 1 << numbers.u32(..13)),
            5 => {
                let bar = usize::try_from(numbers.u32(..6)).unwrap();
                (VF_BAR0 + 4 * bar, 4, numbers.u32(..u32::MAX))
            }
            // Whatever is there, read-only registers too, but the header: what comes next differs.
            _ => {
                let word = 1 + usize::try_from(numbers.u32(..15)).unwrap();
                (4 * word, 4, numbers.u32(..u32::MAX))
            }
        };
        if numbers.u32(..3) != 0 {
            return Self::new(register, size, value);
        }
        // Some bytes of its word.
        let width = 1 << numbers.u32(..3);
        let part = usize::try_from(numbers.u32(..4)).unwrap() / width * width;
        Self::new(register / 4 * 4 + part, width, numbers.u32(..u32::MAX))
    }

    fn bytes(&self) -> Vec<u8> {
        self.value
            .to_le_bytes()
            .into_iter()
            .take(self.width)
            .collect()
    }
}

/// Both, with their capabilities in the same state.
struct Pair {
    ours: Machine,
    qemu: Theirs,
    id: RequesterId,
    /// Where QEMU has the capability.
    at: usize,
    functions: Vec<RequesterId>,
    compared: u64,
    differences: BTreeMap<&'static str, u64>,
}

impl Pair {
    fn start() -> Option<Self> {
        let mut qemu = Theirs::start()?;
        let ours = Machine::new(igb());
        ours.root
            .bus()
            .insert(DEVFN, ours.physical.clone())
            .unwrap();
        let id = RequesterId::new(0, DEVFN);
        let mut config = Vec::new();
        for offset in (0..4096).step_by(4) {
            config.extend(qemu.read(id, offset).to_le_bytes());
        }
        let theirs = SriovCapability::find(&config).unwrap().unwrap();
        let functions = (0..theirs.total_vfs())
            .map(|index| theirs.vf_requester(id, index).unwrap())
            .collect();
        Some(Self {
            ours,
            qemu,
            id,
            at: theirs.offset().into(),
            functions,
            compared: 0,
            differences: BTreeMap::new(),
        })
    }

    fn registers(&self) -> [u8; sriov::LENGTH] {
        let mut bytes = [0; sriov::LENGTH];
        self.ours.physical.read_config(SRIOV, &mut bytes);
        bytes
    }

    fn write(&mut self, write: Write) {
        self.qemu
            .write(self.id, self.at + write.offset, write.width, write.value);
        self.ours.write(write.offset, &write.bytes());
    }

    fn reset(&mut self) {
        self.write(Write::new(CONTROL, 2, 0));
        self.write(Write::new(NUM_VFS, 2, 0));
        self.write(Write::new(SYSTEM_PAGE_SIZE, 4, 1));
        for bar in (VF_BAR0..VF_BAR0 + 4 * sriov::BARS).step_by(4) {
            self.write(Write::new(bar, 4, 0));
        }
        self.compare(&(0..0), "a reset");
    }

    /// All registers but those in `but`, and all functions.
    fn compare(&mut self, but: &Range<usize>, after: &str) {
        // The header differs: what comes next.
        for register in (4..sriov::LENGTH).step_by(4) {
            if !but.contains(&register) {
                let ours = ours(&self.ours, self.id, usize::from(SRIOV) + register);
                let theirs = self.qemu.read(self.id, self.at + register);
                assert_eq!(ours, theirs, "{register:#x} after {after}");
                self.compared += 1;
            }
        }
        for &function in &self.functions {
            // The class tells a function, which has none as a vendor, from nothing.
            let there = ours(&self.ours, function, 8) != u32::MAX;
            let theirs = self.qemu.read(function, 8) != u32::MAX;
            assert_eq!(there, theirs, "{function} after {after}");
            if there {
                assert_eq!(ours(&self.ours, function, 0), self.qemu.read(function, 0));
            }
            self.compared += 1;
        }
    }

    /// Where each function's shares are decoded.
    fn compare_shares(&mut self, after: &str) {
        let (_, base) = BARS[1];
        for index in 0..u64::from(igb().total_vfs) {
            let share = u64::from(base) + SHARE * index;
            let theirs = self.qemu.memory(&format!("{:#x}", share + VECTOR_CONTROL)) == 1;
            let ours = self.ours.peek(share).is_some();
            assert_eq!(ours, theirs, "BAR of function {index} after {after}");
            self.compared += 1;
        }
    }

    fn program(&mut self, numbers: &mut fastrand::Rng) {
        self.reset();
        let mut log = Vec::new();
        for _ in 0..LENGTH {
            let write = Write::random(numbers);
            log.push(write);
            let before = self.registers();
            self.write(write);
            let Some((why, registers)) = difference(&before, write) else {
                self.compare(&(0..0), &format!("{log:x?}"));
                continue;
            };
            *self.differences.entry(why).or_default() += 1;
            self.compare(&registers, &format!("{why}: {log:x?}"));
            // QEMU's as ours again, whatever part of them the write changed there.
            let after = self.registers();
            for register in registers.clone().step_by(4) {
                let value = u32::read_from_bytes(&after[register..register + 4]).unwrap();
                self.qemu.write(self.id, self.at + register, 4, value);
            }
            if registers.contains(&SYSTEM_PAGE_SIZE) {
                // With large pages our BARs go on to differ. Ignored while functions exist.
                let value = u32::from(before[SYSTEM_PAGE_SIZE]);
                self.ours.write(SYSTEM_PAGE_SIZE, &value.to_le_bytes());
                self.qemu
                    .write(self.id, self.at + SYSTEM_PAGE_SIZE, 4, value);
            }
            self.compare(&(0..0), &format!("undoing {log:x?}"));
        }
        self.reset();
        for (bar, base) in BARS {
            self.write(Write::new(bar, 4, base));
        }
        self.write(Write::new(NUM_VFS, 2, numbers.u32(..9)));
        let enable = u32::from(Control::VF_ENABLE.bits());
        let memory = u32::from(Control::MEMORY_ENABLE.bits());
        for control in [enable | memory, memory, enable | memory, 0] {
            self.write(Write::new(CONTROL, 2, control));
            // In QEMU that is what decodes the BARs, see `DIFFERENCES.md`.
            for function in self.functions.clone() {
                self.qemu.write(function, 4, 2, 2);
            }
            self.compare(&(0..0), "enabling");
            self.compare_shares(&format!("{control:#x}"));
        }
    }
}

/// Which difference of `DIFFERENCES.md` a write to a capability in this state shows, if any, and in which registers.
fn difference(before: &[u8; sriov::LENGTH], write: Write) -> Option<(&'static str, Range<usize>)> {
    let mut wanted = *before;
    wanted[write.offset..write.offset + write.width].copy_from_slice(&write.bytes());
    let [before, wanted] =
        [before, &wanted].map(|bytes| Registers::read_from_bytes(bytes).unwrap());
    let control = |registers: &Registers| Control::from_bits_truncate(registers.control.get());
    let (had, has) = (control(&before), control(&wanted));
    let page = wanted.system_page_size.get() & MANDATORY_PAGE_SIZES;
    if page != before.system_page_size.get() {
        let why = if had.contains(Control::VF_ENABLE) {
            "the page size changes while functions exist"
        } else if page.count_ones() != 1 {
            "the page size is none or several"
        } else if u64::from(page) << sriov::PAGE_SHIFT > SHARE {
            "a share of a BAR is smaller than a page"
        } else {
            return None;
        };
        return Some((why, SYSTEM_PAGE_SIZE..sriov::LENGTH - 4));
    }
    let kept = had.contains(Control::VF_ENABLE) && has.contains(Control::VF_ENABLE);
    ((had ^ has).contains(Control::ARI_CAPABLE_HIERARCHY) && kept)
        .then_some(("ARI changes while functions exist", CONTROL..CONTROL + 4))
}

fn ours(machine: &Machine, id: RequesterId, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    machine
        .root
        .read_config(id, u16::try_from(offset).unwrap(), &mut bytes);
    u32::from_le_bytes(bytes)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (programs, seed): (u32, u64) = (number(200).try_into().unwrap(), number(1));
    let Some(mut pair) = Pair::start() else {
        return;
    };
    let mut numbers = fastrand::Rng::with_seed(seed);
    for _ in 0..programs {
        pair.program(&mut numbers);
    }
    println!(
        "igb: {programs} programs, {} comparisons, {} operations",
        pair.compared,
        pair.qemu.0.commands()
    );
    for (what, count) in pair.differences {
        println!("  differs on purpose: {what}: {count} times");
    }
}
