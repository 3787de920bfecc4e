//! The front end.

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Checksum, Segmentation};
use crate::frame::Frame;
use crate::ring::{Front, RingError};
use crate::spec::PAGE_SIZE;
use crate::spec::grant::GrantRef;
use crate::spec::net::{
    Extra, RxFlags, RxRequest, RxResponse, TxFlags, TxRequest, TxResponse, extra, status,
};

/// Part of a page that is granted to the back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The page.
    pub reference: GrantRef,
    /// Where in it.
    pub offset: u16,
    /// Bytes.
    pub size: u16,
}

/// A packet that was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// The numbers under which its pages were offered, and where in them it is.
    pub parts: Vec<(u16, std::ops::Range<usize>)>,
    /// Its checksum.
    pub checksum: Checksum,
    /// To be cut.
    pub segmentation: Option<Segmentation>,
    /// A page could not be written, or the back end says something impossible: the packet is to be dropped.
    pub broken: bool,
}

/// A guest's network device.
#[derive(Debug)]
pub struct NetFront {
    transmit: Front<TxRequest, TxResponse>,
    receive: Front<RxRequest, RxResponse>,
}

impl NetFront {
    /// A device with its rings in these pages.
    ///
    /// # Errors
    ///
    /// The pages are no rings.
    pub fn new(transmit: Vec<Frame>, receive: Vec<Frame>) -> Result<Self, RingError> {
        Ok(Self {
            transmit: Front::new(transmit)?,
            receive: Front::new(receive)?,
        })
    }

    /// Sends a packet that lies in `fragments`, numbered from `id` on; whether to notify the back end.
    ///
    /// # Errors
    ///
    /// The ring has no room for all of it.
    pub fn send(
        &mut self,
        id: u16,
        fragments: &[Fragment],
        checksum: Checksum,
        segmentation: Option<Segmentation>,
    ) -> Result<bool, RingError> {
        let needed = fragments.len() + usize::from(segmentation.is_some());
        if needed > usize::try_from(self.transmit.free()).unwrap_or(usize::MAX) {
            return Err(RingError::Full);
        }
        let total = fragments
            .iter()
            .fold(0u16, |sum, fragment| sum.saturating_add(fragment.size));
        let mut info = segmentation;
        for (index, fragment) in (0u16..).zip(fragments) {
            let mut flags = TxFlags::empty();
            if usize::from(index) + 1 < fragments.len() {
                flags |= TxFlags::MORE_DATA;
            }
            if index == 0 {
                flags |= match checksum {
                    Checksum::Unknown => TxFlags::empty(),
                    Checksum::Validated => TxFlags::DATA_VALIDATED,
                    Checksum::Blank => TxFlags::CHECKSUM_BLANK | TxFlags::DATA_VALIDATED,
                };
                flags.set(TxFlags::EXTRA_INFO, segmentation.is_some());
            }
            self.transmit.request(&TxRequest {
                reference: fragment.reference,
                offset: fragment.offset,
                flags: flags.bits(),
                id: id.wrapping_add(index),
                size: if index == 0 { total } else { fragment.size },
            })?;
            if let Some(Segmentation { size, kind }) = info.take() {
                let info = Extra {
                    kind: extra::GSO,
                    gso_size: size,
                    gso_kind: kind,
                    ..Extra::default()
                };
                let mut slot = TxRequest::default();
                // It is the smaller of the two.
                let _fits = info.write_to_prefix(slot.as_mut_bytes());
                self.transmit.request(&slot)?;
            }
        }
        Ok(self.transmit.publish())
    }

    /// Takes the answer to a slot of a packet that was sent: its number, and whether the packet went. Its page is free again.
    ///
    /// # Errors
    ///
    /// The back end broke the ring.
    pub fn sent(&mut self) -> Result<Option<(u16, bool)>, RingError> {
        while let Some(response) = self.transmit.take()? {
            if response.status != status::NULL {
                return Ok(Some((response.id, response.status == status::OKAY)));
            }
        }
        Ok(None)
    }

    /// Offers a page for what is received, under a number; whether to notify the back end.
    ///
    /// # Errors
    ///
    /// The ring is full.
    pub fn offer(&mut self, id: u16, reference: GrantRef) -> Result<bool, RingError> {
        self.receive.request(&RxRequest {
            id,
            padding: 0,
            reference,
        })?;
        Ok(self.receive.publish())
    }

    /// Takes a packet that was received.
    ///
    /// # Errors
    ///
    /// The back end broke the ring.
    pub fn receive(&mut self) -> Result<Option<Received>, RingError> {
        let Some(mut slot) = self.receive.take()? else {
            return Ok(None);
        };
        let mut received = Received::default();
        let flags = RxFlags::from_bits_retain(slot.flags);
        if flags.contains(RxFlags::CHECKSUM_BLANK) {
            received.checksum = Checksum::Blank;
        } else if flags.contains(RxFlags::DATA_VALIDATED) {
            received.checksum = Checksum::Validated;
        }
        if flags.contains(RxFlags::EXTRA_INFO) {
            let info = self.receive.take()?;
            let info = info.and_then(|slot| Extra::read_from_bytes(slot.as_bytes()).ok());
            match info {
                Some(info) if info.kind == extra::GSO => {
                    received.segmentation = Some(Segmentation {
                        size: info.gso_size,
                        kind: info.gso_kind,
                    });
                }
                _ => received.broken = true,
            }
        }
        loop {
            let start = usize::from(slot.offset);
            let end = usize::try_from(slot.status)
                .ok()
                .map(|length| start + length);
            match end.filter(|&end| end <= PAGE_SIZE) {
                Some(end) => received.parts.push((slot.id, start..end)),
                None => {
                    received.broken = true;
                    received.parts.push((slot.id, 0..0));
                }
            }
            if !RxFlags::from_bits_retain(slot.flags).contains(RxFlags::MORE_DATA) {
                return Ok(Some(received));
            }
            match self.receive.take()? {
                Some(next) => slot = next,
                None => {
                    received.broken = true;
                    return Ok(Some(received));
                }
            }
        }
    }
}
