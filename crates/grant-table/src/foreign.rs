//! Other domains' pages for a back end, whoever maps and copies them.

use std::sync::Arc;

use crate::frame::Frame;
use crate::guest::Access;
use crate::hypervisor::{Hypervisor, Memory as _, Pages};
use crate::spec::grant::{
    Copy, CopyFlags, CopySide, GrantRef, MapFlags, MapGrantRef, Refusal, UnmapGrantRef,
};
use crate::spec::{DomId, PAGE_SIZE};

/// A page that is mapped, until it is given to [`Foreign::unmap`].
#[derive(Debug)]
pub struct Mapped {
    /// The page. Whoever clones it must let go of it before the page is unmapped.
    pub frame: Frame,
    /// What the provider knows it by.
    pub handle: u64,
    /// Where the provider has mapped it.
    pub address: u64,
}

/// Uses pages that other domains grant to this one.
pub trait Foreign: Send {
    /// Maps pages; each has its own answer.
    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Vec<Result<Mapped, Refusal>>;

    /// Unmaps pages.
    ///
    /// # Errors
    ///
    /// One was not mapped.
    fn unmap(&mut self, pages: Vec<Mapped>) -> Result<(), Refusal>;

    /// Copies from a page.
    ///
    /// # Errors
    ///
    /// It is not granted to this domain, or the bytes leave what is granted.
    fn read(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &mut [u8],
    ) -> Result<(), Refusal>;

    /// Copies to a page.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    fn write(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &[u8],
    ) -> Result<(), Refusal>;
}

/// Pages by way of a [`Hypervisor`] in this process.
#[derive(Debug)]
pub struct InProcess {
    hypervisor: Arc<Hypervisor>,
    id: DomId,
    pages: Arc<Pages>,
    /// The number of a page for copies, of the domain's own.
    bounce: u64,
    /// Numbers that have no page.
    free: Vec<u64>,
}

impl InProcess {
    /// Pages for the domain `id`, whose memory is `pages`: its own page `bounce` for copies, and the numbers `free` to map at.
    pub fn new(
        hypervisor: Arc<Hypervisor>,
        id: DomId,
        pages: Arc<Pages>,
        bounce: u64,
        free: std::ops::Range<u64>,
    ) -> Self {
        Self {
            hypervisor,
            id,
            pages,
            bounce,
            free: free.rev().collect(),
        }
    }

    fn copy(
        &self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        length: usize,
        to_grant: bool,
    ) -> Result<(), Refusal> {
        let own = CopySide {
            page: self.bounce,
            domain: DomId::SELF,
            ..CopySide::default()
        };
        let page = reference.0.into();
        let foreign = CopySide {
            page,
            domain,
            offset,
            ..CopySide::default()
        };
        let (source, dest, flags) = match to_grant {
            true => (own, foreign, CopyFlags::DEST_REF),
            false => (foreign, own, CopyFlags::SOURCE_REF),
        };
        let length = u16::try_from(length).map_err(|_| Refusal::BadCopyArgument)?;
        let mut copy = [Copy {
            source,
            dest,
            length,
            flags: flags.bits(),
            ..Copy::default()
        }];
        self.hypervisor
            .caller(self.id, 0)
            .ok_or(Refusal::BadDomain)?
            .copy(&mut copy);
        let [Copy { status, .. }] = copy;
        refused(status)
    }

    fn bounce(&self) -> Result<Frame, Refusal> {
        self.pages
            .frame(self.bounce)
            .map(|(frame, _)| frame)
            .ok_or(Refusal::BadPage)
    }
}

/// The refusal that a status tells.
fn refused(status: i16) -> Result<(), Refusal> {
    if status == 0 {
        Ok(())
    } else {
        Err(Refusal::from_status(status))
    }
}

impl Foreign for InProcess {
    fn map(
        &mut self,
        domain: DomId,
        references: &[GrantRef],
        access: Access,
    ) -> Vec<Result<Mapped, Refusal>> {
        let readonly = match access {
            Access::ReadOnly => MapFlags::READONLY,
            Access::ReadWrite => MapFlags::empty(),
        };
        let mut operations: Vec<_> = references
            .iter()
            .map(|&reference| MapGrantRef {
                // Where no number is left the address is no page's, and refused.
                host_address: self
                    .free
                    .pop()
                    .map_or(u64::MAX, |number| number.saturating_mul(4096)),
                flags: (MapFlags::HOST | readonly).bits(),
                reference,
                domain,
                status: Refusal::BadDomain as i16,
                ..MapGrantRef::default()
            })
            .collect();
        if let Some(caller) = self.hypervisor.caller(self.id, 0) {
            caller.map(&mut operations);
        }
        let answers = operations.iter().map(|op| {
            let number = op.host_address / 4096;
            let mapped = refused(op.status).and_then(|()| {
                let (frame, _) = self.pages.reach(number).ok_or(Refusal::BadPage)?;
                Ok(Mapped {
                    frame,
                    handle: op.handle.into(),
                    address: op.host_address,
                })
            });
            if mapped.is_err() && op.host_address != u64::MAX {
                self.free.push(number);
            }
            mapped
        });
        answers.collect()
    }

    fn unmap(&mut self, pages: Vec<Mapped>) -> Result<(), Refusal> {
        let caller = self
            .hypervisor
            .caller(self.id, 0)
            .ok_or(Refusal::BadDomain)?;
        let mut operations: Vec<_> = pages
            .into_iter()
            .map(|page| UnmapGrantRef {
                host_address: page.address,
                handle: u32::try_from(page.handle).unwrap_or(u32::MAX),
                ..UnmapGrantRef::default()
            })
            .collect();
        caller.unmap(&mut operations);
        let mut result = Ok(());
        for op in &operations {
            match refused(op.status) {
                Ok(()) => self.free.push(op.host_address / 4096),
                refusal => result = refusal,
            }
        }
        result
    }

    fn read(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &mut [u8],
    ) -> Result<(), Refusal> {
        self.copy(domain, reference, offset, bytes.len(), false)?;
        let read = self.bounce()?.read(0, bytes);
        read.then_some(()).ok_or(Refusal::BadCopyArgument)
    }

    fn write(
        &mut self,
        domain: DomId,
        reference: GrantRef,
        offset: u16,
        bytes: &[u8],
    ) -> Result<(), Refusal> {
        if bytes.len() > PAGE_SIZE || !self.bounce()?.write(0, bytes) {
            return Err(Refusal::BadCopyArgument);
        }
        self.copy(domain, reference, offset, bytes.len(), true)
    }
}
