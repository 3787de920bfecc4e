//! Drives a virtual function of a virtio network card from user space, through VFIO: `vf BDF MAC` reports one `guest: vf WHAT: RESULT` line a
//! check. The lab's guest behind an IOMMU runs it; nothing but the standard library and C's, so that `rustc` alone builds it.
//!
//! Names and numbers: include/uapi/linux/vfio.h, virtio 1.3 §2.7, §4.1 and §5.1, RFC 826.

#![expect(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    reason = "sizes and offsets of this program's own; a panic ends it, and its check fails"
)]

use std::ffi::{c_int, c_ulong};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};
use std::{env, ptr, thread};

unsafe extern "C" {
    fn ioctl(file: c_int, request: c_ulong, ...) -> c_int;
}

/// `_IO(';', 100 + n)`.
const VFIO_SET_IOMMU: c_ulong = 0x3b66;
const VFIO_GROUP_SET_CONTAINER: c_ulong = 0x3b68;
const VFIO_GROUP_GET_DEVICE_FD: c_ulong = 0x3b6a;
const VFIO_DEVICE_GET_REGION_INFO: c_ulong = 0x3b6c;
const VFIO_DEVICE_RESET: c_ulong = 0x3b6f;
const VFIO_IOMMU_MAP_DMA: c_ulong = 0x3b71;

const VFIO_TYPE1V2_IOMMU: c_ulong = 3;
const CONFIG: u32 = 7;

// Structures of a virtio function, and registers of the common one.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

const MAC: u64 = 1 << 5;
const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
const SR_IOV: u64 = 1 << 37;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Bytes before each frame.
const HEADER: usize = 12;

/// Where the function finds the pages that are mapped: as a physical address it is none of a program's.
const IOVA: u64 = 0x10_0000;
/// Where it finds nothing.
const NOWHERE: u64 = 0x20_0000;
const PAGE: usize = 4096;
const PAGES: usize = 4;

/// A ring of 4 descriptors for each queue in a page of its own, then a page for each one's buffer.
#[repr(C, align(4096))]
struct Memory([u8; PAGE * PAGES]);

// Offsets in a ring's page.
const SIZE: u16 = 4;
const AVAIL: usize = 0x100;
const USED: usize = 0x200;

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

struct Function {
    container: File,
    device: File,
    config: u64,
    common: u64,
    notify: u64,
    notify_multiplier: u64,
    own: u64,
    memory: Box<Memory>,
    /// Of the container: closed, it would take the device with it.
    _group: File,
}

impl Function {
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
        let config = region(&device, CONFIG)?;
        // Memory space, bus master.
        device.write_all_at(&[6, 0], config + 4)?;
        let mut function = Self {
            container,
            device,
            config,
            common: 0,
            notify: 0,
            notify_multiplier: 0,
            own: 0,
            memory: Box::new(Memory([0; PAGE * PAGES])),
            _group: group,
        };
        function.find_structures()?;
        function.map()?;
        Ok(function)
    }

    /// Follows the list of capabilities to virtio's.
    fn find_structures(&mut self) -> io::Result<()> {
        let mut at = self.read(self.config + 0x34, 1)?;
        while at != 0 {
            let at_config = self.config + at;
            if self.read(at_config, 1)? == 9 {
                let kind = self.read(at_config + 3, 1)? as u8;
                let bar = self.read(at_config + 4, 1)? as u32;
                let offset = self.read(at_config + 8, 4)?;
                let start = region(&self.device, bar)? + offset;
                match kind {
                    COMMON => self.common = start,
                    NOTIFY => {
                        self.notify = start;
                        self.notify_multiplier = self.read(at_config + 16, 4)?;
                    }
                    DEVICE => self.own = start,
                    _ => {}
                }
            }
            at = self.read(at_config + 1, 1)?;
        }
        Ok(())
    }

    fn map(&mut self) -> io::Result<()> {
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
            address: ptr::from_mut(&mut *self.memory) as u64,
            iova: IOVA,
            length: (PAGE * PAGES) as u64,
        };
        call(self.container.as_raw_fd(), VFIO_IOMMU_MAP_DMA, &raw mut map)?;
        Ok(())
    }

    fn read(&self, at: u64, width: usize) -> io::Result<u64> {
        let mut value = [0; 8];
        self.device.read_exact_at(&mut value[..width], at)?;
        Ok(u64::from_le_bytes(value))
    }

    fn write(&self, register: u64, value: u64, width: usize) -> io::Result<()> {
        let bytes = value.to_le_bytes();
        self.device
            .write_all_at(&bytes[..width], self.common + register)
    }

    fn status(&self) -> io::Result<u64> {
        self.read(self.common + STATUS, 1)
    }

    fn features(&self) -> io::Result<u64> {
        let mut features = 0;
        for word in 0..2 {
            self.write(DEVICE_FEATURE_SELECT, word, 4)?;
            features |= self.read(self.common + DEVICE_FEATURE, 4)? << (32 * word);
        }
        Ok(features)
    }

    /// Resets the function and takes it up to DRIVER_OK, with both queues.
    fn start(&mut self) -> io::Result<bool> {
        self.memory.0.fill(0);
        self.write(STATUS, 0, 1)?;
        self.write(STATUS, 1, 1)?;
        self.write(STATUS, 3, 1)?;
        for (word, features) in [(0, MAC), (1, (VERSION_1 | ACCESS_PLATFORM) >> 32)] {
            self.write(DRIVER_FEATURE_SELECT, word, 4)?;
            self.write(DRIVER_FEATURE, features, 4)?;
        }
        self.write(STATUS, 11, 1)?;
        for queue in [RECEIVE, TRANSMIT] {
            let ring = IOVA + u64::from(queue) * PAGE as u64;
            self.write(QUEUE_SELECT, queue.into(), 2)?;
            self.write(QUEUE_SIZE, SIZE.into(), 2)?;
            self.write(QUEUE_DESC, ring, 8)?;
            self.write(QUEUE_DRIVER, ring + AVAIL as u64, 8)?;
            self.write(QUEUE_DEVICE, ring + USED as u64, 8)?;
            self.write(QUEUE_ENABLE, 1, 2)?;
        }
        self.write(STATUS, 15, 1)?;
        Ok(self.status()? == 15)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            // SAFETY: an element of the array; volatile, since the function reads it.
            unsafe { ptr::write_volatile(&raw mut self.memory.0[at + offset], *byte) };
        }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: as in `put`.
        std::array::from_fn(|offset| unsafe {
            ptr::read_volatile(&raw const self.memory.0[at + offset])
        })
    }

    /// Makes a buffer available as the `number`th of a queue, in a descriptor of its own.
    fn offer(&mut self, queue: u16, number: u16, address: u64, length: usize) -> io::Result<()> {
        let ring = usize::from(queue) * PAGE;
        let flags = if queue == RECEIVE { 2_u16 } else { 0 };
        let descriptor = ring + 16 * usize::from(number);
        self.put(descriptor, &address.to_le_bytes());
        self.put(descriptor + 8, &(length as u32).to_le_bytes());
        self.put(descriptor + 12, &flags.to_le_bytes());
        self.put(
            ring + AVAIL + 4 + 2 * usize::from(number),
            &number.to_le_bytes(),
        );
        fence(Ordering::SeqCst);
        self.put(ring + AVAIL + 2, &(number + 1).to_le_bytes());
        fence(Ordering::SeqCst);
        let doorbell = self.notify + u64::from(queue) * self.notify_multiplier;
        self.device.write_all_at(&queue.to_le_bytes(), doorbell)
    }

    /// Waits until a queue has used its first buffer, and returns what was written there.
    fn used(&self, queue: u16) -> Option<Vec<u8>> {
        let ring = usize::from(queue) * PAGE + USED;
        let start = Instant::now();
        while u16::from_le_bytes(self.get(ring + 2)) == 0 {
            if start.elapsed() > Duration::from_secs(5) {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        fence(Ordering::SeqCst);
        let length = u32::from_le_bytes(self.get(ring + 8)) as usize;
        let buffer = buffer(queue) - IOVA;
        Some(
            (0..length.min(PAGE))
                .map(|offset| self.get::<1>(buffer as usize + offset)[0])
                .collect(),
        )
    }
}

/// Where the function finds a queue's buffer.
fn buffer(queue: u16) -> u64 {
    IOVA + (2 + u64::from(queue)) * PAGE as u64
}

const HOST: [u8; 4] = [192, 168, 80, 1];
const OURS: [u8; 4] = [192, 168, 80, 9];

/// Who has the host's address?
fn request(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(OURS);
    frame.extend([0; 6]);
    frame.extend(HOST);
    frame
}

/// Whether the host says that it has it.
fn is_answer(frame: &[u8], mac: [u8; 6]) -> bool {
    let part = |range: std::ops::Range<usize>| {
        frame
            .get(range.start + HEADER..range.end + HEADER)
            .unwrap_or_default()
    };
    part(0..6) == mac && part(12..14) == [8, 6] && part(20..22) == [0, 2] && part(28..32) == HOST
}

fn report(what: &str, right: bool) {
    println!("guest: vf {what}: {}", if right { "ok" } else { "FAILED" });
}

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: vf BDF MAC");
    let address = env::args().nth(1).ok_or_else(usage)?;
    let mac = env::args().nth(2).ok_or_else(usage)?;
    let bytes: Vec<u8> = mac
        .split(':')
        .filter_map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    let mac: [u8; 6] = bytes.try_into().map_err(|_| usage())?;

    let mut function = Function::open(&address)?;
    let id = function.read(function.config, 4)?;
    report("identity", id == 0x1041_1af4);
    function.write(STATUS, 0, 1)?;
    report("reset", function.status()? == 0);
    let features = function.features()?;
    println!("guest: vf offers {features:#x}");
    let wanted = MAC | VERSION_1 | ACCESS_PLATFORM;
    report("features", features & (wanted | SR_IOV) == wanted);
    let own = function.read(function.own, 6)?.to_le_bytes();
    report("address", own.starts_with(&mac));

    report("start", function.start()?);
    function.offer(RECEIVE, 0, buffer(RECEIVE), PAGE)?;
    let frame = request(mac);
    function.put((buffer(TRANSMIT) - IOVA) as usize, &frame);
    function.offer(TRANSMIT, 0, buffer(TRANSMIT), frame.len())?;
    report("sends", function.used(TRANSMIT).is_some());
    let answer = function.used(RECEIVE);
    report(
        "receives",
        answer.is_some_and(|answer| is_answer(&answer, mac)),
    );

    // What is not mapped for it.
    function.offer(TRANSMIT, 1, NOWHERE, frame.len())?;
    thread::sleep(Duration::from_millis(200));
    // SAFETY: the request takes no argument.
    check(unsafe { ioctl(function.device.as_raw_fd(), VFIO_DEVICE_RESET) })?;
    function.device.write_all_at(&[6, 0], function.config + 4)?;
    report("function-level reset", function.status()? == 0);
    Ok(())
}
