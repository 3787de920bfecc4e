//! Guest memory whose pages are scattered, as behind an IOMMU: rings and buffers that are contiguous only in the device's addresses.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{GuestMemorySliceIterator, Result as MemoryResult};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, Permissions, VolatileSlice,
};
use vring::{Buffer, DriverQueue, Error, Features, Queue, QueueConfig, Rule, View};

const PAGE: u64 = 0x1000;
const PAGES: u64 = 64;

/// Page `n` of the device's addresses is page `PAGES - 1 - n` of memory; pages from `read_only` on cannot be written.
struct Paged {
    memory: GuestMemoryMmap<()>,
    read_only: u64,
}

impl Paged {
    fn piece(
        &self,
        addr: u64,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<(VolatileSlice<'_>, usize)> {
        let fault = GuestMemoryError::InvalidGuestAddress(GuestAddress(addr));
        let page = addr / PAGE;
        if page >= PAGES || (access.has_write() && page >= self.read_only) {
            return Err(fault);
        }
        let len = count.min((PAGE - addr % PAGE) as usize);
        let addr = GuestAddress((PAGES - 1 - page) * PAGE + addr % PAGE);
        Ok((GuestMemoryBackend::get_slice(&self.memory, addr, len)?, len))
    }
}

struct Pieces<'a> {
    memory: &'a Paged,
    addr: u64,
    count: usize,
    access: Permissions,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = MemoryResult<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        match self.memory.piece(self.addr, self.count, self.access) {
            Ok((slice, len)) => {
                self.addr += len as u64;
                self.count -= len;
                Some(Ok(slice))
            }
            Err(error) => {
                self.count = 0;
                Some(Err(error))
            }
        }
    }
}

impl std::iter::FusedIterator for Pieces<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for Pieces<'a> {}

impl GuestMemory for Paged {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.get_slices(addr, count, access)
            .unwrap()
            .all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
        Ok(Pieces {
            memory: self,
            addr: addr.0,
            count,
            access,
        })
    }
}

/// Counts the views that are alive.
#[derive(Clone)]
struct Space(Arc<Paged>, Arc<AtomicUsize>);

struct Guard(Space);

impl Clone for Guard {
    fn clone(&self) -> Self {
        self.0.memory()
    }
}

impl std::ops::Deref for Guard {
    type Target = Paged;

    fn deref(&self) -> &Paged {
        &self.0.0
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl GuestAddressSpace for Space {
    type M = Paged;
    type T = Guard;

    fn memory(&self) -> Guard {
        self.1.fetch_add(1, Ordering::Relaxed);
        Guard(self.clone())
    }
}

fn space(read_only: u64) -> Space {
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (PAGE * PAGES) as usize)]).unwrap();
    Space(Arc::new(Paged { memory, read_only }), Arc::default())
}

/// Rings that straddle pages, also where an entry is not aligned to its size.
fn config(features: Features) -> QueueConfig {
    let packed = features.contains(Features::RING_PACKED);
    QueueConfig {
        size: 512,
        desc: GuestAddress(0x10f0),
        avail: GuestAddress(if packed { 0x6000 } else { 0x5ffe }),
        used: GuestAddress(0x8ffc),
        features: features
            | Features::VERSION_1
            | Features::INDIRECT_DESC
            | Features::ACCESS_PLATFORM,
    }
}

#[test]
fn rings_and_buffers_in_scattered_pages() {
    for features in [
        Features::empty(),
        Features::EVENT_IDX,
        Features::RING_PACKED,
    ] {
        let space = space(PAGES);
        let config = config(features);
        let mut driver = DriverQueue::new(space.clone(), &config).unwrap();
        let mut device = Queue::new(space.clone(), &config, None).unwrap();
        let view = View::new(&space);
        // Longer than the queue, so that every slot of the ring is used.
        for turn in 0..1200u64 {
            let request: Vec<u8> = (0..100).map(|i| (turn + i) as u8).collect();
            // The buffers, and the table of every other chain, cross a page's end.
            space
                .0
                .write_slice(&request, GuestAddress(0x1_2fd0))
                .unwrap();
            let buffers = [
                (0x1_2fd0, 100, false),
                (0x1_4fff, 2, true),
                (0x1_5fa0, 98, true),
            ]
            .map(|(addr, len, writable)| Buffer {
                addr: GuestAddress(addr),
                len,
                writable,
            });
            if turn % 2 == 0 {
                driver.add(&buffers, turn).unwrap();
            } else {
                driver
                    .add_indirect(GuestAddress(0x1_6ff8), &buffers, turn)
                    .unwrap();
            }
            let chain = device.pop(&view).unwrap().unwrap();
            let mut bytes = vec![0; 100];
            let (mut reader, mut writer) = (chain.reader(), chain.writer());
            assert_eq!(
                reader.slices().map(|slice| slice.len()).collect::<Vec<_>>(),
                [0x30, 100 - 0x30]
            );
            reader.read_exact(&mut bytes).unwrap();
            assert_eq!(bytes, request);
            bytes.reverse();
            writer.write_all(&bytes).unwrap();
            device.push(chain, 100).unwrap();
            let used = driver.take().unwrap().unwrap();
            assert_eq!((used.token, used.written), (turn, 100));
            let mut answer = vec![0; 100];
            space
                .0
                .read_slice(&mut answer[..2], GuestAddress(0x1_4fff))
                .unwrap();
            space
                .0
                .read_slice(&mut answer[2..], GuestAddress(0x1_5fa0))
                .unwrap();
            answer.reverse();
            assert_eq!(answer, request);
        }
    }
}

/// A device may not write what it may only read, and the other way round.
#[test]
fn permissions_are_those_of_the_descriptor() {
    let space = space(32);
    let config = config(Features::empty());
    let mut driver = DriverQueue::new(space.clone(), &config).unwrap();
    let addr = GuestAddress(40 * PAGE);
    for (writable, good) in [(false, true), (true, false)] {
        let mut device = Queue::new(space.clone(), &config, None).unwrap();
        driver
            .add(
                &[Buffer {
                    addr,
                    len: 16,
                    writable,
                }],
                (),
            )
            .unwrap();
        let popped = device
            .pop(&&*space.0)
            .and_then(|chain| device.push(chain.unwrap(), 0));
        assert_eq!(popped.is_ok(), good);
        if good {
            driver = DriverQueue::new(space.clone(), &config).unwrap();
        }
    }
}

/// THREATS: host allocation or loop from an inflated length (Firecracker 4392a8d19, CVE-2016-5403). One descriptor of 16 MiB and
/// more in pages of 4 KiB is more pieces than a chain may have.
#[test]
fn pieces_of_a_chain_are_bounded() {
    /// Every page is there, and is the same.
    #[derive(Clone)]
    struct Everywhere(Arc<GuestMemoryMmap<()>>);
    struct Same<'a>(&'a GuestMemoryMmap<()>, u64, usize);
    impl<'a> Iterator for Same<'a> {
        type Item = MemoryResult<VolatileSlice<'a>>;
        fn next(&mut self) -> Option<Self::Item> {
            let offset = self.1 % (16 * PAGE);
            let len = self.2.min((PAGE - offset % PAGE) as usize);
            self.1 += len as u64;
            self.2 -= len;
            (len != 0).then(|| GuestMemoryBackend::get_slice(self.0, GuestAddress(offset), len))
        }
    }
    impl std::iter::FusedIterator for Same<'_> {}
    impl<'a> GuestMemorySliceIterator<'a, ()> for Same<'a> {}
    impl GuestMemory for Everywhere {
        type PhysicalMemory = GuestMemoryMmap<()>;
        type Bitmap = ();
        fn check_range(&self, _: GuestAddress, _: usize, _: Permissions) -> bool {
            true
        }
        fn get_slices<'a>(
            &'a self,
            addr: GuestAddress,
            count: usize,
            _: Permissions,
        ) -> MemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, ()>>> {
            Ok(Same(&self.0, addr.0, count))
        }
    }
    let memory = Everywhere(Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (16 * PAGE) as usize)]).unwrap(),
    ));
    let config = QueueConfig {
        size: 4,
        desc: GuestAddress(0),
        avail: GuestAddress(0x1000),
        used: GuestAddress(0x2000),
        features: Features::VERSION_1,
    };
    for (len, good) in [
        (4096 * PAGE, true),
        (4096 * PAGE + 1, false),
        (u64::from(u32::MAX), false),
    ] {
        let mut driver = DriverQueue::new(&memory, &config).unwrap();
        let mut device = Queue::new(&memory, &config, None).unwrap();
        driver
            .add(
                &[Buffer {
                    addr: GuestAddress(0),
                    len: len as u32,
                    writable: true,
                }],
                (),
            )
            .unwrap();
        let popped = device
            .pop(&&memory)
            .map(|chain| chain.map(|chain| chain.writable_len()));
        let error = Error::Chain {
            head: 0,
            rule: Rule::Pieces(4096),
        };
        assert_eq!(popped, if good { Ok(Some(len)) } else { Err(error) });
    }
}

/// Behind an IOMMU, invalidations wait for the views of devices: a queue that is unmapped and has no chain in flight holds none.
#[test]
fn an_unmapped_queue_holds_no_view() {
    let space = space(PAGES);
    let config = config(Features::empty());
    let mut device = Queue::new(space.clone(), &config, None).unwrap();
    assert_eq!(space.1.load(Ordering::Relaxed), 1);
    device.unmap();
    assert_eq!(space.1.load(Ordering::Relaxed), 0);
    assert!(!device.enable_kicks().unwrap());
    assert_eq!(space.1.load(Ordering::Relaxed), 1);
    drop(device);
    assert_eq!(space.1.load(Ordering::Relaxed), 0);
}
