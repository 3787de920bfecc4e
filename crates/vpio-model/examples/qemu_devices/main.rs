//! Random driver programs, through a model, on the device as QEMU has it (qtest): what the model believes is compared with what the
//! device shows after each access. Most programs are hostile; memory around the guest's must stay as it is. Where a program leaves the
//! device reusable, another one gets the context, and the comparison is made there. Half of the RTL8139's programs are a driver that receives,
//! and goes on receiving on the other card.
//!
//! `qemu_devices [PROGRAMS [SEED]]`, 200 programs for each device from seed 1 unless told otherwise.

#![expect(clippy::unwrap_used, reason = "a test program")]

mod rtl8139;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::thread;

use vpio_model::engine::{At, Dma, Engine, Passthrough, Physical, Translation};
use vpio_model::hooks::Hook;
use vpio_model::language::Access;
use vpio_model::model::{Model, Sharing};
use vpio_model::models;

/// The machine's memory: the guest's, and the shadows.
const GUEST: u64 = 0x20_0000;
const SIZE: u64 = 1 << 20;
const SHADOW: u64 = 0x80_0000;
/// Accesses of a program.
const LENGTH: u64 = 40;
/// States of the RTL8139's slots.
const UNSET: u64 = 0;
const BUSY: u64 = 2;
/// What is checked around the guest's memory.
const FENCE: u64 = 0x1000;
const PATTERN: u8 = 0xa5;

/// A device in QEMU, and QEMU's memory.
struct Qemu {
    qemu: Mutex<qtest::Qemu>,
    base: u64,
    port: bool,
}

impl Qemu {
    fn start(target: &Target) -> std::io::Result<Self> {
        let mut qemu = qtest::Qemu::stopped(&format!("-device {},addr=4", target.device))?;
        let (base, port) = if target.port {
            (0xc000, true)
        } else {
            (0xfea0_0000, false)
        };
        // The base address register, and memory, ports and bus mastering.
        qemu.configure(4, 0x10 + 4 * target.bar, base);
        qemu.configure(4, 4, 7);
        let qemu = Self {
            qemu: Mutex::new(qemu),
            base: base.into(),
            port,
        };
        for fence in [GUEST - FENCE, GUEST + SIZE] {
            qemu.command(&format!("memset {fence:#x} {FENCE:#x} {PATTERN:#x}"));
        }
        Ok(qemu)
    }

    fn command(&self, line: &str) -> String {
        self.qemu.lock().unwrap().ask(line)
    }

    fn load(&self, address: u64, data: &mut [u8]) {
        let answer = self.command(&format!("read {address:#x} {:#x}", data.len()));
        let digits = answer.trim_start_matches("0x").as_bytes();
        for (byte, pair) in data.iter_mut().zip(digits.chunks(2)) {
            let pair = std::str::from_utf8(pair).unwrap();
            *byte = u8::from_str_radix(pair, 16).unwrap();
        }
    }

    fn store(&self, address: u64, data: &[u8]) {
        let mut digits = String::new();
        for byte in data {
            write!(digits, "{byte:02x}").unwrap();
        }
        self.command(&format!("write {address:#x} {:#x} 0x{digits}", data.len()));
    }

    fn fences_stand(&self) -> bool {
        [GUEST - FENCE, GUEST + SIZE].into_iter().all(|fence| {
            let mut bytes = [0; 4096];
            self.load(fence, &mut bytes);
            bytes.iter().all(|byte| *byte == PATTERN)
        })
    }
}

impl Physical for Qemu {
    fn read(&self, _space: u8, offset: u64, width: u8) -> u64 {
        let (at, suffix) = (self.base + offset, suffix(width));
        let answer = if self.port {
            self.command(&format!("in{suffix} {at:#x}"))
        } else {
            self.command(&format!("read{suffix} {at:#x}"))
        };
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap()
    }

    fn write(&self, _space: u8, offset: u64, width: u8, value: u64) {
        let (at, suffix) = (self.base + offset, suffix(width));
        let word = if self.port { "out" } else { "write" };
        self.command(&format!("{word}{suffix} {at:#x} {value:#x}"));
    }

    /// Nothing: a new program has a new QEMU.
    fn reset(&self) {}
}

fn suffix(width: u8) -> char {
    match width {
        1 => 'b',
        2 => 'w',
        4 => 'l',
        _ => 'q',
    }
}

impl Dma for Qemu {
    fn translate(&self, address: u64, length: u64, access: Access) -> Option<u64> {
        translation().translate(address, length, access)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let at = translation().translate(address, data.len() as u64, Access::Read);
        at.map(|at| self.load(at, data)).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let at = translation().translate(address, data.len() as u64, Access::Write);
        at.map(|at| self.store(at, data)).is_some()
    }

    fn shadow(&self) -> u64 {
        SHADOW
    }

    fn read_shadow(&self, offset: u64, data: &mut [u8]) {
        self.load(SHADOW + offset, data);
    }

    fn write_shadow(&self, offset: u64, data: &[u8]) {
        if data.iter().all(|byte| *byte == 0) {
            let at = SHADOW + offset;
            self.command(&format!("memset {at:#x} {:#x} 0", data.len()));
        } else {
            self.store(SHADOW + offset, data);
        }
    }
}

fn translation() -> Translation {
    Translation::Offset {
        base: GUEST,
        size: SIZE,
    }
}

/// An address in the guest, near its end, or anywhere; or few bits; or anything.
fn random_value(random: &mut fastrand::Rng, width: u8) -> u64 {
    let value = match random.u8(..8) {
        0 | 1 => random.u64(..SIZE / 64) * 64,
        2 => SIZE - 64 + random.u64(..128),
        3 => random.u64(..),
        4 | 5 => 1 << random.u64(..u64::from(width) * 8),
        6 => random.u64(..64),
        _ => 1 << random.u64(..16) | 1 << random.u64(..8),
    };
    value & (u64::MAX >> (64 - 8 * u32::from(width)))
}

type Device = Passthrough<Arc<Qemu>, Arc<Qemu>>;
/// What is compared, as the model has it and as the device shows it.
type Pairs = Vec<(String, u64, u64)>;

struct Target {
    device: &'static str,
    model: &'static str,
    bar: u32,
    port: bool,
    compare: fn(&Device, &Qemu, &mut Pairs),
    driver: Option<Driver>,
}

/// A driver that means well. Half of a device's programs are its.
struct Driver {
    /// Uses a device that was just reset, and returns what it did.
    start: fn(&mut Device, &mut fastrand::Rng) -> String,
    /// What the device shows, which is the same where the driver goes on.
    shown: fn(&Qemu) -> Vec<(&'static str, u64)>,
    /// Goes on, on a device like the one that it had.
    go_on: fn(&mut Device, &mut Pairs),
}

fn variable(device: &Device, name: &str) -> u64 {
    device.engine().variable(name).unwrap()
}

/// The device's address for one that the guest wrote.
fn translated(address: u64) -> u64 {
    let there = translation().translate(address, 1, Access::Read);
    there.unwrap_or(u64::MAX)
}

const TARGETS: [Target; 7] = [
    Target {
        device: "ne2k_pci",
        model: models::NE2000,
        bar: 0,
        port: true,
        compare: |model, card, pairs| {
            let cr = card.read_register(0, 1);
            let mut pair =
                |name: &str, shown| pairs.push((name.into(), variable(model, name), shown));
            pair("page", cr >> 6);
            if cr & 3 != 0 {
                pair("core", u64::from(cr & 1 == 0));
            }
            // Page 2 shows the ring; what is sent stays as it is.
            card.write_register(0, 1, 0xa0 | cr & 3);
            let (start, stop) = (card.read_register(1, 1), card.read_register(2, 1));
            card.write_register(0, 1, 0x20 | cr & 3);
            let address = card.read_register(8, 1) | card.read_register(9, 1) << 8;
            card.write_register(0, 1, cr & !4);
            pair("rsar", address);
            for (name, shown) in [("pstart", start), ("pstop", stop)] {
                // QEMU keeps none that is behind its memory.
                if variable(model, name) <= 0xc0 && shown != 0 {
                    pair(name, shown);
                }
            }
        },
        driver: None,
    },
    Target {
        device: "rtl8139",
        model: models::RTL8139,
        bar: 0,
        port: true,
        compare: |model, card, pairs| {
            let mut pair = |name: &str, ours, shown| pairs.push((name.into(), ours, shown));
            let command = card.read_register(0x37, 1);
            pair("rx", variable(model, "rx"), command >> 3 & 1);
            pair("te", variable(model, "te"), command >> 2 & 1);
            let length = 3 << 11 | 0x80;
            pair(
                "rcr",
                variable(model, "rcr") & length,
                card.read_register(0x44, 4) & length,
            );
            let ring = card.read_register(0x30, 4);
            if ring != 0 {
                pair(
                    "rbstart",
                    translated(variable(model, "rbstart")) & 0xffff_ffff,
                    ring,
                );
            }
            for n in 0..4 {
                let address = card.read_register(0x20 + 4 * n, 4);
                if variable(model, &format!("tx[{n}]")) != UNSET {
                    let ours = translated(variable(model, &format!("tsad[{n}]")));
                    pair("tsad", ours & 0xffff_ffff, address);
                }
                // What the device may send, the model knows to be busy.
                if card.read_register(0x10 + 4 * n, 4) & 0x2000 == 0 {
                    let size = variable(model, &format!("size[{n}]"));
                    let busy = variable(model, &format!("tx[{n}]")) == BUSY;
                    pair("tx", busy.into(), u64::from(size != 0));
                }
            }
        },
        driver: Some(rtl8139::DRIVER),
    },
    Target {
        device: "rtl8139",
        model: models::RTL8139CP,
        bar: 0,
        port: true,
        compare: |model, card, pairs| {
            let mut pair = |name: &str, ours, shown| pairs.push((name.into(), ours, shown));
            let command = card.read_register(0x37, 1);
            pair("rx", variable(model, "rx"), command >> 3 & 1);
            pair("tx", variable(model, "tx"), command >> 2 & 1);
            pair(
                "mode",
                variable(model, "mode"),
                u64::from(card.read_register(0xe0, 2) & 3 != 0),
            );
            if variable(model, "tx") != 0 {
                let ring = card.read_register(0x20, 4);
                pair(
                    "ring is a shadow",
                    1,
                    (SHADOW..SHADOW + (1 << 20)).contains(&ring).into(),
                );
            }
        },
        driver: None,
    },
    Target {
        device: "e1000",
        model: models::E1000,
        bar: 0,
        port: false,
        compare: |model, card, pairs| {
            let mut pair =
                |name: &str, shown| pairs.push((name.into(), variable(model, name), shown));
            for (name, offset) in [
                ("tdlen", 0x3808),
                ("tdt", 0x3818),
                ("rdlen", 0x2808),
                ("rdt", 0x2818),
            ] {
                pair(name, card.read_register(offset, 4));
            }
            pair("tx", card.read_register(0x400, 4) >> 1 & 1);
            pair("rx", card.read_register(0x100, 4) >> 1 & 1);
            let mut inside = |name: &str, offset| {
                let address = card.read_register(offset, 4);
                let shadow = address == 0 || (SHADOW..SHADOW + (1 << 20)).contains(&address);
                pairs.push((name.into(), 1, shadow.into()));
            };
            inside("tdba is a shadow", 0x3800);
            inside("rdba is a shadow", 0x2800);
        },
        driver: None,
    },
    Target {
        device: "ich9-ahci",
        model: models::AHCI,
        bar: 5,
        port: false,
        compare: |model, hba, pairs| {
            let mut pair = |name: &str, ours, shown| pairs.push((name.into(), ours, shown));
            for n in 0..6 {
                let base = 0x100 + 0x80 * n;
                let command = hba.read_register(base + 0x18, 4);
                pair("list", variable(model, &format!("list[{n}]")), command & 1);
                let on = variable(model, &format!("fis[{n}]"));
                pair("fis", on, command >> 4 & 1);
                let area = hba.read_register(base + 8, 4) | hba.read_register(base + 0xc, 4) << 32;
                if on != 0 {
                    pair("fb", translated(variable(model, &format!("fb[{n}]"))), area);
                }
                let list = hba.read_register(base, 4) | hba.read_register(base + 4, 4) << 32;
                let shadow = list == 0 || (SHADOW..SHADOW + (8 << 20)).contains(&list);
                pair("clb is a shadow", 1, shadow.into());
            }
        },
        driver: None,
    },
    Target {
        device: "piix3-ide",
        model: models::PIIX_BMIDE,
        bar: 4,
        port: true,
        compare: |model, ide, pairs| {
            for c in 0..2 {
                let running = ide.read_register(8 * c, 1) & 1;
                pairs.push(("dma".into(), variable(model, &format!("dma[{c}]")), running));
                let list = ide.read_register(8 * c + 4, 4);
                let shadow = list == 0 || (SHADOW..SHADOW + (1 << 20)).contains(&list);
                pairs.push(("prdt is a shadow".into(), 1, shadow.into()));
            }
        },
        driver: None,
    },
    Target {
        device: "edu",
        model: include_str!("../edu.vpio"),
        bar: 0,
        port: false,
        compare: edu,
        driver: None,
    },
];

fn edu(model: &Device, card: &Qemu, pairs: &mut Pairs) {
    let mut pair = |name: &str, ours, shown| pairs.push((name.into(), ours, shown));
    let command = card.read_register(0x98, 8);
    let dma = variable(model, "dma");
    // The clock stands still: what was started is under way.
    pair("dma", u64::from(dma != 0), command & 1);
    if dma != 0 {
        pair("direction", dma - 1, command >> 1 & 1);
        let [source, target] = [0x80, 0x88].map(|offset| card.read_register(offset, 8));
        let (source_here, target_here) = (variable(model, "source"), variable(model, "target"));
        if dma == 1 {
            pair("source", translated(source_here), source);
            pair("target", target_here, target);
        } else {
            pair("source", source_here, source);
            pair("target", translated(target_here), target);
        }
    }
    pair(
        "count",
        variable(model, "count"),
        card.read_register(0x90, 8),
    );
}

impl Qemu {
    fn read_register(&self, offset: u64, width: u8) -> u64 {
        Physical::read(self, 0, offset, width)
    }

    fn write_register(&self, offset: u64, width: u8, value: u64) {
        Physical::write(self, 0, offset, width, value);
    }
}

#[derive(Default)]
struct Results {
    accesses: u64,
    denied: u64,
    operations: u64,
    compared: u64,
    /// Contexts that were replayed on another device.
    replayed: u64,
    /// By what: how often, and the first example.
    disagreements: BTreeMap<String, (u64, String)>,
}

impl Results {
    fn compare(&mut self, how: &str, pairs: Pairs, log: &str) {
        self.compared += pairs.len() as u64;
        for (what, ours, shown) in pairs {
            if ours != shown {
                let example = format!("model {ours:#x}, device {shown:#x} after {log}");
                let entry = self.disagreements.entry(format!("{how}{what}"));
                entry.or_insert((0, example)).0 += 1;
            }
        }
    }
}

fn program(
    target: &Target,
    model: &Arc<Model>,
    hooks: &[Hook],
    random: &mut fastrand::Rng,
    results: &mut Results,
) -> std::io::Result<()> {
    let qemu = Arc::new(Qemu::start(target)?);
    let mut device = Passthrough::new(Engine::new(model.clone(), qemu.clone()), qemu.clone());
    let mut log = String::new();
    let driver = target.driver.as_ref().filter(|_| random.bool());
    if let Some(driver) = driver {
        log = (driver.start)(&mut device, random);
    }
    let length = if driver.is_some() { 0 } else { LENGTH };
    for _ in 0..length {
        let which = usize::try_from(random.u64(..hooks.len() as u64)).unwrap();
        let Some(hook) = hooks.get(which) else {
            continue;
        };
        // Descriptors, of a kind.
        let words: Vec<u8> = (0..4)
            .flat_map(|_| random_value(random, 4).to_le_bytes())
            .collect();
        qemu.store(GUEST + random.u64(..SIZE / 64) * 64, &words);
        let value = random_value(random, hook.width);
        let at = At {
            space: hook.space,
            offset: hook.offset,
            width: hook.width,
        };
        let result = device.write(at, value);
        write!(log, "{} {value:#x}", hook.names.join("/")).unwrap();
        log += if result.is_ok() { "; " } else { " (denied); " };
        let mut pairs = Pairs::new();
        (target.compare)(&device, &qemu, &mut pairs);
        results.compare("", pairs, &log);
    }
    if !qemu.fences_stand() {
        let entry = results.disagreements.entry("memory of others".to_owned());
        entry.or_insert((0, log.clone())).0 += 1;
    }
    let left = driver.map_or(Vec::new(), |driver| (driver.shown)(&qemu));
    if device.is_reusable()
        && let Ok(state) = device.suspend()
    {
        // As it comes out of a reset.
        let other = Arc::new(Qemu::start(target)?);
        let mut there = Passthrough::new(Engine::new(model.clone(), other.clone()), other.clone());
        let resumed = u64::from(there.resume(&state).is_ok());
        let mut pairs = Pairs::from([("resumed".into(), 1, resumed)]);
        (target.compare)(&there, &other, &mut pairs);
        if let Some(driver) = driver {
            let shown = left.into_iter().zip((driver.shown)(&other));
            pairs.extend(shown.map(|((what, here), (_, there))| (what.into(), here, there)));
            (driver.go_on)(&mut there, &mut pairs);
        }
        results.compare("replayed ", pairs, &log);
        results.replayed += 1;
        results.operations += other.qemu.lock().unwrap().commands();
    }
    results.accesses += device.counts().accesses;
    results.denied += device.counts().denied;
    results.operations += qemu.qemu.lock().unwrap().commands();
    Ok(())
}

/// Compares on so many programs. Returns what to print and whether the two always agreed.
fn compare(target: &Target, programs: u64, seed: u64) -> io::Result<(String, bool)> {
    let model = Arc::new(Model::parse(target.device, target.model).unwrap());
    let mut hooks = model.hooks(Sharing::Exclusive).registers;
    hooks.retain(|hook| hook.writes);
    let (mut random, mut results) = (fastrand::Rng::with_seed(seed), Results::default());
    for _ in 0..programs {
        program(target, &model, &hooks, &mut random, &mut results)?;
    }
    let mut report = format!(
        "{} ({}): {programs} programs, {} accesses, {} denied, {} replayed, {} comparisons, {} operations",
        target.device,
        model.name(),
        results.accesses,
        results.denied,
        results.replayed,
        results.compared,
        results.operations
    );
    for (what, (count, example)) in &results.disagreements {
        report += &format!("\n  {what}: {count} times, first: {example}");
    }
    Ok((report, results.disagreements.is_empty()))
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (programs, seed): (u64, u64) = (number(200), number(1));
    let mut code = ExitCode::SUCCESS;
    // A device and its QEMU take turns: side by side they keep all processors busy.
    thread::scope(|scope| {
        let start = |target| scope.spawn(move || compare(target, programs, seed));
        let devices: Vec<_> = TARGETS.iter().map(start).collect();
        for device in devices {
            match device.join().unwrap() {
                Ok((report, agreed)) => {
                    println!("{report}");
                    if !agreed {
                        code = ExitCode::FAILURE;
                    }
                }
                Err(error) => println!("SKIPPED: qemu-system-x86_64: {error}"),
            }
        }
    });
    code
}
