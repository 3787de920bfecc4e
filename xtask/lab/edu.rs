//! Drives an `edu` device from user space, through VFIO: `edu BDF` (0000:00:1e.0) reports one `guest: edu WHAT: RESULT` line a check. The
//! lab's guest behind an IOMMU runs it; nothing but the standard library and C's, so that `rustc` alone builds it.
//!
//! Names and numbers: include/uapi/linux/vfio.h, QEMU's docs/specs/edu.rst.

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "sizes and offsets of this program's own; a panic ends it, and its check fails"
)]

use std::ffi::{c_int, c_uint, c_ulong};
use std::fs::{self, File, OpenOptions};
use std::hint::black_box;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::{env, ptr};

unsafe extern "C" {
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
    fn eventfd(value: c_uint, flags: c_int) -> c_int;
}

/// `_IO(';', 100 + n)`.
const VFIO_SET_IOMMU: c_ulong = 0x3b66;
const VFIO_GROUP_SET_CONTAINER: c_ulong = 0x3b68;
const VFIO_GROUP_GET_DEVICE_FD: c_ulong = 0x3b6a;
const VFIO_DEVICE_GET_REGION_INFO: c_ulong = 0x3b6c;
const VFIO_DEVICE_SET_IRQS: c_ulong = 0x3b6e;
const VFIO_IOMMU_MAP_DMA: c_ulong = 0x3b71;

const VFIO_TYPE1V2_IOMMU: c_ulong = 3;
const BAR0: u32 = 0;
const CONFIG: u32 = 7;
const INTX: u32 = 0;
const MSI: u32 = 1;
const DATA_NONE: u32 = 1;
const DATA_EVENTFD: u32 = 1 << 2;
const ACTION_UNMASK: u32 = 1 << 4;
const ACTION_TRIGGER: u32 = 1 << 5;

const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_RAISE: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;
const BUFFER: u32 = 0x4_0000;

/// Where the device finds the page that is mapped: as a physical address it is none of a program's.
const IOVA: u32 = 0x1000;
const PAGE: usize = 4096;

#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Where the kernel has a region of the device in its file.
fn region(device: &File, index: u32) -> io::Result<u64> {
    #[repr(C)]
    struct RegionInfo {
        size: u32,
        flags: u32,
        index: u32,
        capabilities: u32,
        length: u64,
        offset: u64,
    }
    let mut info = RegionInfo {
        size: size_of::<RegionInfo>() as u32,
        flags: 0,
        index,
        capabilities: 0,
        length: 0,
        offset: 0,
    };
    call(
        device.as_raw_fd(),
        VFIO_DEVICE_GET_REGION_INFO,
        &raw mut info,
    )?;
    Ok(info.offset)
}

/// An ioctl whose argument is a structure.
fn call<T>(file: RawFd, request: c_ulong, argument: *mut T) -> io::Result<c_int> {
    // SAFETY: each caller passes the structure that the request is defined with.
    check(unsafe { ioctl(file, request, argument) })
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

struct Edu {
    container: File,
    device: File,
    bar: u64,
    /// Of the container: closed, it would take the device with it.
    _group: File,
}

impl Edu {
    fn open(address: &str) -> io::Result<Self> {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
        let container = open(Path::new("/dev/vfio/vfio"))?;
        let link = fs::read_link(format!("/sys/bus/pci/devices/{address}/iommu_group"))?;
        let number = link.file_name().unwrap_or_default();
        let group = open(&Path::new("/dev/vfio").join(number))?;
        let mut descriptor = container.as_raw_fd();
        call(
            group.as_raw_fd(),
            VFIO_GROUP_SET_CONTAINER,
            &raw mut descriptor,
        )?;
        // SAFETY: the request takes a number.
        check(unsafe { ioctl(container.as_raw_fd(), VFIO_SET_IOMMU, VFIO_TYPE1V2_IOMMU) })?;
        let mut name = address.to_owned() + "\0";
        let device = call(
            group.as_raw_fd(),
            VFIO_GROUP_GET_DEVICE_FD,
            name.as_mut_ptr(),
        )?;
        // SAFETY: the kernel made it for this program, which has no other use of it.
        let device = unsafe { File::from_raw_fd(device) };
        // Memory space, bus master.
        device.write_all_at(&[6, 0], region(&device, CONFIG)? + 4)?;
        let bar = region(&device, BAR0)?;
        Ok(Self {
            container,
            device,
            bar,
            _group: group,
        })
    }

    fn read(&self, register: u64) -> io::Result<u32> {
        let mut value = [0; 4];
        self.device.read_exact_at(&mut value, self.bar + register)?;
        Ok(u32::from_le_bytes(value))
    }

    fn write(&self, register: u64, value: u32) -> io::Result<()> {
        self.device
            .write_all_at(&value.to_le_bytes(), self.bar + register)
    }

    /// Has the device see `page` at [`IOVA`].
    fn map(&self, page: &mut Page) -> io::Result<()> {
        #[repr(C)]
        struct MapDma {
            size: u32,
            flags: u32,
            address: u64,
            iova: u64,
            length: u64,
        }
        let mut map = MapDma {
            size: size_of::<MapDma>() as u32,
            flags: 3, // read, write
            address: ptr::from_mut(page) as u64,
            iova: IOVA.into(),
            length: PAGE as u64,
        };
        call(self.container.as_raw_fd(), VFIO_IOMMU_MAP_DMA, &raw mut map)?;
        Ok(())
    }

    /// A transfer of the size of a quarter of a page.
    fn transfer(&self, source: u32, destination: u32, command: u32) -> io::Result<()> {
        self.write(DMA_SOURCE, source)?;
        self.write(DMA_DESTINATION, destination)?;
        self.write(DMA_COUNT, PAGE as u32 / 4)?;
        self.write(DMA_COMMAND, command | 1)?;
        while self.read(DMA_COMMAND)? & 1 != 0 {}
        Ok(())
    }

    fn fetch(&self, address: u32) -> io::Result<()> {
        self.transfer(address, BUFFER, 0)
    }

    fn store(&self, address: u32) -> io::Result<()> {
        self.transfer(BUFFER, address, 2)
    }

    fn set_interrupts(&self, index: u32, flags: u32, count: u32, event: RawFd) -> io::Result<()> {
        #[repr(C)]
        struct IrqSet {
            size: u32,
            flags: u32,
            index: u32,
            start: u32,
            count: u32,
            event: RawFd,
        }
        let data = if flags & DATA_EVENTFD == 0 { 4 } else { 0 };
        let mut set = IrqSet {
            size: size_of::<IrqSet>() as u32 - data,
            flags,
            index,
            start: 0,
            count,
            event,
        };
        call(self.device.as_raw_fd(), VFIO_DEVICE_SET_IRQS, &raw mut set)?;
        Ok(())
    }

    /// Takes three interrupts of this kind, which the kernel calls `name` and has to go through `controller`.
    fn interrupts(&self, index: u32, name: &str, controller: &str) -> io::Result<bool> {
        // SAFETY: no memory is involved.
        let descriptor = check(unsafe { eventfd(0, 0) })?;
        // SAFETY: made the line above.
        let mut event = unsafe { File::from_raw_fd(descriptor) };
        self.set_interrupts(index, DATA_EVENTFD | ACTION_TRIGGER, 1, descriptor)?;
        let mut right = true;
        for cause in [1, 2, 4] {
            if cause == 1 {
                self.write(STATUS, 0x80)?;
                self.write(FACTORIAL, 3)?;
            } else {
                self.write(INTERRUPT_RAISE, cause)?;
            }
            let mut count = [0; 8];
            event.read_exact(&mut count)?;
            right &= u64::from_le_bytes(count) == 1 && self.read(INTERRUPT_STATUS)? == cause;
            self.write(INTERRUPT_ACKNOWLEDGE, cause)?;
            if index == INTX {
                self.set_interrupts(index, DATA_NONE | ACTION_UNMASK, 1, 0)?;
            }
        }
        let table = fs::read_to_string("/proc/interrupts")?;
        let line = table
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_default();
        println!("guest: edu has {}", line.trim());
        self.set_interrupts(index, DATA_NONE | ACTION_TRIGGER, 0, 0)?;
        Ok(right && line.contains(controller))
    }
}

/// The physical address of a page in memory (the kernel's Documentation/admin-guide/mm/pagemap.rst).
fn physical(page: &Page) -> io::Result<u32> {
    let mut entry = [0; 8];
    let number = ptr::from_ref(page) as u64 / PAGE as u64;
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, number * 8)?;
    let frame = u64::from_le_bytes(entry) & ((1 << 55) - 1);
    u32::try_from(frame * PAGE as u64).map_err(io::Error::other)
}

/// What the device left in a page.
fn quarter(page: &mut Page, number: usize) -> &mut [u8] {
    let length = PAGE / 4;
    &mut black_box(page).0[number * length..(number + 1) * length]
}

fn report(what: &str, right: bool) {
    println!("guest: edu {what}: {}", if right { "ok" } else { "FAILED" });
}

fn main() -> io::Result<()> {
    let address = env::args()
        .nth(1)
        .ok_or_else(|| io::Error::other("usage: edu BDF"))?;
    let edu = Edu::open(&address)?;
    edu.write(FACTORIAL, 10)?;
    report("factorial", edu.read(FACTORIAL)? == 3_628_800);

    let mut mapped = Box::new(Page([0; PAGE]));
    edu.map(&mut mapped)?;
    quarter(&mut mapped, 0).fill(0x5a);
    edu.fetch(IOVA)?;
    edu.store(IOVA + PAGE as u32 / 2)?;
    let moved = quarter(&mut mapped, 2).iter().all(|byte| *byte == 0x5a);
    report(
        "dma",
        moved && quarter(&mut mapped, 1).iter().all(|byte| *byte == 0),
    );

    // In memory where the device can address it, and not mapped for it.
    let mut secret = Box::new(Page([0xa5; PAGE]));
    let at = physical(&secret)?;
    println!("guest: edu must not reach {at:#x}");
    edu.fetch(at)?;
    edu.store(IOVA + PAGE as u32 / 4)?;
    edu.store(at)?;
    let read = quarter(&mut mapped, 1).contains(&0xa5);
    let written = (0..4).any(|number| {
        quarter(&mut secret, number)
            .iter()
            .any(|byte| *byte != 0xa5)
    });
    report(
        "blocked",
        at != 0 && physical(&secret)? == at && !read && !written,
    );

    report("intx", edu.interrupts(INTX, "vfio-intx", "IR-IO-APIC")?);
    report("msi", edu.interrupts(MSI, "vfio-msi", "IR-PCI-MSI")?);
    Ok(())
}
