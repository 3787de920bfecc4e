//! The log of written pages that a frontend keeps while it migrates (vhost-user, "Migration").
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use driver::{Memory, Part, Ring, wait_until};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::transport::vhost_user::VhostUserBackend;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u64 = 0x40_0000;
const LOG_ALL: u64 = 1 << 26;
const FEATURES: u64 = 1 << 32 | 1 << 30;

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

/// The pages that are marked, and no more.
fn marked(log: &File) -> Vec<u64> {
    let mut bytes = vec![0; usize::try_from(SIZE / 0x8000).unwrap()];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let bit = |page: u64| bytes.get(usize::try_from(page / 8).unwrap()).unwrap() >> (page % 8) & 1;
    (0..SIZE / 0x1000).filter(|page| bit(*page) != 0).collect()
}

#[test]
fn what_the_device_writes_is_marked_while_it_is_wanted() {
    let disk = MemoryDisk::new(vec![9; 64 * 512], false);
    let workers = vec![Worker::spawn("disk").unwrap()];
    let block = Block::new(disk, workers, BlockOptions::default()).unwrap();
    let backend = VhostUserBackend::new(Arc::new(block));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let serving = thread::spawn(move || backend.serve(theirs));

    let ram = file(SIZE);
    let handle = ram.as_raw_fd();
    let range = (
        GuestAddress(0),
        usize::try_from(SIZE).unwrap(),
        Some(FileOffset::new(ram, 0)),
    );
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
    let mut ring = Ring::new(&memory, 0, 64, FEATURES);
    let resources = ring.resources();

    let mut frontend = Frontend::from_stream(ours, 1);
    frontend.set_owner().unwrap();
    frontend.get_features().unwrap();
    frontend.get_protocol_features().unwrap();
    let protocol = VhostUserProtocolFeatures::LOG_SHMFD;
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_features(FEATURES).unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: SIZE,
        userspace_addr: 1 << 40,
        mmap_offset: 0,
        mmap_handle: handle,
    };
    frontend.set_mem_table(&[region]).unwrap();
    frontend.set_vring_num(0, 64).unwrap();
    let address = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: (1 << 40) + resources.config.desc.0,
        used_ring_addr: (1 << 40) + resources.config.used.0,
        avail_ring_addr: (1 << 40) + resources.config.avail.0,
        log_addr: None,
    };
    frontend.set_vring_addr(0, &address).unwrap();
    frontend.set_vring_base(0, 0).unwrap();
    frontend
        .set_vring_call(0, &EventFd::new(EFD_NONBLOCK).unwrap())
        .unwrap();
    frontend.set_vring_kick(0, &resources.kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();

    // Reads sector 0 to the end of page 0x100 and the start of the next.
    let read = |ring: &mut Ring| {
        let header = Part::Read(vec![0; 16]);
        ring.send(&[header, Part::Raw(0x10_0f00, 513, true)]);
        let mut used = None;
        wait_until("nothing is read", || {
            used = ring.try_used();
            used.is_some()
        });
        assert_eq!(used.unwrap().bytes.first(), Some(&9));
    };
    let log = file(SIZE / 0x8000);
    read(&mut ring);
    let log_region = VhostUserDirtyLogRegion {
        mmap_size: SIZE / 0x8000,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    frontend.set_log_base(0, Some(log_region)).unwrap();
    read(&mut ring);
    assert!(marked(&log).is_empty());

    // The ring runs when logging begins, and when it ends.
    frontend.set_features(FEATURES | LOG_ALL).unwrap();
    // The answer comes when the features are in force.
    frontend.get_features().unwrap();
    read(&mut ring);
    let used_ring = resources.config.used.0 / 0x1000;
    assert_eq!(marked(&log), [used_ring, 0x100, 0x101]);

    frontend.set_features(FEATURES).unwrap();
    frontend.get_features().unwrap();
    log.write_all_at(&vec![0; usize::try_from(SIZE / 0x8000).unwrap()], 0)
        .unwrap();
    read(&mut ring);
    assert!(marked(&log).is_empty());
    drop(frontend);
    serving.join().unwrap().unwrap();
}
