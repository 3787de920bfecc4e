//! Frontends that send what no frontend should. The backend refuses, hangs up, and serves the next one: THREATS takes a vhost-user
//! peer for as hostile as a guest.
#![expect(clippy::unwrap_used, reason = "test code")]

mod raw_frontend;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use proptest::prelude::*;
use raw_frontend::*;
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::transport::vhost_user::{MemoryError, VhostUserBackend, VhostUserError};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

fn backend() -> Arc<VhostUserBackend> {
    let disk = MemoryDisk::new(vec![0; 512], false);
    let workers = vec![Worker::spawn("disk").unwrap()];
    let block = Block::new(disk, workers, BlockOptions::default()).unwrap();
    Arc::new(VhostUserBackend::new(Arc::new(block)))
}

/// The backend still serves those who behave.
fn unharmed(backend: &Arc<VhostUserBackend>) {
    let raw = Raw::negotiated(backend);
    raw.share(&file(0x10000), 0, 0x10000, 0);
    raw.send(SET_VRING_NUM, &halves(&[0, 8]), &[]);
    let addresses = [halves(&[0, 0]), words(&[0, 0x2000, 0x1000, 0])].concat();
    raw.send(SET_VRING_ADDR, &addresses, &[]);
    raw.send(SET_VRING_KICK, &words(&[0]), &[event().as_raw_fd()]);
    raw.send(SET_VRING_ENABLE, &halves(&[0, 1]), &[]);
    raw.send(GET_VRING_BASE, &halves(&[0, 0]), &[]);
    assert_eq!(raw.reply(), halves(&[0, 0]));
    raw.served();
}

/// THREATS "a vhost-user peer": memory that the file does not have would raise SIGBUS when it is touched.
#[test]
fn memory_beyond_the_end_of_its_file_is_refused() {
    let backend = backend();
    for (size, offset) in [
        (0x2000, 0),
        (0x1000, 0x1000),
        (u64::MAX >> 1, 0),
        (0x1000, 1 << 62),
    ] {
        let raw = Raw::negotiated(&backend);
        raw.share(&file(0x1000), 0, size, offset);
        let refused = raw.refused();
        assert!(
            matches!(
                refused,
                VhostUserError::Memory(MemoryError::ShortFile { .. })
            ),
            "{size:#x} at {offset:#x}: {refused}"
        );
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": only files are memory.
#[test]
fn memory_that_is_not_a_file_is_refused() {
    let backend = backend();
    let (socket, _other) = UnixStream::pair().unwrap();
    let (event, zero) = (event(), File::open("/dev/zero").unwrap());
    for fd in [socket.as_raw_fd(), event.as_raw_fd(), zero.as_raw_fd()] {
        let raw = Raw::negotiated(&backend);
        let table = [halves(&[1, 0]), words(&[0, 0x1000, 0, 0])].concat();
        raw.send(SET_MEM_TABLE, &table, &[fd]);
        let refused = raw.refused();
        assert!(
            matches!(refused, VhostUserError::Memory(MemoryError::NotAFile)),
            "{refused}"
        );
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": tables whose regions overlap or pass the end of an address space, or with a wrong number of files.
#[test]
fn impossible_memory_tables_are_refused() {
    let backend = backend();
    let file = file(0x4000);
    let region = |guest: u64, user: u64| words(&[guest, 0x2000, user, 0]);
    let tables = [
        (2, [region(0, 0), region(0x1000, 0x10000)].concat(), 2),
        (1, region(u64::MAX - 0x1000, 0), 1),
        (1, region(0, u64::MAX - 0x1000), 1),
        (1, words(&[0, 0, 0, 0]), 1),
        (1, region(0, 0), 0),
        (1, region(0, 0), 2),
        (2, region(0, 0), 2),
        (0, Vec::new(), 0),
        (u32::MAX, region(0, 0), 1),
    ];
    for (count, regions, files) in tables {
        let raw = Raw::negotiated(&backend);
        let table = [halves(&[count, 0]), regions].concat();
        raw.send(SET_MEM_TABLE, &table, &vec![file.as_raw_fd(); files]);
        raw.refused();
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": descriptors that are not events might block whoever reads or writes them.
#[test]
fn events_that_are_not_events_are_refused() {
    let backend = backend();
    let file = file(8);
    let (socket, _other) = UnixStream::pair().unwrap();
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        for fd in [file.as_raw_fd(), socket.as_raw_fd()] {
            let raw = Raw::negotiated(&backend);
            raw.send(code, &words(&[0]), &[fd]);
            let refused = raw.refused();
            assert!(
                matches!(refused, VhostUserError::Descriptor(_)),
                "{code}: {refused}"
            );
        }
    }
    // No descriptor is fine but for kicks: nothing would ever be looked at.
    let raw = Raw::negotiated(&backend);
    raw.send(SET_VRING_CALL, &words(&[0x100]), &[]);
    raw.send(SET_VRING_KICK, &words(&[0x100]), &[]);
    assert!(matches!(raw.refused(), VhostUserError::NoKick(0)));
    unharmed(&backend);
}

/// THREATS "queue size 0, truncated to 16 bits, not a power of two (split)" and "queue or vector selector out of range".
#[test]
fn queues_that_cannot_be_are_refused() {
    let backend = backend();
    for size in [0, 257, 0x1_0000, 0x1_0008, u32::MAX] {
        let raw = Raw::negotiated(&backend);
        raw.send(SET_VRING_NUM, &halves(&[0, size]), &[]);
        let refused = raw.refused();
        assert!(
            matches!(refused, VhostUserError::QueueSize { index: 0, .. }),
            "{size}: {refused}"
        );
    }
    let one = event();
    for index in [1, 0x100, 0x1_0000, u32::MAX] {
        for code in [
            SET_VRING_NUM,
            SET_VRING_BASE,
            GET_VRING_BASE,
            SET_VRING_ENABLE,
        ] {
            let raw = Raw::negotiated(&backend);
            raw.send(code, &halves(&[index, 1]), &[]);
            let refused = raw.refused();
            assert!(
                matches!(refused, VhostUserError::NoQueue(_)),
                "{code} {index}: {refused}"
            );
        }
    }
    for code in [SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR] {
        let raw = Raw::negotiated(&backend);
        raw.send(code, &words(&[0xff]), &[one.as_raw_fd()]);
        assert!(matches!(raw.refused(), VhostUserError::NoQueue(0xff)));
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": a ring outside of shared memory, or where its end is.
#[test]
fn rings_outside_of_memory_do_not_start() {
    let backend = backend();
    for addresses in [
        [0x2_0000, 0x2000, 0x1000],
        [0, u64::MAX - 3, 0x1000],
        [0, 0x2000, 0x2_0000],
        [0xfff0, 0x2000, 0x1000],
        [0, 0xfffc, 0x1000],
    ] {
        let raw = Raw::negotiated(&backend);
        raw.share(&file(0x10000), 0, 0x10000, 0);
        raw.send(SET_VRING_NUM, &halves(&[0, 8]), &[]);
        let [desc, used, avail] = addresses;
        let payload = [halves(&[0, 0]), words(&[desc, used, avail, 0])].concat();
        raw.send(SET_VRING_ADDR, &payload, &[]);
        raw.send(SET_VRING_KICK, &words(&[0]), &[event().as_raw_fd()]);
        raw.send(SET_VRING_ENABLE, &halves(&[0, 1]), &[]);
        let refused = raw.refused();
        assert!(
            matches!(
                refused,
                VhostUserError::RingAddress(0) | VhostUserError::Device(_)
            ),
            "{addresses:x?}: {refused}"
        );
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": a log with no bits for some of the memory, or that its file does not hold.
#[test]
fn short_logs_are_refused() {
    let backend = backend();
    const LOG_ALL: u64 = 1 << 26;
    for (len, size, offset) in [(1, 2, 0), (0, 1, 0), (0x1000, 1, 0x1000), (1, u64::MAX, 0)] {
        let raw = Raw::negotiated(&backend);
        raw.send(
            SET_LOG_BASE,
            &words(&[size, offset]),
            &[file(len).as_raw_fd()],
        );
        raw.refused();
    }
    // Two bytes are 16 pages; the memory has 17.
    for (pages, enough) in [(16, true), (17, false)] {
        let raw = Raw::negotiated(&backend);
        raw.share(&file(0x1000 * pages), 0, 0x1000 * pages, 0);
        raw.send(SET_LOG_BASE, &words(&[2, 0]), &[file(2).as_raw_fd()]);
        assert_eq!(raw.reply().len(), 16);
        let features = words(&[VERSION_1 | PROTOCOL_FEATURES | LOG_ALL]);
        raw.send(SET_FEATURES, &features, &[]);
        if enough {
            raw.served();
        } else {
            let refused = raw.refused();
            assert!(
                matches!(refused, VhostUserError::Memory(MemoryError::ShortLog(0))),
                "{refused}"
            );
        }
    }
    unharmed(&backend);
}

/// THREATS "a vhost-user peer": as many regions as it likes.
#[test]
fn memory_slots_are_bounded_and_found_again() {
    let backend = backend();
    let file = file(0x1000);
    let slot = |at: u64| words(&[0, at << 12, 0x1000, at << 12, 0]);
    let raw = Raw::negotiated(&backend);
    for at in 0..512 {
        raw.send(ADD_MEM_REG, &slot(at), &[file.as_raw_fd()]);
    }
    raw.send(REM_MEM_REG, &slot(7), &[]);
    raw.send(ADD_MEM_REG, &slot(7), &[file.as_raw_fd()]);
    raw.send(ADD_MEM_REG, &slot(512), &[file.as_raw_fd()]);
    assert!(matches!(
        raw.refused(),
        VhostUserError::Memory(MemoryError::TooMany)
    ));
    let raw = Raw::negotiated(&backend);
    raw.send(REM_MEM_REG, &slot(7), &[]);
    assert!(matches!(
        raw.refused(),
        VhostUserError::Memory(MemoryError::Unknown { guest: 0x7000, .. })
    ));
    unharmed(&backend);
}

/// THREATS "host allocation or loop from an inflated length".
#[test]
fn in_flight_tracking_is_for_the_queues_there_are() {
    let backend = backend();
    for (queues, size) in [(2, 64), (u16::MAX, 64), (1, 32769), (1, u16::MAX)] {
        let raw = Raw::negotiated(&backend);
        raw.send(GET_INFLIGHT_FD, &in_flight(0, 0, queues, size), &[]);
        let refused = raw.refused();
        assert!(
            matches!(refused, VhostUserError::InFlight { .. }),
            "{queues} {size}: {refused}"
        );
    }
    let raw = Raw::negotiated(&backend);
    raw.send(GET_INFLIGHT_FD, &in_flight(0, 0, 1, 64), &[]);
    // 16 bytes and 16 for each descriptor, to the next multiple of 64.
    // What follows is padding.
    assert_eq!(raw.reply()[..20], in_flight(1088, 0, 1, 64)[..20]);
    raw.served();
    unharmed(&backend);
}

/// THREATS "a restored snapshot and a vhost-user peer are hostile": a region that is not what its message says.
#[test]
fn in_flight_regions_that_do_not_fit_do_not_start_a_ring() {
    let backend = backend();
    let mut other_version = vec![0; 1088];
    other_version[8] = 2;
    let mut other_size = vec![0; 1088];
    other_size[8] = 1;
    other_size[10] = 65;
    let mut batch_of_nine = vec![0; 1088];
    batch_of_nine[8] = 1;
    batch_of_nine[10] = 64;
    batch_of_nine[14] = 0xff;
    for (message, bytes) in [
        (in_flight(1088, 0, 1, 64), vec![0; 1087]),
        (in_flight(64, 0, 1, 64), vec![0; 1088]),
        (in_flight(1088, 0, 1, 4), other_version.clone()),
        (in_flight(1088, 0, 1, 64), other_version),
        (in_flight(1088, 0, 1, 64), other_size),
        (in_flight(1088, 0, 1, 64), batch_of_nine),
    ] {
        let raw = Raw::negotiated(&backend);
        raw.share(&file(0x10000), 0, 0x10000, 0);
        let region = file(0);
        region.write_all_at(&bytes, 0).unwrap();
        raw.send(SET_INFLIGHT_FD, &message, &[region.as_raw_fd()]);
        raw.send(SET_VRING_NUM, &halves(&[0, 8]), &[]);
        let addresses = [halves(&[0, 0]), words(&[0, 0x2000, 0x1000, 0])].concat();
        raw.send(SET_VRING_ADDR, &addresses, &[]);
        raw.send(SET_VRING_KICK, &words(&[0]), &[event().as_raw_fd()]);
        raw.send(SET_VRING_ENABLE, &halves(&[0, 1]), &[]);
        let refused = raw.refused();
        assert!(
            matches!(
                refused,
                VhostUserError::Memory(_)
                    | VhostUserError::InFlight { .. }
                    | VhostUserError::Device(_)
            ),
            "{refused}"
        );
    }
    unharmed(&backend);
}

/// QEMU and DPDK enable the rings of a network card before they accept features.
#[test]
fn rings_may_be_enabled_before_the_features_are_accepted() {
    let backend = backend();
    for enable in [1, 0] {
        let raw = Raw::connect(&backend);
        raw.send(SET_VRING_ENABLE, &halves(&[0, enable]), &[]);
        raw.send(SET_FEATURES, &words(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
        // A ring that is enabled starts now, and finds no memory.
        raw.send(SET_VRING_KICK, &words(&[0]), &[event().as_raw_fd()]);
        if enable == 1 {
            assert!(matches!(raw.refused(), VhostUserError::RingAddress(0)));
        } else {
            raw.served();
        }
    }
    // With NEED_REPLY it is acknowledged, if REPLY_ACK was accepted.
    let raw = Raw::connect(&backend);
    raw.send(SET_PROTOCOL_FEATURES, &words(&[PROTOCOL]), &[]);
    let message = halves(&[SET_VRING_ENABLE, 9, 8, 0, 1]);
    raw.stream
        .send_with_fds(&[message.as_slice()], &[])
        .unwrap();
    assert_eq!(raw.reply(), words(&[0]));
    raw.served();
    let raw = Raw::connect(&backend);
    raw.send(SET_VRING_ENABLE, &halves(&[1, 1]), &[]);
    assert!(matches!(raw.refused(), VhostUserError::NoQueue(1)));
    unharmed(&backend);
}

#[test]
fn features_that_are_not_offered_are_refused() {
    let backend = backend();
    for bit in [0, 11, 25, 33, 63] {
        let raw = Raw::negotiated(&backend);
        raw.send(SET_FEATURES, &words(&[VERSION_1 | 1 << bit]), &[]);
        assert!(matches!(raw.refused(), VhostUserError::Features { .. }));
    }
    let raw = Raw::connect(&backend);
    raw.send(SET_PROTOCOL_FEATURES, &words(&[1 << 16]), &[]);
    assert!(matches!(raw.refused(), VhostUserError::Features { .. }));
    unharmed(&backend);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// THREATS "a vhost-user peer": whatever comes in whatever order, the backend lives.
    #[test]
    fn any_messages_leave_the_backend_alive(
        messages in proptest::collection::vec(
            (
                prop_oneof![
                    Just(SET_FEATURES), Just(SET_MEM_TABLE), Just(SET_VRING_NUM), Just(SET_VRING_ADDR),
                    Just(SET_VRING_BASE), Just(SET_VRING_KICK), Just(SET_VRING_CALL),
                    Just(SET_VRING_ENABLE), Just(GET_CONFIG), Just(34), Just(REM_MEM_REG), 0u32..50
                ],
                prop_oneof![
                    any::<Vec<u8>>(),
                    Just(words(&[0])),
                    (0u32..2, any::<u32>()).prop_map(|(a, b)| halves(&[a, b])),
                    (0u64..2, 0u64..0x12000).prop_map(|(a, b)| {
                        [halves(&[1, 0]), words(&[a << 12, b, a << 12, 0])].concat()
                    }),
                    (0u64..0x1200, 0u64..0x12000).prop_map(|(a, b)| {
                        [halves(&[0, 0]), words(&[a << 4, b & !3, a << 1, 0])].concat()
                    }),
                ],
                0..4usize,
            ),
            0..12,
        )
    ) {
        let backend = backend();
        let (file, event) = (file(0x10000), event());
        let raw = Raw::negotiated(&backend);
        raw.share(&file, 0, 0x10000, 0);
        for (code, payload, fd) in messages {
            let files = match fd {
                0 => vec![],
                1 => vec![event.as_raw_fd()],
                2 => vec![file.as_raw_fd()],
                _ => vec![file.as_raw_fd(), event.as_raw_fd()],
            };
            raw.send(code, &payload, &files);
        }
        drop(raw.stream);
        let _ = raw.serving.join().unwrap();
        unharmed(&backend);
    }
}
