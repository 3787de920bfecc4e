//! A guest's program that has old devices move memory that is not the guest's, in each way that it knows: `hostile`. Before each attempt
//! it tells `guest: hostile: WHAT: ADDRESS`, the address where the host's IOMMU would stop it. With `lab.control` on the kernel's command
//! line the devices have no models and the host's log is to tell of each attempt: they are made slowly, and without races, which begin
//! from what is allowed and end at what another attempt shows to be real. It needs memory that the kernel does not use (`mem=128M
//! iomem=relaxed` of 256 MiB) and two CPUs; nothing but the standard library and C's, so that `rustc` alone builds it.
//!
//! Registers: Realtek RTL8139C+ data sheet, sections 5 and 6; Intel's manual of the 82540EM, sections 3 and 13; Serial ATA AHCI 1.3.1,
//! sections 3 and 4, and 10.14 for index and data.

#![expect(
    clippy::indexing_slicing,
    reason = "offsets of this program's own; a panic ends it, and its check fails"
)]

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use std::{ptr, slice};

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        l: usize,
        prot: c_int,
        how: c_int,
        fd: c_int,
        from: i64,
    ) -> *mut c_void;
    fn iopl(level: c_int) -> c_int;
}

/// `PROT_READ | PROT_WRITE`, `MAP_SHARED` and `O_SYNC` of Linux on x86.
const READ_WRITE: c_int = 3;
const SHARED: c_int = 1;
const O_SYNC: i32 = 0o4010000;

/// The memory that the kernel does not use, and what is there.
const MEMORY: u32 = 0x0800_0000;
const SIZE: usize = 1 << 20;
const RING: u32 = MEMORY;
const TABLE: u32 = MEMORY + 0x1000;
const BUFFER: u32 = MEMORY + 0x10000;
/// Between attempts whose faults a kernel's log is to tell of. Linux logs ten of an IOMMU's messages in five seconds, and takes three for a
/// fault; some attempts cause several.
const PAUSE: Duration = Duration::from_secs(6);
/// Attempts of a race.
const RACES: u32 = 1500;
/// As many at most, until one was let through and one denied.
const MOST_RACES: u32 = 10 * RACES;

/// Words that others see as well: registers or memory.
#[derive(Clone, Copy)]
struct Words(&'static [AtomicU32]);

impl Words {
    fn map(path: &Path, from: u32, size: usize, flags: i32) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        let nowhere = ptr::null_mut();
        // SAFETY: a new mapping, which stays.
        let at = unsafe {
            mmap(
                nowhere,
                size,
                READ_WRITE,
                SHARED,
                file.as_raw_fd(),
                from.into(),
            )
        };
        if at as isize == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as long as was mapped, which is whole pages, and nobody unmaps it.
        Ok(Self(unsafe { slice::from_raw_parts(at.cast(), size / 4) }))
    }

    fn word(&self, offset: u32) -> &'static AtomicU32 {
        &self.0[offset as usize / 4]
    }

    fn set(&self, offset: u32, value: u32) {
        // A plain move on x86: an exchange would read a register first.
        self.word(offset).store(value, Ordering::Release);
    }

    fn get(&self, offset: u32) -> u32 {
        self.word(offset).load(Ordering::Acquire)
    }

    fn set16(&self, offset: u32, value: u16) {
        let word = self.word(offset & !3).as_ptr().cast::<u16>();
        // SAFETY: one of the two halves of a word of the mapping.
        unsafe { word.add(offset as usize % 4 / 2).write_volatile(value) }
    }

    fn set8(&self, offset: u32, value: u8) {
        let word = self.word(offset & !3).as_ptr().cast::<u8>();
        // SAFETY: one of the four bytes of a word of the mapping.
        unsafe { word.add(offset as usize % 4).write_volatile(value) }
    }
}

fn out8(port: u16, value: u8) {
    // SAFETY: ports of a device that is this program's, which iopl(2) lets it write.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

fn out16(port: u16, value: u16) {
    // SAFETY: as above.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) }
}

fn out32(port: u16, value: u32) {
    // SAFETY: as above.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) }
}

/// A function, which decodes its BARs and masters the bus.
struct Function(PathBuf);

impl Function {
    fn named(vendor: &str, device: &str) -> io::Result<Self> {
        for entry in fs::read_dir("/sys/bus/pci/devices")? {
            let path = entry?.path();
            let is = |file: &str, id: &str| -> io::Result<bool> {
                Ok(fs::read_to_string(path.join(file))?.trim() == id)
            };
            if is("vendor", vendor)? && is("device", device)? {
                fs::write(path.join("enable"), "1")?;
                let config = OpenOptions::new().write(true).open(path.join("config"))?;
                config.write_all_at(&[7, 0], 4)?;
                return Ok(Self(path));
            }
        }
        Err(io::Error::other(format!("no {vendor} {device}")))
    }

    fn memory(&self, bar: usize, size: usize) -> io::Result<Words> {
        Words::map(
            &self.0.join(format!("resource{bar}")),
            0,
            size.max(4096),
            O_SYNC,
        )
    }

    fn ports(&self, bar: usize) -> io::Result<u16> {
        let resources = fs::read_to_string(self.0.join("resource"))?;
        let line = resources.lines().nth(bar).unwrap_or_default();
        let start = line.split(' ').next().unwrap_or_default();
        u16::from_str_radix(start.trim_start_matches("0x"), 16).map_err(io::Error::other)
    }
}

/// Tells of attempts.
struct Attempts {
    memory: Words,
    next: u32,
    control: bool,
}

impl Attempts {
    /// Where there is no memory, at an address of this attempt's.
    fn outside(&mut self, what: &str) -> u32 {
        self.next += 1;
        let address = 0x7000_0000 + (self.next << 20);
        self.tell(what, address.into());
        address
    }

    fn tell(&self, what: &str, address: u64) {
        if self.control {
            thread::sleep(PAUSE);
        }
        println!("guest: hostile: {what}: {address:#x}");
        let _unseen = io::stdout().flush();
    }

    fn put(&self, address: u32, words: &[u32]) {
        for (word, at) in words.iter().zip((address - MEMORY..).step_by(4)) {
            self.memory.set(at, *word);
        }
    }

    fn get(&self, address: u32) -> u32 {
        self.memory.get(address - MEMORY)
    }

    /// Changes what was checked to an address outside, and waits for frames, of which there is one a second: where they came to.
    fn change(&self, what: &str, outside: u32, descriptors: &[u32]) {
        for descriptor in descriptors {
            self.put(*descriptor, &[outside]);
        }
        // One may have come before the change.
        thread::sleep(Duration::from_millis(100));
        self.put(BUFFER, &[0; 16]);
        thread::sleep(Duration::from_secs(4));
        let came = (0..16).any(|n| self.get(BUFFER + 4 * n) != 0);
        let place = if came {
            "where it was checked"
        } else {
            "elsewhere"
        };
        println!("guest: hostile: {what}: {place}");
    }

    /// Changes an address in memory back and forth while something else happens.
    fn race(&self, place: u32, outside: u32, mut attempt: impl FnMut() -> bool) -> (u32, u32) {
        let word = self.memory.word(place - MEMORY);
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    word.store(outside, Ordering::Release);
                    word.store(BUFFER, Ordering::Release);
                }
            });
            let (mut done, mut denied) = (0, 0);
            // The other CPU may stand still for a while.
            while done + denied < RACES || (done == 0 || denied == 0) && done + denied < MOST_RACES
            {
                *(if attempt() { &mut done } else { &mut denied }) += 1;
            }
            over.store(true, Ordering::Relaxed);
            (done, denied)
        })
    }
}

fn main() -> io::Result<()> {
    // SAFETY: nothing but this process' right to use ports.
    if unsafe { iopl(3) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let memory = Words::map(Path::new("/dev/mem"), MEMORY, SIZE, 0)?;
    let control = fs::read_to_string("/proc/cmdline")?.contains("lab.control");
    let mut attempts = Attempts {
        memory,
        next: 0,
        control,
    };
    rtl8139(&mut attempts)?;
    ahci(&mut attempts)?;
    e1000(&mut attempts)
}

fn rtl8139(attempts: &mut Attempts) -> io::Result<()> {
    const CR: u32 = 0x37;
    const POLL: u32 = 0xd9;
    const CPCR: u32 = 0xe0;
    const RXLO: u32 = 0xe4;
    // Bits of descriptors: OWN, EOR, FS and LS.
    const SEND: u32 = 0xf000_0040;
    const RECEIVE: u32 = 0x8000_0800;
    const EOR: u32 = 0x4000_0000;
    let card = Function::named("0x10ec", "0x8139")?;
    let (registers, ports) = (card.memory(1, 256)?, card.ports(0)?);

    let outside = attempts.outside("rtl8139: a descriptor");
    attempts.put(RING, &[SEND, 0, outside, 0]);
    registers.set8(CR, 0x10);
    registers.set16(CPCR, 3);
    registers.set(0x20, RING);
    registers.set(0x24, 0);
    registers.set8(CR, 4);
    registers.set8(POLL, 0x40);

    let outside = attempts.outside("rtl8139: a descriptor, by ports");
    attempts.put(RING, &[SEND, 0, outside, 0]);
    out8(ports + 0x37, 0x10);
    out16(ports + 0xe0, 3);
    out32(ports + 0x20, RING);
    out32(ports + 0x24, 0);
    out8(ports + 0x37, 4);
    out8(ports + 0xd9, 0x40);

    // The four-slot mode of the same card, for which the address is a register. A reset enters it; a write of CPCR, whatever it is, ends it
    // in QEMU.
    let outside = attempts.outside("rtl8139: a slot of the other mode");
    registers.set8(CR, 0x10);
    registers.set8(CR, 4);
    registers.set(0x20, outside);
    registers.set(0x10, 64);

    let what = "rtl8139: receive descriptors that change";
    let outside = attempts.outside(what);
    registers.set8(CR, 0x10);
    registers.set16(CPCR, 3);
    for n in 0..8 {
        let end = if n == 7 { EOR } else { 0 };
        attempts.put(RING + 16 * n, &[RECEIVE | end, 0, BUFFER, 0]);
    }
    registers.set(RXLO, RING);
    registers.set(RXLO + 4, 0);
    registers.set8(CR, 8);
    registers.set(0x44, 0xf);
    registers.set16(0x3c, 0);
    let buffers: Vec<u32> = (0..8).map(|n| RING + 16 * n + 8).collect();
    attempts.change(what, outside, &buffers);
    registers.set8(CR, 0x10);
    Ok(())
}

fn e1000(attempts: &mut Attempts) -> io::Result<()> {
    const RCTL: u32 = 0x0100;
    const TCTL: u32 = 0x0400;
    const RDBAL: u32 = 0x2800;
    const RDT: u32 = 0x2818;
    const TDBAL: u32 = 0x3800;
    const TDBAH: u32 = 0x3804;
    const TDLEN: u32 = 0x3808;
    const TDH: u32 = 0x3810;
    const TDT: u32 = 0x3818;
    const EN: u32 = 2;
    // EOP, IFCS and RS, and 64 bytes.
    const SEND: u32 = 0x0b00_0040;
    let card = Function::named("0x8086", "0x100e")?;
    let registers = card.memory(0, 0x20000)?;
    let ring = |attempts: &Attempts, address| {
        for n in 0..8 {
            attempts.put(RING + 16 * n, &[address, 0, SEND, 0]);
        }
        registers.set(TCTL, 0);
        registers.set(TDBAL, RING);
        registers.set(TDBAH, 0);
        registers.set(TDLEN, 128);
        registers.set(TDH, 0);
        registers.set(TDT, 0);
        registers.set(TCTL, EN);
    };
    let outside = attempts.outside("e1000: a descriptor");
    ring(attempts, outside);
    registers.set(TDT, 1);

    // A word at a part of the ring's address: the ring is outside.
    attempts.tell(
        "e1000: a part of the ring's address",
        0x1_0000_0000 + u64::from(RING),
    );
    ring(attempts, BUFFER);
    registers.set(TCTL, 0);
    registers.set16(TDBAH, 1);
    registers.set(TCTL, EN);
    registers.set(TDT, 1);

    let what = "e1000: receive descriptors that change";
    let outside = attempts.outside(what);
    registers.set(TCTL, 0);
    for n in 0..8 {
        attempts.put(RING + 16 * n, &[BUFFER, 0, 0, 0]);
    }
    registers.set(RDBAL, RING);
    registers.set(RDBAL + 4, 0);
    registers.set(RDBAL + 8, 128);
    registers.set(RDBAL + 16, 0);
    registers.set(RDT, 0);
    // EN, UPE, MPE and BAM.
    registers.set(RCTL, 0x801a);
    registers.set(RDT, 7);
    let buffers: Vec<u32> = (0..8).map(|n| RING + 16 * n).collect();
    attempts.change(what, outside, &buffers);
    registers.set(RCTL, 0);
    if attempts.control {
        return Ok(());
    }

    let outside = attempts.outside("e1000: a descriptor that changes meanwhile");
    ring(attempts, BUFFER);
    let (sent, not) = attempts.race(RING, outside, || {
        registers.set(TDT, 1);
        if registers.get(TDH) != 1 {
            return false;
        }
        // Around, to the one that changes.
        registers.set(TDT, 0);
        registers.get(TDH) == 0
    });
    println!("guest: hostile: e1000: {sent} sent, {not} not");
    registers.set(TCTL, 0);
    Ok(())
}

fn ahci(attempts: &mut Attempts) -> io::Result<()> {
    const GHC: u32 = 4;
    const CLB: u32 = 0x100;
    const CLBU: u32 = 0x104;
    const FB: u32 = 0x108;
    const FBU: u32 = 0x10c;
    const CMD: u32 = 0x118;
    const CI: u32 = 0x138;
    // PxCMD: FRE, with POD and SUD, and ST.
    const FRE: u32 = 0x16;
    const ST: u32 = 1;
    let disk = Function::named("0x8086", "0x2922")?;
    let (registers, ports) = (disk.memory(5, 4096)?, disk.ports(4)?);
    let stop = || {
        registers.set(CMD, 0);
        thread::sleep(Duration::from_millis(50));
        registers.set(FB, TABLE + 0x800);
        registers.set(FBU, 0);
        registers.set(CLB, RING);
        registers.set(CLBU, 0);
    };
    registers.set(GHC, 0x8000_0000);
    stop();
    let outside = attempts.outside("ahci: received FISes");
    registers.set(FB, outside);
    registers.set(CMD, FRE);

    stop();
    let outside = attempts.outside("ahci: received FISes, by index and data");
    for (register, value) in [(FB, outside), (CMD, FRE)] {
        out32(ports + 0x10, register);
        out32(ports + 0x14, value);
    }

    stop();
    // A word at a part of the area's address: what is received goes outside.
    attempts.tell(
        "ahci: a part of an address",
        (0x1_0000_0000 + u64::from(TABLE + 0x800)) & !0xfff,
    );
    registers.set16(FBU, 1);
    registers.set(CMD, FRE);

    // READ DMA EXT of a sector with a magic number, the third.
    stop();
    registers.set(CMD, FRE);
    registers.set(CMD, FRE | ST);
    thread::sleep(Duration::from_millis(100));
    let command = |attempts: &Attempts, buffer| {
        attempts.put(RING, &[0x0001_0005, 0, TABLE, 0]);
        attempts.put(TABLE, &[0x0025_8027, 0x4000_0002, 0, 1, 0]);
        attempts.put(TABLE + 0x80, &[buffer, 0, 0, 511]);
    };
    let outside = attempts.outside("ahci: a region");
    command(attempts, outside);
    registers.set(CI, 1);
    thread::sleep(Duration::from_millis(300));

    stop();
    if attempts.control {
        return Ok(());
    }
    registers.set(CMD, FRE);
    registers.set(CMD, FRE | ST);
    thread::sleep(Duration::from_millis(100));
    let outside = attempts.outside("ahci: a region that changes meanwhile");
    command(attempts, BUFFER);
    let (read, not) = attempts.race(TABLE + 0x80, outside, || {
        attempts.put(BUFFER + 0x38, &[0]);
        registers.set(CI, 1);
        for _ in 0..1000 {
            if registers.get(CI) & 1 == 0 {
                break;
            }
        }
        attempts.get(BUFFER + 0x38) & 0xffff == 0xef53
    });
    println!("guest: hostile: ahci: {read} read, {not} not");
    registers.set(CMD, 0);
    Ok(())
}
