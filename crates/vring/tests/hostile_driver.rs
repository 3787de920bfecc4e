//! What a driver can do to a queue besides chains that are wrong in themselves.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod ring;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ring::{Desc, SplitRing};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};
use vring::{ConfigError, Error, Features, NoMemory, Queue, QueueConfig, Rule, StartError};

fn config(size: u32, features: Features) -> QueueConfig {
    let addr = GuestAddress(0x10000);
    QueueConfig {
        size,
        desc: addr,
        avail: addr,
        used: addr,
        features,
    }
}

/// THREATS: queue size 0, truncated to 16 bits, not a power of two (mvm #1860).
#[test]
fn queue_size_sweep() {
    let interesting = (0..=0x2_0000u32).chain((0..32).flat_map(|bit| {
        let power = 1u32 << bit;
        [
            power.wrapping_sub(1),
            power,
            power + 1,
            power | 0x8000,
            power | 0x100,
        ]
    }));
    for size in interesting.chain([u32::MAX, u32::MAX - 1]) {
        let in_range = (1..=32768).contains(&size);
        let split = if !in_range {
            Err(ConfigError::Size(size))
        } else if size.is_power_of_two() {
            Ok(size as u16)
        } else {
            Err(ConfigError::NotPowerOfTwo(size))
        };
        assert_eq!(config(size, Features::VERSION_1).validate(), split);
        let packed = if in_range {
            Ok(size as u16)
        } else {
            Err(ConfigError::Size(size))
        };
        assert_eq!(config(size, Features::RING_PACKED).validate(), packed);
    }
}

#[test]
fn areas_are_aligned_and_end_before_the_address_space() {
    for (features, aligns) in [
        (Features::VERSION_1, [16, 2, 4]),
        (Features::RING_PACKED, [16, 4, 4]),
    ] {
        let good = config(4, features);
        for (area, align) in aligns.into_iter().enumerate() {
            for offset in 0..=32 {
                let mut config = good;
                let field = [&mut config.desc, &mut config.avail, &mut config.used]
                    .into_iter()
                    .nth(area)
                    .unwrap();
                field.0 += offset;
                let misaligned = matches!(config.validate(), Err(ConfigError::Misaligned { align: a, .. }) if a == align);
                assert_eq!(misaligned, offset % align != 0);
                assert_eq!(config.validate().is_ok(), offset % align == 0);
            }
            let mut config = good;
            let field = [&mut config.desc, &mut config.avail, &mut config.used]
                .into_iter()
                .nth(area)
                .unwrap();
            field.0 = u64::MAX - align + 1;
            assert!(matches!(
                config.validate(),
                Err(ConfigError::Overflow { .. })
            ));
        }
    }
}

#[test]
fn a_ring_outside_of_memory_does_not_start() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    for area in 0..3 {
        let mut config = ring.config;
        let field = [&mut config.desc, &mut config.avail, &mut config.used]
            .into_iter()
            .nth(area)
            .unwrap();
        // It begins in memory and ends outside.
        field.0 = 0x1fff0;
        config.size = 256;
        assert!(
            matches!(
                Queue::new(ring.memory.clone(), &config, None),
                Err(StartError::Ring(_))
            ),
            "{area}"
        );
    }
}

/// THREATS: avail index jumps more than the queue size (vm-virtio #196, Firecracker #3149).
#[test]
fn avail_index_jumps() {
    for (size, start) in [(1u16, 0xffffu16), (4, 0), (4, 0xfffe)] {
        let ring = SplitRing::new(size, Features::VERSION_1);
        for head in 0..size {
            ring.write_desc(head, Desc::read(0x8000, 1));
            ring.offer(head);
        }
        let state = vring::QueueState::Split(vring::SplitState {
            next_avail: start,
            next_used: start,
            in_flight: Vec::new(),
        });
        for ahead in 0..=u16::MAX {
            ring.set_avail_idx(start.wrapping_add(ahead));
            let mut queue = ring.restore(&state).unwrap();
            let popped = queue.pop(&&*ring.memory);
            if ahead == 0 {
                assert!(popped.unwrap().is_none());
            } else if ahead <= size {
                assert!(popped.unwrap().is_some());
            } else {
                let index = start.wrapping_add(ahead);
                assert_eq!(popped.err(), Some(Error::AvailIndex { index, next: start }));
            }
        }
    }
}

/// THREATS: one head offered twice while in flight (openvmm #4002).
#[test]
fn one_head_offered_twice() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    let mut queue = ring.queue();
    ring.write_desc(2, Desc::read(0x8000, 1));
    ring.offer(2);
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    queue.push(chain, 0).unwrap();
    ring.offer(2);
    ring.offer(2);
    let _in_flight = queue.pop(&ring.view()).unwrap().unwrap();
    assert_eq!(
        queue.pop(&ring.view()).err(),
        Some(Error::Chain {
            head: 2,
            rule: Rule::InFlight
        })
    );
}

/// THREATS: used length above what was written (CVE-2024-8612).
#[test]
fn used_length_above_what_was_writable() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    let mut queue = ring.queue();
    for head in [0, 1] {
        ring.write_desc(head, Desc::write(0x8000, 8));
        ring.offer(head);
    }
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    assert_eq!(
        queue.push(chain, 9),
        Err(Error::Written {
            head: 0,
            written: 9,
            writable: 8
        })
    );
    assert_eq!(ring.used_idx(), 0);
    // That is a bug of the device, not of the driver: the queue goes on.
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    assert!(chain.writer().write_all(&[0; 9]).is_err());
    queue.push(chain, 8).unwrap();
    assert_eq!(ring.used(), [(1, 8)]);
}

/// THREATS: malformed chain spins, kills the worker or leaks the head (openvmm #4045, Cloud Hypervisor #8401 #8142). The queue is
/// broken until it is started again, and a queue started again on the same ring works.
#[test]
fn a_malformed_chain_breaks_the_queue_until_reset() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    let mut queue = ring.queue();
    ring.write_desc(0, Desc::read(0x8000, 1));
    ring.write_desc(
        1,
        Desc {
            addr: 0x8000,
            len: 1,
            flags: Desc::NEXT,
            next: 1,
        },
    );
    ring.offer(0);
    ring.offer(1);
    let good = queue.pop(&ring.view()).unwrap().unwrap();
    assert_eq!(
        queue.pop(&ring.view()).err(),
        Some(Error::Chain {
            head: 1,
            rule: Rule::TooLong
        })
    );
    for _ in 0..3 {
        assert_eq!(queue.pop(&ring.view()).err(), Some(Error::Broken));
        assert_eq!(queue.needs_interrupt(), Err(Error::Broken));
        assert_eq!(queue.enable_kicks(), Err(Error::Broken));
        queue.unmap();
    }
    assert_eq!(queue.push(good, 0), Err(Error::Broken));
    assert_eq!(ring.used_idx(), 0);
    ring.set_avail_idx(1);
    let mut queue = ring.queue();
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    queue.push(chain, 0).unwrap();
    assert_eq!(ring.used(), [(0, 0)]);
}

/// THREATS: address + length overflow; range crosses a region's end (CVE-2019-18960, Cloud Hypervisor #8232).
#[test]
fn buffers_at_the_ends_of_memory() {
    const END: u64 = 0x20000;
    let ring = SplitRing::new(4, Features::VERSION_1 | Features::INDIRECT_DESC);
    ring.offer(0);
    let ranges = [
        (END - 1, 1, true),
        (END - 1, 2, false),
        (END, 1, false),
        (0, END as u32, true),
        (0, END as u32 + 1, false),
        (0, u32::MAX, false),
        (u64::MAX, 1, false),
        (u64::MAX - 15, 16, false),
        (u64::MAX - 15, 17, false),
        (u64::MAX, u32::MAX, false),
        (1 << 63, u32::MAX, false),
        // An empty buffer may be anywhere.
        (u64::MAX, 0, true),
    ];
    for (addr, len, good) in ranges {
        for flags in [0, Desc::WRITE] {
            ring.write_desc(
                0,
                Desc {
                    addr,
                    len,
                    flags,
                    next: 0,
                },
            );
            let popped = ring
                .queue()
                .pop(&&*ring.memory)
                .map(|chain| chain.is_some());
            let error = Rule::Memory(NoMemory {
                addr,
                len: len.into(),
            });
            let expected = if good {
                Ok(true)
            } else {
                Err(Error::Chain {
                    head: 0,
                    rule: error,
                })
            };
            assert_eq!(popped, expected, "{addr:#x} {len:#x}");
        }
        let len = len & !15;
        if len != 0 {
            ring.write_desc(
                0,
                Desc {
                    addr,
                    len,
                    flags: Desc::INDIRECT,
                    next: 0,
                },
            );
            let popped = ring
                .queue()
                .pop(&&*ring.memory)
                .map(|chain| chain.is_some());
            // Of a table only the entries that are linked are read: here the first, which is zero.
            let rule = if len > 16 * 0xffff {
                Some(Rule::IndirectLength(len))
            } else if addr > END - 16 || addr.checked_add(len.into()).is_none() {
                let len = len.into();
                Some(Rule::Memory(NoMemory { addr, len }))
            } else {
                None
            };
            let expected = rule.map_or(Ok(true), |rule| Err(Error::Chain { head: 0, rule }));
            assert_eq!(popped, expected, "{addr:#x} {len:#x}");
        }
    }
}

/// THREATS: host allocation or loop from an inflated length: total bytes of a chain checked in 64 bits (Firecracker 4392a8d19,
/// CVE-2016-5403). The buffers overlap, so that they need no memory.
#[test]
fn total_bytes_of_a_chain() {
    let ring = SplitRing::new(16, Features::VERSION_1);
    // 9 times 2²⁹ bytes pass 2³² and do not fit 32 bits, and would be a small number there.
    let big: std::sync::Arc<vm_memory::GuestMemoryMmap<()>> = std::sync::Arc::new(
        vm_memory::GuestMemoryMmap::from_ranges(&[
            (GuestAddress(0), 0x20000),
            (GuestAddress(1 << 32), 1 << 29),
        ])
        .unwrap(),
    );
    let ring = SplitRing {
        memory: big,
        ..ring
    };
    let indices: Vec<u16> = (0..9).collect();
    ring.offer(0);
    for (count, rule) in [(8, None), (9, Some(Rule::Bytes(9 << 29)))] {
        ring.write_chain(
            &indices[..count],
            &vec![Desc::write(1 << 32, 1 << 29); count],
        );
        let popped = ring
            .queue()
            .pop(&&*ring.memory)
            .map(|chain| chain.map(|chain| chain.writable_len()));
        let expected = match rule {
            None => Ok(Some(1 << 32)),
            Some(rule) => Err(Error::Chain { head: 0, rule }),
        };
        assert_eq!(popped, expected);
    }
}

/// THREATS: indirect length 0, not a multiple of 16, or of more entries than can be numbered, of which `virtio-queue` makes an empty chain.
#[test]
fn length_of_an_indirect_table() {
    let ring = SplitRing::new(16, Features::VERSION_1 | Features::INDIRECT_DESC);
    ring.offer(0);
    for len in [0, 8, 24, 0x10_0000, 0xaa11_0100, u32::MAX] {
        let table = Desc {
            flags: Desc::INDIRECT,
            ..Desc::read(0x8000, len)
        };
        ring.write_chain(&[0], &[table]);
        let rule = Rule::IndirectLength(len);
        assert_eq!(
            ring.queue().pop(&ring.view()).err(),
            Some(Error::Chain { head: 0, rule })
        );
    }
}

/// THREATS: double fetch: descriptor, avail index or request header changes between reads (Xen and QEMU, many). While the device
/// runs, another thread rewrites descriptor 0 between two good ones and bad ones, and the avail index: every chain is one of the
/// good ones as a whole, or an error.
#[test]
fn descriptors_that_change_while_they_are_read() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    let good = [(0x8000u64, 0x10u64), (0x9000, 0x20)];
    let word = |addr: u64| -> &AtomicU64 {
        let region = ring.memory.find_region(GuestAddress(addr)).unwrap();
        region
            .get_atomic_ref(region.to_region_addr(GuestAddress(addr)).unwrap().0 as usize)
            .unwrap()
    };
    let (first, second) = (word(0x1000), word(0x1008));
    first.store(good[0].0, Ordering::Relaxed);
    second.store(good[0].1, Ordering::Relaxed);
    ring.offer(0);
    /// Ends the other thread also when a check fails.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let mut outcomes = [0; 2];
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        scope.spawn(|| {
            let writable = u64::from(Desc::WRITE) << 32;
            let looping = u64::from(Desc::NEXT) << 32;
            while !stop.load(Ordering::Relaxed) {
                for (addr, rest) in [
                    good[0],
                    good[1],
                    (0x8000, 0xffff_ffff),
                    (u64::MAX, 0x10),
                    (0x8000, writable | 8),
                    (0x8000, looping | 1),
                ] {
                    first.store(addr, Ordering::Relaxed);
                    second.store(rest, Ordering::Relaxed);
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..2_000 {
            let mut queue = ring.queue();
            match queue.pop(&&*ring.memory) {
                Ok(Some(chain)) => {
                    outcomes[0] += 1;
                    let read: usize = chain.reader().slices().map(|slice| slice.len()).sum();
                    let write: usize = chain.writer().slices().map(|slice| slice.len()).sum();
                    assert_eq!(
                        (read as u64, write as u64),
                        (chain.readable_len(), chain.writable_len())
                    );
                    // As often as the descriptor led back to itself, which its length of 1 counts, it was read once more.
                    assert!(
                        matches!(
                            (read, write),
                            (0x10..=0x13 | 0x20..=0x23, 0) | (0..=3, 8)
                        ),
                        "{read} {write}"
                    );
                }
                Ok(None) => {}
                Err(Error::Chain { head: 0, .. }) => outcomes[1] += 1,
                Err(error) => assert_eq!(Err(error), Ok(())),
            }
        }
    });
    assert!(outcomes[0] + outcomes[1] > 0);
}
