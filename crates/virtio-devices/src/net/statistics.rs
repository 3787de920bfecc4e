use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Frames since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStatistics {
    /// Handed to the driver.
    pub received: u64,
    /// Too large for the driver's buffers.
    pub receive_dropped: u64,
    /// Not wanted by the driver, or not a frame.
    pub receive_filtered: u64,
    /// Taken by the host.
    pub transmitted: u64,
    /// Malformed or not taken by the host.
    pub transmit_dropped: u64,
}

/// Counts them.
#[derive(Default)]
pub(super) struct Counters {
    received: AtomicU64,
    receive_dropped: AtomicU64,
    receive_filtered: AtomicU64,
    transmitted: AtomicU64,
    transmit_dropped: AtomicU64,
}

impl Counters {
    /// Adds the frames of a burst.
    pub(super) fn add(&self, burst: &NetStatistics) {
        let NetStatistics {
            received,
            receive_dropped,
            receive_filtered,
            transmitted,
            transmit_dropped,
        } = *burst;
        for (counter, more) in [
            (&self.received, received),
            (&self.receive_dropped, receive_dropped),
            (&self.receive_filtered, receive_filtered),
            (&self.transmitted, transmitted),
            (&self.transmit_dropped, transmit_dropped),
        ] {
            if more != 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn statistics(&self) -> NetStatistics {
        let Self {
            received,
            receive_dropped,
            receive_filtered,
            transmitted,
            transmit_dropped,
        } = self;
        NetStatistics {
            received: received.load(Ordering::Relaxed),
            receive_dropped: receive_dropped.load(Ordering::Relaxed),
            receive_filtered: receive_filtered.load(Ordering::Relaxed),
            transmitted: transmitted.load(Ordering::Relaxed),
            transmit_dropped: transmit_dropped.load(Ordering::Relaxed),
        }
    }
}
