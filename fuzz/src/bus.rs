//! Regions that come, move and go under hooks, doorbells and accesses at any address.

use std::sync::Arc;

use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, Direction, Doorbell, Hook, Outcome,
    RegionId, Suspension, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Checks what the bus promises a device, and answers zeroes.
struct Strict {
    size: u64,
}

impl Strict {
    fn check(&self, offset: u64, width: usize) -> Result<(), AccessError> {
        assert!(matches!(width, 1 | 2 | 4 | 8));
        assert!(offset < self.size && width as u64 <= self.size - offset);
        match offset % 7 {
            6 => Err(AccessError::NoRegister { offset }),
            _ => Ok(()),
        }
    }
}

impl BusDevice for Strict {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        self.check(offset, data.len())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.check(offset, data.len())
    }
}

/// Gives one verdict.
struct Judge(Verdict);

impl Hook for Judge {
    fn before(&self, _: &Access<'_>) -> Verdict {
        self.0.clone()
    }
}

/// Runs the steps that `data` spells: an operation, a region, two addresses or sizes.
pub fn bus(data: &[u8]) {
    // Without membarrier or eventfds there is nothing to test.
    let (Ok(bus), Ok(eventfd)) = (Bus::new(AddressSpace::Mmio), EventFd::new(EFD_NONBLOCK)) else {
        return;
    };
    let eventfd = Arc::new(eventfd);
    let mut reader = bus.reader();
    let mut regions: Vec<RegionId> = Vec::new();
    for step in data.as_chunks::<5>().0 {
        let [operation, which, base, size, top] = *step;
        let address = match top % 2 {
            0 => u64::from(base),
            _ => u64::MAX - u64::from(base),
        };
        let size = u64::from(size) % 40;
        let region = regions
            .get(usize::from(which) % regions.len().max(1))
            .copied();
        match (operation % 9, region) {
            (0, _) if regions.len() < 32 => {
                regions.extend(bus.insert(address, size, "region", Arc::new(Strict { size })));
            }
            (1, Some(id)) => drop(bus.relocate(id, address)),
            (2, Some(id)) => drop(bus.unmap(id)),
            (3, Some(id)) => {
                regions.retain(|other| *other != id);
                assert!(bus.remove(id).is_ok_and(|retired| retired.is_done()));
            }
            (4, Some(id)) => {
                let verdict = match top % 3 {
                    0 => Verdict::Allow,
                    1 => Verdict::Deny,
                    _ => Verdict::Suspend(Suspension::new(Arc::clone(&eventfd))),
                };
                let offsets = size..u64::from(base);
                drop(bus.add_hook(id, offsets, Direction::Both, Arc::new(Judge(verdict))));
            }
            (5, Some(id)) => {
                let doorbell = Doorbell {
                    width: (top % 3 > 0).then_some(which % 9),
                    datamatch: (top % 5 > 2).then_some(u64::from(base)),
                    needs_value: top % 7 == 0,
                    eventfd: Arc::clone(&eventfd),
                };
                drop(bus.add_doorbell(id, size, doorbell));
            }
            (6, _) => drop(bus.set_accounting(top % 2 == 0)),
            (7, _) => {
                let mut data = vec![0x5a; usize::from(which % 10)];
                let outcome = reader.read(address, &mut data);
                let byte = if outcome == Outcome::Done { 0 } else { 0xff };
                assert!(data.iter().all(|other| *other == byte));
            }
            _ => {
                let elements = reader
                    .write_string(address, usize::from(which % 10), data)
                    .elements;
                assert!(elements <= data.len());
            }
        }
    }
}
