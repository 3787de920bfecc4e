//! `/dev/xen/gntalloc`: pages that others may use.

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::sync::Arc;

use super::sys::{self, Mapping};
use super::{LinuxError, OnUnmap, open};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::DomId;
use crate::spec::grant::GrantRef;
use crate::spec::linux::{Allocate, Free, gntalloc};

/// Grants pages.
#[derive(Clone, Debug)]
pub struct GrantAllocator {
    file: Arc<File>,
}

/// Grants of the allocator's, which end when this is gone. The kernel keeps a page, and its entry in the table, for as long as another domain
/// uses it.
#[derive(Debug)]
struct Granted {
    file: Arc<File>,
    index: u64,
    count: u32,
}

impl Drop for Granted {
    fn drop(&mut self) {
        // It is the file's, and its pages are unmapped: there is nothing for the kernel to refuse.
        let _freed = sys::call(
            &self.file,
            Free {
                index: self.index,
                count: self.count,
                padding: 0,
            },
        );
    }
}

/// Pages of this program that another domain may use, until the last of their frames is gone.
#[derive(Debug)]
pub struct SharedPages {
    references: Vec<GrantRef>,
    mapping: Arc<Mapping<Granted>>,
}

impl GrantAllocator {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Open`].
    pub fn open() -> Result<Self, LinuxError> {
        let file = open(&mut OpenOptions::new(), Path::new("/dev/xen/gntalloc"))?;
        Ok(Self {
            file: Arc::new(file),
        })
    }

    /// Allocates pages of zeros and lets `domain` use them.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Allocate`].
    pub fn allocate(
        &self,
        domain: DomId,
        count: u32,
        access: Access,
    ) -> Result<SharedPages, LinuxError> {
        let failed = |source| LinuxError::Allocate {
            domain,
            count,
            source,
        };
        let flags = match access {
            Access::ReadOnly => 0,
            Access::ReadWrite => gntalloc::WRITABLE,
        };
        let header = Allocate {
            domain: domain.0,
            flags,
            count,
            index: 0,
        };
        let (index, references) = sys::allocate(&self.file, header).map_err(failed)?;
        let granted = Granted {
            file: Arc::clone(&self.file),
            index,
            count,
        };
        let pages = references.len();
        let mapping = Mapping::new(&self.file, index, pages, Access::ReadWrite, granted);
        Ok(SharedPages {
            references,
            mapping: mapping.map_err(failed)?,
        })
    }
}

impl SharedPages {
    /// The references, page by page.
    pub fn references(&self) -> &[GrantRef] {
        &self.references
    }

    /// A page; none beyond the last.
    pub fn frame(&self, page: usize) -> Option<Frame> {
        self.mapping.frame(page)
    }

    /// Arranges what happens when this program lets go of page `page`, instead of what was arranged before.
    ///
    /// # Errors
    ///
    /// [`LinuxError::OnUnmap`]: there is no such page, byte or port.
    pub fn on_unmap(&self, page: u32, what: OnUnmap) -> Result<(), LinuxError> {
        let Granted { file, index, .. } = &self.mapping.then;
        super::arrange(file, *index, page, what)
    }
}
