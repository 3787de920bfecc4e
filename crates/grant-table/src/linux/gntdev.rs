//! `/dev/xen/gntdev`: what others grant.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use super::sys::{self, Mapping};
use super::{LinuxError, OnUnmap, open};
use crate::foreign::{Foreign, Mapped};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::DomId;
use crate::spec::grant::{GrantRef, Refusal};
use crate::spec::linux::{Grant, SetMaxGrants, Unmap};

/// Maps and copies what others grant.
#[derive(Clone, Debug)]
pub struct GrantDevice {
    file: Arc<File>,
}

/// Room for grants in the device's file, which is given back when this is gone.
#[derive(Debug)]
struct Room {
    file: Arc<File>,
    index: u64,
    count: u32,
}

impl Drop for Room {
    fn drop(&mut self) {
        // It is the file's, and its pages are unmapped: there is nothing for the kernel to refuse.
        let _freed = sys::call(
            &self.file,
            Unmap {
                index: self.index,
                count: self.count,
                padding: 0,
            },
        );
    }
}

/// Pages of other domains in this program's memory, until the last of their frames is gone.
#[derive(Debug)]
pub struct MappedPages(Arc<Mapping<Room>>);

/// Part of a page that is granted, from a byte on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GrantPart {
    /// Whose.
    pub domain: DomId,
    /// Which.
    pub reference: GrantRef,
    /// The first byte.
    pub offset: u16,
}

/// A copy from or to what is granted.
#[derive(Debug)]
pub enum GrantCopy<'a> {
    /// From a grant into memory, which it fills.
    Read {
        /// From where.
        from: GrantPart,
        /// To where.
        into: &'a mut [u8],
    },
    /// From memory, all of it, to a grant.
    Write {
        /// From where.
        from: &'a [u8],
        /// To where.
        to: GrantPart,
    },
    /// From a grant to a grant.
    Between {
        /// From where.
        from: GrantPart,
        /// To where.
        to: GrantPart,
        /// Bytes.
        length: u16,
    },
}

impl GrantCopy<'_> {
    fn length(&self) -> usize {
        match self {
            Self::Read { into, .. } => into.len(),
            Self::Write { from, .. } => from.len(),
            Self::Between { length, .. } => (*length).into(),
        }
    }
}

/// How a copy went. Where it was refused, some of its bytes may have been copied.
pub type Copied = Result<(), Refusal>;

impl GrantDevice {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Open`].
    pub fn open() -> Result<Self, LinuxError> {
        let file = open(&mut OpenOptions::new(), Path::new("/dev/xen/gntdev"))?;
        Ok(Self {
            file: Arc::new(file),
        })
    }

    /// Limits how many grants may be mapped at a time. To be called before anything else.
    ///
    /// # Errors
    ///
    /// [`LinuxError::SetMaxGrants`]: newer kernels have no such limit.
    pub fn set_max_grants(&self, count: u32) -> Result<(), LinuxError> {
        sys::call(&self.file, SetMaxGrants { count })
            .map(drop)
            .map_err(|source| LinuxError::SetMaxGrants { count, source })
    }

    /// Maps pages that `domain` grants, one after the other: all or none.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Map`].
    pub fn map(
        &self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Result<MappedPages, LinuxError> {
        let failed = |source| LinuxError::Map {
            domain,
            references: references.to_vec(),
            source,
        };
        let grants: Vec<Grant> = references
            .iter()
            .map(|&reference| Grant {
                domain: domain.0.into(),
                reference,
            })
            .collect();
        let index = sys::map(&self.file, &grants).map_err(failed)?;
        let room = Room {
            file: Arc::clone(&self.file),
            index,
            count: u32::try_from(grants.len()).unwrap_or(u32::MAX),
        };
        let mapping = Mapping::new(&self.file, index, grants.len(), access, room);
        mapping.map(MappedPages).map_err(failed)
    }

    /// Makes copies, and tells of each how it went.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Length`], [`LinuxError::Copy`].
    pub fn copy(&self, copies: &mut [GrantCopy<'_>]) -> Result<Vec<Copied>, LinuxError> {
        let mut lengths = copies.iter().map(GrantCopy::length);
        if let Some(length) = lengths.find(|&length| length > u16::MAX.into()) {
            return Err(LinuxError::Length(length));
        }
        let count = copies.len();
        sys::copy(&self.file, copies).map_err(|source| LinuxError::Copy { count, source })
    }

    /// Makes one copy, of what lies in a page.
    fn copy_one(&self, copy: GrantCopy<'_>) -> Copied {
        let results = self.copy(&mut [copy]);
        let results = results.map_err(|_| Refusal::BadCopyArgument)?;
        results.into_iter().collect()
    }
}

impl MappedPages {
    /// How many pages there are.
    pub fn count(&self) -> usize {
        self.0.pages()
    }

    /// A page; none beyond the last.
    pub fn frame(&self, page: usize) -> Option<Frame> {
        self.0.frame(page)
    }

    /// Arranges what happens when the pages are unmapped, of which one byte can be cleared in all, instead of what was arranged before.
    ///
    /// # Errors
    ///
    /// [`LinuxError::OnUnmap`]: there is no such page, byte or port, or the page is read-only and a byte of it is to be cleared.
    pub fn on_unmap(&self, page: u32, what: OnUnmap) -> Result<(), LinuxError> {
        let Room { file, index, .. } = &self.0.then;
        super::arrange(file, *index, page, what)
    }
}

/// Each page is mapped by itself, so that each has its own answer: [`Refusal::General`], as the kernel does not tell more.
impl Foreign for GrantDevice {
    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Vec<Result<Mapped, Refusal>> {
        let map = |&reference| {
            let pages = GrantDevice::map(self, domain, &[reference], access);
            let frame = pages.ok().and_then(|pages| pages.frame(0));
            let frame = frame.ok_or(Refusal::General)?;
            Ok(Mapped {
                handle: frame.number(),
                address: frame.address(),
                frame,
            })
        };
        references.iter().map(map).collect()
    }

    fn unmap(&mut self, pages: Vec<Mapped>) -> Result<(), Refusal> {
        // Where someone has a clone, the page is mapped until that is gone.
        let sole = pages.iter().all(|page| page.frame.is_sole());
        sole.then_some(()).ok_or(Refusal::General)
    }

    fn read(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &mut [u8],
    ) -> Result<(), Refusal> {
        let from = GrantPart {
            domain,
            reference,
            offset,
        };
        self.copy_one(GrantCopy::Read { from, into: bytes })
    }

    fn write(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        let to = GrantPart {
            domain,
            reference,
            offset,
        };
        self.copy_one(GrantCopy::Write { from: bytes, to })
    }
}
