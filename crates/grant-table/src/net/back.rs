//! The back end.

use zerocopy::{FromBytes as _, IntoBytes as _, transmute};

use super::{Checksum, Packet, Segmentation};
use crate::foreign::Foreign;
use crate::frame::Frame;
use crate::ring::{Back, RingError};
use crate::spec::net::{
    Extra, RxFlags, RxRequest, RxResponse, SLOTS, TxFlags, TxRequest, TxResponse, extra, status,
};
use crate::spec::{DomId, PAGE_SIZE};

/// Bytes of an Ethernet header: no packet has fewer.
const HEADER: usize = 14;

/// Why the front end is to be disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// It broke a ring.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// It published part of a packet, or one of too many slots.
    #[error("a packet without an end")]
    Endless,
}

/// What became of a packet for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the ring; whether to notify the front end.
    Done {
        /// Of the receive ring.
        notify: bool,
    },
    /// The guest offers too few pages. It notifies when it offers more.
    NoRoom,
}

/// Connects a domain to a network.
#[derive(Debug)]
pub struct NetBack<F> {
    transmit: Back<TxRequest, TxResponse>,
    receive: Back<RxRequest, RxResponse>,
    domain: DomId,
    foreign: F,
}

/// The slots of a packet.
struct Slots {
    first: TxRequest,
    rest: Vec<TxRequest>,
    extras: usize,
    segmentation: Option<Segmentation>,
}

impl<F: Foreign> NetBack<F> {
    /// A back end for `domain`, with the pages of both rings.
    ///
    /// # Errors
    ///
    /// The pages are no rings.
    pub fn new(
        transmit: Vec<Frame>,
        receive: Vec<Frame>,
        domain: DomId,
        foreign: F,
    ) -> Result<Self, RingError> {
        Ok(Self {
            transmit: Back::new(transmit)?,
            receive: Back::new(receive)?,
            domain,
            foreign,
        })
    }

    /// Takes the packets that the guest sends; whether to notify the front end.
    ///
    /// # Errors
    ///
    /// The front end is to be disconnected.
    pub fn serve(&mut self, mut sink: impl FnMut(Packet)) -> Result<bool, NetError> {
        let mut notify = false;
        // As many as the ring has slots, lest a front end keeps this busy for ever.
        for _ in 0..self.transmit.size() {
            let Some(slots) = self.take()? else {
                if self.transmit.finish() {
                    continue;
                }
                break;
            };
            let packet = self.copy(&slots);
            let result = if packet.is_some() {
                status::OKAY
            } else {
                status::ERROR
            };
            self.transmit.respond(&TxResponse {
                id: slots.first.id,
                status: result,
            })?;
            for _ in 0..slots.extras {
                self.transmit.respond(&TxResponse {
                    id: 0,
                    status: status::NULL,
                })?;
            }
            for slot in &slots.rest {
                self.transmit.respond(&TxResponse {
                    id: slot.id,
                    status: result,
                })?;
            }
            packet.map(&mut sink);
            notify |= self.transmit.publish();
        }
        Ok(notify)
    }

    /// Whether the guest sends packets. If not, the front end notifies of the next.
    pub fn is_waiting(&mut self) -> bool {
        self.transmit.finish()
    }

    /// Takes the slots of a packet out of the ring.
    fn take(&mut self) -> Result<Option<Slots>, NetError> {
        let Some(first) = self.transmit.take()? else {
            return Ok(None);
        };
        let mut slots = Slots {
            first,
            rest: Vec::new(),
            extras: 0,
            segmentation: None,
        };
        let mut more_extra = TxFlags::from_bits_retain(first.flags).contains(TxFlags::EXTRA_INFO);
        let mut more = TxFlags::from_bits_retain(first.flags).contains(TxFlags::MORE_DATA);
        while more_extra || more {
            if slots.extras + slots.rest.len() > 2 * SLOTS {
                return Err(NetError::Endless);
            }
            let slot = self.transmit.take()?.ok_or(NetError::Endless)?;
            if more_extra {
                slots.extras += 1;
                let info = Extra::read_from_prefix(slot.as_bytes())
                    .map(|(info, _)| info)
                    .unwrap_or_default();
                if info.kind == extra::GSO {
                    slots.segmentation = Some(Segmentation {
                        size: info.gso_size,
                        kind: info.gso_kind,
                    });
                }
                more_extra = info.flags & extra::MORE != 0;
            } else {
                slots.rest.push(slot);
                more = TxFlags::from_bits_retain(slot.flags).contains(TxFlags::MORE_DATA);
            }
        }
        Ok(Some(slots))
    }

    /// Copies a packet; none if its slots make no sense or its pages are not granted.
    fn copy(&mut self, slots: &Slots) -> Option<Packet> {
        let rest: usize = slots.rest.iter().map(|slot| usize::from(slot.size)).sum();
        let first = usize::from(slots.first.size).checked_sub(rest)?;
        let bad_size = slots
            .segmentation
            .is_some_and(|segmentation| segmentation.size == 0);
        if first == 0
            || usize::from(slots.first.size) < HEADER
            || slots.rest.len() >= SLOTS
            || bad_size
        {
            return None;
        }
        let mut bytes = vec![0; usize::from(slots.first.size)];
        let mut left = bytes.as_mut_slice();
        let sizes =
            std::iter::once(first).chain(slots.rest.iter().map(|slot| usize::from(slot.size)));
        for (slot, size) in std::iter::once(&slots.first).chain(&slots.rest).zip(sizes) {
            let (part, others) = left.split_at_mut_checked(size)?;
            left = others;
            if usize::from(slot.offset) + size > PAGE_SIZE {
                return None;
            }
            self.foreign
                .read(self.domain, slot.reference, slot.offset, part)
                .ok()?;
        }
        let flags = TxFlags::from_bits_retain(slots.first.flags);
        let checksum = if flags.contains(TxFlags::CHECKSUM_BLANK) {
            Checksum::Blank
        } else if flags.contains(TxFlags::DATA_VALIDATED) {
            Checksum::Validated
        } else {
            Checksum::Unknown
        };
        Some(Packet {
            bytes,
            checksum,
            segmentation: slots.segmentation,
        })
    }

    /// Puts a packet into pages that the guest offers.
    ///
    /// # Errors
    ///
    /// The front end broke the ring.
    pub fn deliver(&mut self, packet: &Packet) -> Result<Delivery, NetError> {
        let mut parts = packet.bytes.chunks(PAGE_SIZE).peekable();
        let needed = parts.len() + usize::from(packet.segmentation.is_some());
        // Asks for a notification if there are too few.
        while usize::try_from(self.receive.waiting()?).unwrap_or(usize::MAX) < needed {
            let before = self.receive.waiting()?;
            if !self.receive.finish_beyond(before) {
                return Ok(Delivery::NoRoom);
            }
        }
        let mut about = match packet.checksum {
            Checksum::Unknown => RxFlags::empty(),
            Checksum::Validated => RxFlags::DATA_VALIDATED,
            Checksum::Blank => RxFlags::DATA_VALIDATED | RxFlags::CHECKSUM_BLANK,
        };
        if packet.segmentation.is_some() {
            about |= RxFlags::EXTRA_INFO;
        }
        let mut info = packet.segmentation;
        while let Some(part) = parts.next() {
            let Some(request) = self.receive.take()? else {
                return Ok(Delivery::NoRoom);
            };
            let written = self.foreign.write(self.domain, request.reference, 0, part);
            let length = i16::try_from(part.len()).unwrap_or(status::ERROR);
            if parts.peek().is_some() {
                about |= RxFlags::MORE_DATA;
            }
            self.receive.respond(&RxResponse {
                id: request.id,
                offset: 0,
                flags: about.bits(),
                status: written.map_or(status::ERROR, |()| length),
            })?;
            if let Some(Segmentation { size, kind }) = info.take() {
                self.receive.take()?;
                let info = Extra {
                    kind: extra::GSO,
                    gso_size: size,
                    gso_kind: kind,
                    ..Extra::default()
                };
                self.receive.respond(&transmute!(info))?;
            }
            about = RxFlags::empty();
        }
        Ok(Delivery::Done {
            notify: self.receive.publish(),
        })
    }
}
