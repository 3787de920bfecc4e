//! `rep ins` and `rep outs`: elements to one address, each an access of its own.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, Direction, Hook, Outcome, StringOutcome,
    Suspension, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A data port: reads count up, every fifth fails; remembers writes.
#[derive(Default)]
struct Port {
    next: AtomicU8,
    written: Mutex<Vec<Vec<u8>>>,
}

impl BusDevice for Port {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        if next % 5 == 4 {
            return Err(AccessError::NoRegister { offset });
        }
        data.fill(next);
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        self.written.lock().unwrap().push(data.to_vec());
        Ok(())
    }
}

#[test]
fn elements_go_to_one_address_in_order() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let port = Arc::new(Port::default());
    bus.insert(0x1f0, 8, "ide", port.clone()).unwrap();
    let mut reader = bus.reader();

    let mut data = [0; 12];
    let result = reader.read_string(0x1f0, 2, &mut data);
    assert_eq!(data, [0, 0, 1, 1, 2, 2, 3, 3, 0xff, 0xff, 5, 5]);
    let failed = Outcome::Failed(AccessError::NoRegister { offset: 0 });
    assert_eq!(
        result,
        StringOutcome {
            elements: 6,
            outcome: failed
        }
    );

    let result = reader.write_string(0x1f0, 4, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(
        result,
        StringOutcome {
            elements: 2,
            outcome: Outcome::Done
        }
    );
    assert_eq!(*port.written.lock().unwrap(), [[1, 2, 3, 4], [5, 6, 7, 8]]);

    let result = reader.read_string(0x2f0, 1, &mut data);
    assert_eq!(
        result,
        StringOutcome {
            elements: 12,
            outcome: Outcome::Unclaimed
        }
    );
    assert_eq!(data, [0xff; 12]);
}

#[test]
fn any_width_and_length_is_answered() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    bus.insert(0, 8, "port", Arc::new(Port::default())).unwrap();
    let mut reader = bus.reader();
    for width in 0..20 {
        for length in 0..40 {
            let mut data = vec![0x5a; length];
            for result in [
                reader.read_string(0, width, &mut data),
                reader.write_string(0, width, &data),
            ] {
                let whole = width > 0 && length % width == 0;
                assert_eq!(result.elements, if whole { length / width } else { 0 });
                let good = whole && (length == 0 || matches!(width, 1 | 2 | 4 | 8));
                let no_such_width =
                    matches!(result.outcome, Outcome::Failed(AccessError::Width { .. }));
                assert_eq!(no_such_width, !good, "{width} {length}");
                if !good {
                    assert_eq!(data, vec![0xff; length]);
                }
            }
        }
    }
}

#[test]
fn a_suspension_tells_how_far_it_came() {
    struct Third(AtomicU8, Suspension);
    impl Hook for Third {
        fn before(&self, _: &Access<'_>) -> Verdict {
            match self.0.fetch_add(1, Ordering::Relaxed) {
                2 => Verdict::Suspend(self.1.clone()),
                _ => Verdict::Allow,
            }
        }
    }
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let port = Arc::new(Port::default());
    let region = bus.insert(0, 1, "port", port.clone()).unwrap();
    let suspension = Suspension::new(Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let hook = Third(AtomicU8::new(0), suspension.clone());
    bus.add_hook(region, 0..1, Direction::Both, Arc::new(hook))
        .unwrap();

    let data = [1, 2, 3, 4];
    let mut reader = bus.reader();
    let result = reader.write_string(0, 1, &data);
    assert_eq!(
        result,
        StringOutcome {
            elements: 2,
            outcome: Outcome::Suspended(suspension)
        }
    );
    let rest = reader.write_string(0, 1, &data[result.elements..]);
    assert_eq!(
        rest,
        StringOutcome {
            elements: 2,
            outcome: Outcome::Done
        }
    );
    assert_eq!(port.written.lock().unwrap().concat(), data);
}
