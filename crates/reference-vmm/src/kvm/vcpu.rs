use std::ops::{Deref, DerefMut};

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_IO_OUT};
use kvm_ioctls::VcpuFd;

use super::vm::Windows;
use crate::machine::Memory;

/// A virtual processor, which keeps what the guest may see mapped.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    _memory: Memory,
    _windows: Windows,
}

/// An access to a port: one element, or several of a string instruction.
#[derive(Debug)]
pub struct PortAccess<'a> {
    /// The port; the same for all elements.
    pub port: u16,
    /// Width of one element in bytes: 1, 2 or 4.
    pub width: usize,
    /// Whether the guest writes.
    pub write: bool,
    /// The elements, one after the other: written by the guest, or to be filled in before the vCPU runs again.
    pub data: &'a mut [u8],
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, memory: Memory, windows: Windows) -> Self {
        Self {
            fd,
            _memory: memory,
            _windows: windows,
        }
    }

    /// The port access that made the vCPU exit, if that is why it did.
    ///
    /// `kvm-ioctls` hands over the data of such an exit but not the width of its elements.
    pub fn port_access(&mut self) -> Option<PortAccess<'_>> {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_IO {
            return None;
        }
        // SAFETY: the exit reason says that the kernel filled in this variant of the union.
        let io = unsafe { run.__bindgen_anon_1.io };
        let width = usize::from(io.size);
        let length = width.checked_mul(usize::try_from(io.count).ok()?)?;
        let offset = usize::try_from(io.data_offset).ok()?;
        // SAFETY: the kernel places `size * count` bytes at this offset from the start of the vCPU's shared pages, all
        // of which `fd` has mapped. The slice borrows `self`, so nothing else reaches those bytes meanwhile.
        let data = unsafe {
            let start = std::ptr::from_mut(run).cast::<u8>().add(offset);
            std::slice::from_raw_parts_mut(start, length)
        };
        Some(PortAccess {
            port: io.port,
            width,
            write: u32::from(io.direction) == KVM_EXIT_IO_OUT,
            data,
        })
    }
}

impl Deref for Vcpu {
    type Target = VcpuFd;

    fn deref(&self) -> &VcpuFd {
        &self.fd
    }
}

impl DerefMut for Vcpu {
    fn deref_mut(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }
}
