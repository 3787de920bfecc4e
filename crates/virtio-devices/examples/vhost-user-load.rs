//! A load on a vhost-user disk: 4 KiB requests at random places, always as many as `DEPTH` in flight, from a driver that polls.
//!
//! `vhost-user-load SOCKET read|write DEPTH MILLISECONDS` prints how many requests were done, and in how many nanoseconds.
//!
//! It is also an example of how the frontend goes together with `vring`'s driver side.

use std::error::Error;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_devices::block::spec::{Features as BlockFeatures, T_IN, T_OUT};
use virtio_devices::transport::vhost_user::{FrontendOptions, VhostUserFrontend};
use virtio_devices::{
    DeviceEvents, DeviceType, QueueInterrupt, QueueResources, VirtioDevice, Worker,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{Buffer, DriverQueue, Features, QueueConfig};

const BLOCK: u32 = 4096;
const SECTORS: u64 = BLOCK as u64 / 512;
const QUEUE_SIZE: u16 = 256;
/// Each request has its place: header and status in the first page, data in the second.
const PLACES: u64 = 0x1_0000;
const PLACE: u64 = 2 * BLOCK as u64;
const STATUS: u64 = 16;

struct Ignored;

impl QueueInterrupt for Ignored {
    fn trigger(&self) {}
}

impl DeviceEvents for Ignored {
    fn config_changed(&self) {}

    fn needs_reset(&self) {
        eprintln!("vhost-user-load: the backend has failed");
        std::process::exit(1);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, kind, depth, milliseconds] = &args[..] else {
        return Err("usage: vhost-user-load SOCKET read|write DEPTH MILLISECONDS".into());
    };
    let write = match kind.as_str() {
        "read" => false,
        "write" => true,
        _ => return Err(format!("neither read nor write: {kind}").into()),
    };
    let depth: u16 = depth.parse()?;
    // A request takes three descriptors.
    if !(1..=QUEUE_SIZE / 3).contains(&depth) {
        return Err(format!("depth {depth} is not in 1..={}", QUEUE_SIZE / 3).into());
    }
    let duration = Duration::from_millis(milliseconds.parse()?);

    // Memory that the backend can map.
    let len = PLACES + u64::from(depth) * PLACE;
    let file = std::fs::File::from(memfd_create("driver", MemfdFlags::CLOEXEC)?);
    file.set_len(len)?;
    let range = (
        GuestAddress(0),
        usize::try_from(len)?,
        Some(FileOffset::new(file, 0)),
    );
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges_with_files([range])?);

    let device = VhostUserFrontend::new(
        UnixStream::connect(socket)?,
        Worker::spawn("relay")?,
        FrontendOptions {
            device_type: DeviceType::BLOCK,
            queues: 1,
            queue_size: QUEUE_SIZE,
            hidden_features: 0,
            config: Vec::new(),
        },
    )?;
    device.connect(Arc::new(Ignored));
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    let blocks = u64::from_le_bytes(capacity) / SECTORS;

    let ring_features = Features::VERSION_1 | Features::EVENT_IDX & device.ring_features();
    let config = QueueConfig {
        size: QUEUE_SIZE.into(),
        desc: GuestAddress(0),
        avail: GuestAddress(0x4000),
        used: GuestAddress(0x8000),
        features: ring_features,
    };
    let mut queue = DriverQueue::new(Arc::clone(&memory), &config)?;
    queue.disable_interrupts();
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let resources = QueueResources {
        memory: Arc::clone(&memory),
        features: ring_features.bits() | device.features() & BlockFeatures::FLUSH.bits(),
        config,
        kick: Arc::clone(&kick),
        interrupt: Arc::new(Ignored),
        in_flight: None,
    };
    device.start_queue(0, resources, None)?;

    // xorshift64 (Marsaglia 2003).
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut add = |queue: &mut DriverQueue<_, u64>, place: u64| -> Result<(), Box<dyn Error>> {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let sector = random
            .checked_rem(blocks)
            .ok_or("the disk has no room for a request")?
            * SECTORS;
        let kind = if write { T_OUT } else { T_IN };
        memory.write_obj(kind, GuestAddress(place))?;
        memory.write_obj(sector, GuestAddress(place + 8))?;
        let buffer = |addr, len, writable| Buffer {
            addr: GuestAddress(addr),
            len,
            writable,
        };
        let data = place + u64::from(BLOCK);
        queue.add(
            &[
                buffer(place, 16, false),
                buffer(data, BLOCK, !write),
                buffer(place + STATUS, 1, true),
            ],
            place,
        )?;
        Ok(())
    };
    let start = Instant::now();
    for place in 0..u64::from(depth) {
        add(&mut queue, PLACES + place * PLACE)?;
    }
    kick.write(1)?;
    let (mut done, mut in_flight) = (0u64, depth);
    while in_flight != 0 {
        let Some(used) = queue.take()? else {
            std::hint::spin_loop();
            continue;
        };
        let status: u8 = memory.read_obj(GuestAddress(used.token + STATUS))?;
        if status != 0 {
            return Err(format!("a request ended with status {status}").into());
        }
        done += 1;
        if start.elapsed() < duration {
            add(&mut queue, used.token)?;
            if queue.needs_kick() {
                kick.write(1)?;
            }
        } else {
            in_flight -= 1;
        }
    }
    println!("{done} {}", start.elapsed().as_nanos());
    device.stop_queue(0);
    Ok(())
}
