//! The system calls: all unsafe code of [`linux`](super).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::time::Duration;

use zerocopy::{FromBytes, IntoBytes};

use super::gntdev::{Copied, GrantCopy, GrantPart};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::PAGE_SIZE;
use crate::spec::grant::{CopyFlags, GrantRef, Refusal};
use crate::spec::linux::{
    Allocate, BindInterdomain, BindUnbound, BindVirq, CopyGrant, CopySegment, CopySegments, Free,
    Grant, Map, Notify, Restrict, SetMaxGrants, Unbind, Unmap, UnmapNotify, evtchn, gntalloc,
    gntdev,
};

/// The argument of a request.
///
/// # Safety
///
/// Of all memory of this process, the request reaches only the argument, whichever of Xen's devices it is made to.
pub unsafe trait Argument: FromBytes + IntoBytes {
    /// The request.
    const NUMBER: u32;
}

// SAFETY: the whole argument, without pointers, by the header of the device. Where another of the devices has a request of this number,
// its argument has the same size, which is part of the number, and no pointers either.
unsafe impl Argument for Unmap {
    const NUMBER: u32 = gntdev::UNMAP;
}
// SAFETY: as above.
unsafe impl Argument for SetMaxGrants {
    const NUMBER: u32 = gntdev::SET_MAX_GRANTS;
}
// SAFETY: as above.
unsafe impl Argument for UnmapNotify {
    const NUMBER: u32 = gntdev::UNMAP_NOTIFY;
}
const _: () = assert!(gntdev::UNMAP_NOTIFY == gntalloc::UNMAP_NOTIFY);
// SAFETY: as above.
unsafe impl Argument for Free {
    const NUMBER: u32 = gntalloc::FREE;
}
// SAFETY: as above.
unsafe impl Argument for BindVirq {
    const NUMBER: u32 = evtchn::BIND_VIRQ;
}
// SAFETY: as above.
unsafe impl Argument for BindInterdomain {
    const NUMBER: u32 = evtchn::BIND_INTERDOMAIN;
}
// SAFETY: as above.
unsafe impl Argument for BindUnbound {
    const NUMBER: u32 = evtchn::BIND_UNBOUND;
}
// SAFETY: as above.
unsafe impl Argument for Unbind {
    const NUMBER: u32 = evtchn::UNBIND;
}
// SAFETY: as above.
unsafe impl Argument for Notify {
    const NUMBER: u32 = evtchn::NOTIFY;
}
// SAFETY: as above.
unsafe impl Argument for Restrict {
    const NUMBER: u32 = evtchn::RESTRICT;
}

/// Makes a request; what the kernel returns.
pub fn call<A: Argument>(file: &File, mut argument: A) -> io::Result<u32> {
    // SAFETY: as the trait's implementations promise.
    unsafe { ioctl(file, A::NUMBER, argument.as_mut_bytes()) }
}

/// Forgets events.
pub fn reset(file: &File) -> io::Result<u32> {
    // SAFETY: there is no argument.
    unsafe { ioctl(file, evtchn::RESET, &mut []) }
}

/// Makes room for grants; where to map them.
pub fn map(file: &File, grants: &[Grant]) -> io::Result<u64> {
    let count = u32::try_from(grants.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let header = Map {
        count,
        ..Map::default()
    };
    let mut bytes = [header.as_bytes(), grants.as_bytes()].concat();
    // SAFETY: the kernel reads as many grants as `count` says after the header, and writes the header. With none it fails.
    unsafe { ioctl(file, gntdev::MAP, &mut bytes)? };
    Ok(front::<Map>(&bytes)?.index)
}

/// Allocates pages that are granted; where to map them, and their references.
pub fn allocate(file: &File, mut header: Allocate) -> io::Result<(u64, Vec<GrantRef>)> {
    let count = usize::try_from(header.count).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut references = vec![GrantRef::default(); count];
    let mut bytes = allocate_argument(&header, &references);
    // SAFETY: the kernel reads and writes that struct, and as many references as `count` says.
    unsafe { ioctl(file, gntalloc::ALLOCATE, &mut bytes)? };
    header = front(&bytes)?;
    let written = bytes.get(size_of::<Allocate>()..).unwrap_or_default();
    let known = references.as_mut_bytes().iter_mut().zip(written);
    known.for_each(|(to, from)| *to = *from);
    Ok((header.index, references))
}

/// The kernel reads and writes the struct of the header file, which has room for one reference and padding, also where that is more.
fn allocate_argument(header: &Allocate, references: &[GrantRef]) -> Vec<u8> {
    let mut bytes = [header.as_bytes(), references.as_bytes()].concat();
    bytes.resize(bytes.len().max(gntalloc::ALLOCATE_SIZE), 0);
    bytes
}

fn front<T: FromBytes>(bytes: &[u8]) -> io::Result<T> {
    T::read_from_prefix(bytes)
        .map(|(front, _)| front)
        .map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

/// Makes copies; how each went.
pub fn copy(file: &File, copies: &mut [GrantCopy<'_>]) -> io::Result<Vec<Copied>> {
    let mut segments: Vec<CopySegment> =
        copies.iter_mut().map(segment).collect::<Result<_, _>>()?;
    let mut argument = CopySegments {
        count: u32::try_from(segments.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        segments: u64::try_from(segments.as_mut_ptr().expose_provenance())
            .map_err(|_| io::ErrorKind::InvalidInput)?,
        ..CopySegments::default()
    };
    // SAFETY: the kernel reaches the segments and, for as many bytes as each says, the memory that they name, which `copies` borrows: to
    // write it only where that is exclusive.
    unsafe { ioctl(file, gntdev::COPY, argument.as_mut_bytes())? };
    let status = |segment: &CopySegment| match segment.status {
        0 => Ok(()),
        status => Err(Refusal::from_status(status)),
    };
    Ok(segments.iter().map(status).collect())
}

fn segment(copy: &mut GrantCopy<'_>) -> io::Result<CopySegment> {
    let grant = |part: &GrantPart| -> [u8; 8] {
        zerocopy::transmute!(CopyGrant {
            reference: part.reference,
            offset: part.offset,
            domain: part.domain.0,
        })
    };
    let (source, dest, length, flags) = match copy {
        GrantCopy::Read { from, into } => (
            grant(from),
            into.as_mut_ptr().expose_provenance().to_ne_bytes(),
            into.len(),
            CopyFlags::SOURCE_REF,
        ),
        GrantCopy::Write { from, to } => (
            from.as_ptr().expose_provenance().to_ne_bytes(),
            grant(to),
            from.len(),
            CopyFlags::DEST_REF,
        ),
        GrantCopy::Between { from, to, length } => (
            grant(from),
            grant(to),
            usize::from(*length),
            CopyFlags::SOURCE_REF | CopyFlags::DEST_REF,
        ),
    };
    Ok(CopySegment {
        source,
        dest,
        length: u16::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?,
        flags: flags.bits(),
        ..CopySegment::default()
    })
}

/// # Safety
///
/// Of all memory of this process, the request reaches only `argument`, and what this names for as long and in such a way as the caller
/// may let go of it.
unsafe fn ioctl(file: &File, number: u32, argument: &mut [u8]) -> io::Result<u32> {
    // SAFETY: the file is open; the argument is as the caller promises.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number.into(), argument.as_mut_ptr()) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until `file` can be read or the time is over; whether it can.
pub fn wait(file: BorrowedFd<'_>, time: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one struct, which is ours.
    match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
        -1 => Err(io::Error::last_os_error()),
        ready => Ok(ready != 0),
    }
}

/// Pages of a device's file in this process's memory, and what is to end after they are unmapped.
#[derive(Debug)]
pub struct Mapping<T> {
    address: NonNull<u8>,
    pages: usize,
    access: Access,
    /// Dropped last.
    pub then: T,
}

// SAFETY: the memory belongs to no thread, and is reached as `Frame` does it only.
unsafe impl<T: Send> Send for Mapping<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Mapping<T> {}

impl<T: Send + Sync + 'static> Mapping<T> {
    /// Maps `pages` pages at `index`; none is no mapping.
    pub fn new(
        file: &File,
        index: u64,
        pages: usize,
        access: Access,
        then: T,
    ) -> io::Result<Arc<Self>> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = libc::off_t::try_from(index).map_err(invalid)?;
        let length = pages
            .checked_mul(PAGE_SIZE)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let protection = match access {
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: where in memory is left to the kernel, so no memory in use is replaced.
        let address = unsafe {
            libc::mmap(
                null_mut(),
                length,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Arc::new(Self {
            address,
            pages,
            access,
            then,
        }))
    }

    /// How many pages there are.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// A page, numbered by its address; none beyond the last.
    pub fn frame(self: &Arc<Self>, page: usize) -> Option<Frame> {
        if page >= self.pages {
            return None;
        }
        // SAFETY: in the mapping, as was checked.
        let address = unsafe { self.address.add(page.checked_mul(PAGE_SIZE)?) };
        let number = u64::try_from(address.addr().get() / PAGE_SIZE).ok()?;
        // SAFETY: the page is mapped, with this access, until the last clone of `self` is gone. Nothing else points to it.
        Some(unsafe { Frame::from_raw(address, self.access, number, Arc::clone(self) as _) })
    }
}

impl<T> Drop for Mapping<T> {
    fn drop(&mut self) {
        let length = self.pages.saturating_mul(PAGE_SIZE);
        // SAFETY: what `new` mapped; nobody has a frame of it any more. It does not fail for whole mappings.
        unsafe { libc::munmap(self.address.as_ptr().cast(), length) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// A file of three pages.
    fn file() -> File {
        // SAFETY: the name is a string.
        let descriptor = unsafe { libc::memfd_create(c"pages".as_ptr(), 0) };
        assert!(descriptor >= 0);
        // SAFETY: it was just opened, for us alone.
        let file: File = unsafe { std::os::fd::FromRawFd::from_raw_fd(descriptor) };
        file.set_len(3 * 4096).unwrap();
        file
    }

    struct Then(Arc<AtomicBool>);

    impl Drop for Then {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn pages_stay_mapped_until_the_last_frame_is_gone() {
        let (file, ended) = (file(), Arc::new(AtomicBool::new(false)));
        let then = Then(Arc::clone(&ended));
        let mapping = Mapping::new(&file, 4096, 2, Access::ReadWrite, then).unwrap();
        assert!(mapping.frame(2).is_none());
        let (first, second) = (mapping.frame(0).unwrap(), mapping.frame(1).unwrap());
        assert!(!first.is(&second) && first.number() + 1 == second.number());
        assert!(second.write(4090, b"second"));
        drop((mapping, first));
        assert!(!ended.load(Ordering::SeqCst));

        let again = Mapping::new(&file, 8192, 1, Access::ReadOnly, ()).unwrap();
        let again = again.frame(0).unwrap();
        let mut bytes = [0; 6];
        assert!(again.read(4090, &mut bytes));
        assert_eq!(&bytes, b"second");
        assert!(!again.write(0, b"x") && again.u32(0).is_none());
        drop(second);
        assert!(ended.load(Ordering::SeqCst));
    }

    #[test]
    fn no_pages_are_no_mapping() {
        for pages in [0, usize::MAX, usize::MAX / PAGE_SIZE] {
            assert!(Mapping::new(&file(), 0, pages, Access::ReadOnly, ()).is_err());
        }
    }

    /// A memory file knows no request of Xen's devices.
    #[test]
    fn a_request_that_the_device_does_not_know_is_an_error() {
        let file = file();
        let unknown = |error: io::Error| error.raw_os_error() == Some(libc::ENOTTY);
        assert!(unknown(call(&file, BindVirq { virq: 1 }).unwrap_err()));
        assert!(unknown(reset(&file).unwrap_err()));
        assert!(unknown(map(&file, &[Grant::default()]).unwrap_err()));
        assert!(unknown(allocate(&file, Allocate::default()).unwrap_err()));
        let from = GrantPart::default();
        let mut into = [0; 8];
        let mut copies = [GrantCopy::Read {
            from,
            into: &mut into,
        }];
        assert!(unknown(copy(&file, &mut copies).unwrap_err()));
    }

    /// The kernel writes 24 bytes for one reference, which takes 20.
    #[test]
    fn the_argument_of_an_allocation_has_room_for_all_that_the_kernel_writes() {
        let size = |count| allocate_argument(&Allocate::default(), &vec![GrantRef(0); count]).len();
        assert_eq!([size(0), size(1), size(2), size(3)], [24, 24, 24, 28]);
    }

    #[test]
    fn a_copy_becomes_a_segment_of_the_header() {
        let part = |offset| GrantPart {
            domain: crate::spec::DomId(3),
            reference: GrantRef(9),
            offset,
        };
        let grant = |offset: u8| [9, 0, 0, 0, offset, 0, 3, 0];
        let mut memory = [0; 5];
        let address = memory.as_ptr().addr().to_ne_bytes();
        let (from, into) = (part(7), &mut memory[..]);
        let read = segment(&mut GrantCopy::Read { from, into }).unwrap();
        assert_eq!((read.source, read.dest), (grant(7), address));
        assert_eq!((read.length, read.flags), (5, 1));
        let (from, to) = (&memory[..3], part(1));
        let write = segment(&mut GrantCopy::Write { from, to }).unwrap();
        assert_eq!((write.source, write.dest), (address, grant(1)));
        assert_eq!((write.length, write.flags), (3, 2));
        let between = segment(&mut GrantCopy::Between {
            from: part(1),
            to: part(2),
            length: 4096,
        });
        let between = between.unwrap();
        assert_eq!((between.source, between.dest), (grant(1), grant(2)));
        assert_eq!((between.length, between.flags), (4096, 3));
    }
}
