use std::io;

use vring::{Anchor, Chain, Slice, View};
use zerocopy::{FromZeros, IntoBytes};

use super::MAX_RANGE_SECTORS;
use super::spec::{
    ID_LEN, Range, RangeFlags, RequestHeader, RequestStatus, SECTOR, T_DISCARD, T_FLUSH, T_GET_ID,
    T_IN, T_OUT, T_WRITE_ZEROES,
};
use crate::dma::DmaView;

/// What a disk allows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Size in bytes.
    pub capacity: u64,
    pub read_only: bool,
}

/// A request that passed all checks. Offsets and lengths are in bytes and lie within the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { offset: u64, len: u64 },
    Write { offset: u64, len: u64 },
    Flush,
    Discard { offset: u64, len: u64 },
    WriteZeroes { offset: u64, len: u64, unmap: bool },
    GetId,
}

const HEADER: usize = size_of::<RequestHeader>();

impl Request {
    /// Reads the request in `chain`, each byte once and however the descriptors split it (virtio 1.3 §5.2.6).
    pub(super) fn parse<H: Anchor>(
        chain: &Chain<H>,
        limits: Limits,
    ) -> Result<Self, RequestStatus> {
        let mut reader = chain.reader();
        let mut header = RequestHeader::new_zeroed();
        reader
            .read_exact(header.as_mut_bytes())
            .map_err(|_| RequestStatus::IoErr)?;
        let out = reader.remaining();
        // The status byte is not data.
        let in_ = chain.writable_len().saturating_sub(1);
        let sector = header.sector.get();
        match header.kind.get() {
            T_IN => limits
                .check(sector, in_)
                .map(|offset| Self::Read { offset, len: in_ }),
            T_OUT => limits
                .writable()
                .and_then(|()| limits.check(sector, out))
                .map(|offset| Self::Write { offset, len: out }),
            T_FLUSH => Ok(Self::Flush),
            T_GET_ID => Ok(Self::GetId),
            kind @ (T_DISCARD | T_WRITE_ZEROES) => {
                limits.writable()?;
                let mut range = Range::new_zeroed();
                if out != size_of::<Range>() as u64 {
                    return Err(RequestStatus::IoErr);
                }
                reader
                    .read_exact(range.as_mut_bytes())
                    .map_err(|_| RequestStatus::IoErr)?;
                let flags = RangeFlags::from_bits(range.flags.get());
                let unmap = flags.ok_or(RequestStatus::Unsupp)? == RangeFlags::UNMAP;
                let sectors = range.num_sectors.get();
                if sectors > MAX_RANGE_SECTORS {
                    return Err(RequestStatus::IoErr);
                }
                let len = u64::from(sectors) * SECTOR;
                let offset = limits.check(range.sector.get(), len)?;
                match kind {
                    T_DISCARD if unmap => Err(RequestStatus::Unsupp),
                    T_DISCARD => Ok(Self::Discard { offset, len }),
                    _ => Ok(Self::WriteZeroes { offset, len, unmap }),
                }
            }
            _ => Err(RequestStatus::Unsupp),
        }
    }

    /// The guest memory that a read fills or a write takes, in order; none for the others.
    pub(super) fn buffers<'c, H: Anchor>(&self, chain: &'c Chain<H>) -> Vec<Slice<'c, H::Memory>> {
        match self {
            Self::Read { len, .. } => {
                let mut writer = chain.writer();
                match writer.split_off(*len) {
                    Ok(_status) => writer.slices().collect(),
                    Err(_) => Vec::new(),
                }
            }
            Self::Write { .. } => {
                let mut reader = chain.reader();
                match reader.advance(HEADER) {
                    Ok(()) => reader.slices().collect(),
                    Err(_) => Vec::new(),
                }
            }
            _ => Vec::new(),
        }
    }
}

impl Limits {
    fn writable(self) -> Result<(), RequestStatus> {
        if self.read_only {
            return Err(RequestStatus::IoErr);
        }
        Ok(())
    }

    /// The offset of `sector`, if `len` bytes from there are whole sectors of the disk.
    fn check(self, sector: u64, len: u64) -> Result<u64, RequestStatus> {
        sector
            .checked_mul(SECTOR)
            .filter(|offset| {
                len.is_multiple_of(SECTOR)
                    && offset
                        .checked_add(len)
                        .is_some_and(|end| end <= self.capacity)
            })
            .ok_or(RequestStatus::IoErr)
    }
}

/// Writes the answer into `chain` and returns how many bytes, from the first writable one, are defined now. `None` if the chain has no
/// room for a status.
pub(super) fn answer<H: Anchor>(
    chain: &Chain<H>,
    request: Option<Request>,
    status: RequestStatus,
    id: &[u8; ID_LEN],
) -> Option<u32> {
    let mut writer = chain.writer();
    let data = chain.writable_len().checked_sub(1)?;
    let mut last = writer.split_off(data).ok()?;
    let written = match (request, status) {
        (Some(Request::Read { len, .. }), RequestStatus::Ok) => len,
        (Some(Request::GetId), RequestStatus::Ok) => writer.write(id) as u64,
        _ => 0,
    };
    last.write_all(&[status as u8]).ok()?;
    let defined = if written == data { data + 1 } else { written };
    Some(u32::try_from(defined).unwrap_or(u32::MAX))
}

/// A request that was carried out.
pub(super) struct Finished<M: DmaView> {
    pub chain: Chain<View<M>>,
    pub request: Request,
    pub result: io::Result<()>,
}
