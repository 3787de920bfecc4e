//! Cursors over the bytes of a chain, whatever descriptors they are split into.

use std::ops::Range;

use thiserror::Error;
use vm_memory::{ByteValued, ReadVolatile, VolatileMemoryError, WriteVolatile};

use crate::chain::About;
use crate::mapping::{Anchor, Segments, Slice};

/// A chain has fewer bytes left than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{wanted} bytes wanted, {left} left in the chain")]
pub struct ShortChain {
    /// Bytes asked for.
    pub wanted: u64,
    /// Bytes left.
    pub left: u64,
}

/// Why bytes could not be moved between a chain and a file.
#[derive(Debug, Error)]
pub enum TransferError {
    /// The chain is too short.
    #[error(transparent)]
    Short(#[from] ShortChain),
    /// The file failed.
    #[error(transparent)]
    File(#[from] VolatileMemoryError),
}

/// A position in a range of segments.
struct Cursor<'c, H: Anchor> {
    segments: &'c Segments<H, About>,
    /// The segments not consumed; the first may be in part.
    range: Range<usize>,
    /// Bytes consumed of the first segment of `range`.
    offset: usize,
    /// Bytes of the last segment that are not the cursor's.
    hidden: usize,
    left: u64,
    done: u64,
}

impl<'c, H: Anchor> Cursor<'c, H> {
    /// The rest of the segment `index`.
    fn slice(&self, index: usize) -> Option<Slice<'c, H::Memory>> {
        if !self.range.contains(&index) {
            return None;
        }
        let slice = self.segments.get(index)?;
        let start = if index == self.range.start {
            self.offset
        } else {
            0
        };
        let end = if index + 1 == self.range.end {
            slice.len() - self.hidden
        } else {
            slice.len()
        };
        slice.subslice(start, end.checked_sub(start)?).ok()
    }

    fn slices(&self) -> impl Iterator<Item = Slice<'c, H::Memory>> {
        self.range
            .clone()
            .filter_map(|index| self.slice(index))
            .filter(|slice| !slice.is_empty())
    }

    fn check(&self, wanted: usize) -> Result<(), ShortChain> {
        let wanted = wanted as u64;
        if wanted > self.left {
            Err(ShortChain {
                wanted,
                left: self.left,
            })
        } else {
            Ok(())
        }
    }

    /// Moves `f` over the next `len` bytes, slice by slice. `f` gets the number of bytes before the slice and returns how
    /// many it took; fewer than the slice has end the walk.
    fn consume<E>(
        &mut self,
        len: usize,
        mut f: impl FnMut(usize, Slice<'c, H::Memory>) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let mut done = 0;
        while done < len
            && let Some(slice) = self.slice(self.range.start)
        {
            let whole = slice.len();
            let part = whole.min(len - done);
            let taken = match slice.subslice(0, part) {
                Ok(slice) if part != 0 => f(done, slice)?.min(part),
                _ => 0,
            };
            done += taken;
            self.left -= taken as u64;
            self.done += taken as u64;
            if taken == whole {
                self.range.start += 1;
                self.offset = 0;
            } else {
                self.offset += taken;
            }
            if taken < part {
                break;
            }
        }
        Ok(done)
    }

    fn skip(&mut self, len: usize) -> usize {
        let Ok(skipped) = self.consume(len, |_, slice| {
            Ok::<_, std::convert::Infallible>(slice.len())
        });
        skipped
    }

    /// Cuts the cursor after its next `mid` bytes and returns the rest.
    fn split_off(&mut self, mid: u64) -> Result<Self, ShortChain> {
        if mid > self.left {
            return Err(ShortChain {
                wanted: mid,
                left: self.left,
            });
        }
        let mut rest = Self {
            range: self.range.clone(),
            done: 0,
            ..*self
        };
        let mut to_skip = mid;
        while to_skip > 0 {
            let step = usize::try_from(to_skip).unwrap_or(usize::MAX);
            to_skip -= rest.skip(step) as u64;
        }
        rest.done = 0;
        // What the rest begins with ends this cursor.
        if rest.offset > 0 {
            let segment_len = self
                .segments
                .get(rest.range.start)
                .map_or(0, |slice| slice.len());
            self.range.end = rest.range.start + 1;
            self.hidden = segment_len - rest.offset;
        } else {
            self.range.end = rest.range.start;
            self.hidden = 0;
        }
        self.left = mid;
        Ok(rest)
    }
}

macro_rules! cursor {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        pub struct $name<'c, H: Anchor>(Cursor<'c, H>);

        impl<'c, H: Anchor> $name<'c, H> {
            pub(crate) fn new(
                segments: &'c Segments<H, About>,
                range: Range<usize>,
                left: u64,
            ) -> Self {
                Self(Cursor {
                    segments,
                    range,
                    offset: 0,
                    hidden: 0,
                    left,
                    done: 0,
                })
            }

            /// Bytes not consumed yet.
            pub fn remaining(&self) -> u64 {
                self.0.left
            }

            /// The bytes not consumed yet, as slices of guest memory, none of them empty. They can be made into the
            /// `iovec`s of `readv`, `writev` and io_uring; `advance` then counts what was transferred.
            pub fn slices(&self) -> impl Iterator<Item = Slice<'c, H::Memory>> {
                self.0.slices()
            }

            /// Cuts the cursor after its next `mid` bytes and returns a cursor over the rest.
            pub fn split_off(&mut self, mid: u64) -> Result<Self, ShortChain> {
                self.0.split_off(mid).map(Self)
            }

            /// Consumes `len` bytes. Nothing is consumed if there are fewer.
            pub fn advance(&mut self, len: usize) -> Result<(), ShortChain> {
                self.0.check(len)?;
                self.0.skip(len);
                Ok(())
            }
        }
    };
}

cursor!(Reader, "The bytes of a chain that the device reads.");
cursor!(
    Writer,
    "The bytes of a chain that the device writes. It counts them: [`written`](Self::written) is what `push` wants."
);

impl<H: Anchor> Reader<'_, H> {
    /// Bytes consumed so far.
    pub fn consumed(&self) -> u64 {
        self.0.done
    }

    /// Copies up to `buf.len()` bytes and returns how many.
    pub fn read(&mut self, buf: &mut [u8]) -> usize {
        let Ok(done) = self.0.consume(buf.len(), |done, slice| {
            Ok::<_, std::convert::Infallible>(
                buf.get_mut(done..).map_or(0, |buf| slice.copy_to(buf)),
            )
        });
        done
    }

    /// Copies exactly `buf.len()` bytes. Nothing is consumed if there are fewer.
    pub fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), ShortChain> {
        self.0.check(buf.len())?;
        self.read(buf);
        Ok(())
    }

    /// Copies an object, such as a request header: each byte is read once, however the descriptors split it.
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, ShortChain> {
        let mut obj = T::zeroed();
        self.read_exact(obj.as_mut_slice())?;
        Ok(obj)
    }

    /// Writes `len` bytes of the chain to `file`. On error the bytes before it are consumed.
    pub fn write_to<F: WriteVolatile>(
        &mut self,
        file: &mut F,
        len: usize,
    ) -> Result<(), TransferError> {
        self.0.check(len)?;
        self.0.consume(len, |_, slice| {
            file.write_all_volatile(&slice)?;
            Ok::<_, VolatileMemoryError>(slice.len())
        })?;
        Ok(())
    }
}

impl<H: Anchor> Writer<'_, H> {
    /// Bytes written so far.
    pub fn written(&self) -> u32 {
        u32::try_from(self.0.done).unwrap_or(u32::MAX)
    }

    /// Copies up to `buf.len()` bytes and returns how many.
    pub fn write(&mut self, buf: &[u8]) -> usize {
        let Ok(done) = self.0.consume(buf.len(), |done, slice| {
            Ok::<_, std::convert::Infallible>(buf.get(done..).map_or(0, |buf| {
                let len = buf.len().min(slice.len());
                slice.copy_from(buf);
                len
            }))
        });
        done
    }

    /// Copies all of `buf`. Nothing is written if there is no room for it.
    pub fn write_all(&mut self, buf: &[u8]) -> Result<(), ShortChain> {
        self.0.check(buf.len())?;
        self.write(buf);
        Ok(())
    }

    /// Copies an object.
    pub fn write_obj<T: ByteValued>(&mut self, obj: &T) -> Result<(), ShortChain> {
        self.write_all(obj.as_slice())
    }

    /// Fills `len` bytes of the chain from `file`. On error the bytes before it count as written.
    pub fn read_from<F: ReadVolatile>(
        &mut self,
        file: &mut F,
        len: usize,
    ) -> Result<(), TransferError> {
        self.0.check(len)?;
        self.0.consume(len, |_, mut slice| {
            file.read_exact_volatile(&mut slice)?;
            Ok::<_, VolatileMemoryError>(slice.len())
        })?;
        Ok(())
    }
}
