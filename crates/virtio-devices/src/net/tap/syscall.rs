//! The system calls of a tap interface, safe to call.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_short, c_uint, ifreq};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// What `TUNSETIFF` takes.
pub(super) struct Request(ifreq);

impl Request {
    /// A tap interface of this name, with one queue or several; `None` if the name does not fit.
    pub(super) fn new(name: &str, several_queues: bool) -> Option<Self> {
        let mut ifr_name = [0; libc::IFNAMSIZ];
        if name.len() >= ifr_name.len() || name.contains('\0') {
            return None;
        }
        for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        let flags = libc::IFF_TAP
            | libc::IFF_NO_PI
            | libc::IFF_VNET_HDR
            | if several_queues {
                libc::IFF_MULTI_QUEUE
            } else {
                0
            };
        Some(Self(request(ifr_name, flags)?))
    }
}

fn request(ifr_name: [libc::c_char; libc::IFNAMSIZ], flags: c_int) -> Option<ifreq> {
    // SAFETY: `ifreq` consists of integers, arrays and pointers, which zeroes are values of.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = ifr_name;
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).ok()?;
    Some(request)
}

fn checked(status: c_int) -> io::Result<()> {
    if status < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes `file` a queue of the interface and returns the interface's name.
pub(super) fn set_interface(file: &File, request: Request) -> io::Result<String> {
    let Request(mut request) = request;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let name = request
        .ifr_name
        .iter()
        .take_while(|c| **c != 0)
        .map(|c| c.to_ne_bytes()[0])
        .collect();
    String::from_utf8(name).map_err(io::Error::other)
}

/// Sets the size of the header in front of each frame, in bytes.
pub(super) fn set_header_size(file: &File, size: usize) -> io::Result<()> {
    let size = c_int::try_from(size).map_err(io::Error::other)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which `size` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
}

/// Sets the `TUN_F_` flags of what the reader of the interface takes.
pub(super) fn set_offloads(file: &File, flags: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    checked(unsafe {
        libc::ioctl(
            file.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(flags),
        )
    })
}

/// Attaches the queue to its interface or detaches it.
pub(super) fn set_queue(file: &File, attached: bool) -> io::Result<()> {
    let flags = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    let request = request([0; libc::IFNAMSIZ], flags).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETQUEUE reads one `ifreq`, which `request` is.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Writes all slices as one frame.
pub(super) fn write_vectored<'a, B: BitmapSlice>(
    file: &File,
    frame: impl Iterator<Item = VolatileSlice<'a, B>>,
) -> io::Result<usize> {
    let slices: Vec<libc::iovec> = frame
        .map(|slice| libc::iovec {
            iov_base: slice.ptr_guard().as_ptr().cast_mut().cast(),
            iov_len: slice.len(),
        })
        .collect();
    let count = c_int::try_from(slices.len()).map_err(io::Error::other)?;
    // SAFETY: `slices` has `count` elements, each memory that stays mapped for `'a`, which lasts longer than the call. The kernel
    // only reads it and does not mind that others change it meanwhile.
    let written = unsafe { libc::writev(file.as_raw_fd(), slices.as_ptr(), count) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}
