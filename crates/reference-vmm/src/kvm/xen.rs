//! What KVM does for a guest that sees Xen (Linux, Documentation/virt/kvm/api.rst, `KVM_CAP_XEN_HVM` and `KVM_XEN_*`), by raw ioctls as
//! `kvm-ioctls` has none of it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::spec::PAGE_SIZE;
use kvm_bindings::{
    KVM_CAP_XEN_HVM, KVM_EXIT_XEN, KVM_EXIT_XEN_HCALL, KVM_XEN_ATTR_TYPE_EVTCHN,
    KVM_XEN_ATTR_TYPE_LONG_MODE, KVM_XEN_ATTR_TYPE_SHARED_INFO, KVM_XEN_EVTCHN_DEASSIGN,
    KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL, KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
    KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, KVM_XEN_HVM_CONFIG_RUNSTATE,
    KVM_XEN_HVM_CONFIG_SHARED_INFO, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR,
    KVM_XEN_VCPU_ATTR_TYPE_TIMER, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR,
    KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO,
    KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, KVMIO, kvm_xen_hvm_attr, kvm_xen_hvm_config,
    kvm_xen_vcpu_attr, kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2,
};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::SIGRTMIN;

use super::{KvmError, Vcpu, Vm};
use crate::machine::Memory;

ioctl_iow_nr!(KVM_XEN_HVM_CONFIG, KVMIO, 0x7a, kvm_xen_hvm_config);
ioctl_iow_nr!(KVM_XEN_HVM_SET_ATTR, KVMIO, 0xc9, kvm_xen_hvm_attr);
ioctl_iow_nr!(KVM_XEN_VCPU_SET_ATTR, KVMIO, 0xcb, kvm_xen_vcpu_attr);

/// What KVM must be able to do: all since Linux 5.19.
const NEEDED: u32 = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL
    | KVM_XEN_HVM_CONFIG_SHARED_INFO
    | KVM_XEN_HVM_CONFIG_RUNSTATE
    | KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL
    | KVM_XEN_HVM_CONFIG_EVTCHN_SEND;

/// Kinds of ports (`EVTCHNSTAT_*` of Xen's event_channel.h).
const INTERDOMAIN: u32 = 2;
const IPI: u32 = 5;

/// What happens in the kernel when the guest sends to a port.
#[derive(Clone, Copy, Debug)]
pub enum XenSend<'a> {
    /// The same port of a vCPU has an event.
    Ipi(u32),
    /// The eventfd is signalled.
    Event(BorrowedFd<'a>),
}

/// Something that a vCPU has of Xen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XenVcpu {
    /// Its number in hypercalls: KVM takes each for number 0 until it is told.
    Number(u8),
    /// Its info is at this guest-physical address.
    Info(u64),
    /// So is a second copy of its time.
    Time(u64),
    /// So is what it is told of its run states.
    Runstate(u64),
    /// This port has an event when its timer expires; none for 0.
    Timer(u32),
    /// Its interrupt vector for events.
    Upcall(u8),
}

/// A hypercall that the kernel leaves to user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hypercall {
    /// Made in 64-bit mode.
    pub long_mode: bool,
    /// The privilege level of the code that made it.
    pub privilege_level: u32,
    /// Its number (`__HYPERVISOR_*`).
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

fn called(result: libc::c_int, what: &'static str) -> Result<(), KvmError> {
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    Err(KvmError::Call { what, source })
}

impl Vm {
    /// Has the guest's hypercalls reach user space, and the kernel fill the page of them that the guest names by model-specific register
    /// `msr`.
    ///
    /// # Errors
    ///
    /// [`KvmError::NoXen`]: this KVM cannot do all that is needed.
    pub fn enable_xen(&self, msr: u32) -> Result<(), KvmError> {
        let can = self.check_extension_raw(KVM_CAP_XEN_HVM.into());
        let can = u32::try_from(can).unwrap_or(0);
        if can & NEEDED != NEEDED {
            return Err(KvmError::NoXen(can));
        }
        let config = kvm_xen_hvm_config {
            flags: KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL | KVM_XEN_HVM_CONFIG_EVTCHN_SEND,
            msr,
            ..Default::default()
        };
        // SAFETY: the kernel reads the structure, which has the size that the number says.
        let result = unsafe { ioctl_with_ref(self, KVM_XEN_HVM_CONFIG(), &config) };
        called(result, "be Xen for the guest")
    }

    fn set_xen(&self, attribute: &kvm_xen_hvm_attr, what: &'static str) -> Result<(), KvmError> {
        // SAFETY: the kernel reads the structure, which has the size that the number says.
        let result = unsafe { ioctl_with_ref(self, KVM_XEN_HVM_SET_ATTR(), attribute) };
        called(result, what)
    }

    /// Tells where the shared info page is, by its frame number, and that it and the vCPUs' info are laid out for 64-bit code. KVM finds
    /// that out by itself only from guests that place a page of hypercalls.
    pub fn set_xen_shared_info(&self, number: u64) -> Result<(), KvmError> {
        let mut long_mode = attribute(KVM_XEN_ATTR_TYPE_LONG_MODE);
        long_mode.u.long_mode = 1;
        self.set_xen(&long_mode, "be a 64-bit Xen")?;
        let mut attribute = attribute(KVM_XEN_ATTR_TYPE_SHARED_INFO);
        attribute.u.shared_info.gfn = number;
        self.set_xen(&attribute, "place the shared info page")
    }

    /// What happens when the guest sends to `port`: in the kernel, or none to leave it to user space.
    pub fn set_xen_send(&self, port: u32, send: Option<XenSend<'_>>) -> Result<(), KvmError> {
        let mut attribute = attribute(KVM_XEN_ATTR_TYPE_EVTCHN);
        // All of the union's bytes are zero.
        let mut event = kvm_bindings::kvm_xen_hvm_attr__bindgen_ty_1__bindgen_ty_2 {
            send_port: port,
            ..Default::default()
        };
        match send {
            Some(XenSend::Ipi(vcpu)) => {
                event.type_ = IPI;
                event.deliver.port.port = port;
                event.deliver.port.vcpu = vcpu;
                // The only one of the two-level ABI (`KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL`).
                event.deliver.port.priority = u32::MAX;
            }
            Some(XenSend::Event(eventfd)) => {
                event.type_ = INTERDOMAIN;
                event.deliver.eventfd.port = 0;
                event.deliver.eventfd.fd = eventfd.as_raw_fd();
            }
            None => event.flags = KVM_XEN_EVTCHN_DEASSIGN,
        }
        attribute.u.evtchn = event;
        self.set_xen(&attribute, "connect an event channel")
    }
}

fn attribute(kind: u32) -> kvm_xen_hvm_attr {
    kvm_xen_hvm_attr {
        type_: u16::try_from(kind).unwrap_or(u16::MAX),
        ..Default::default()
    }
}

impl Vcpu {
    /// The hypercall that made the vCPU exit, if that is why it did.
    pub fn xen_hypercall(&mut self) -> Option<Hypercall> {
        let run = self.get_kvm_run();
        if run.exit_reason != KVM_EXIT_XEN {
            return None;
        }
        // SAFETY: the exit reason says that the kernel filled in this variant of the union.
        let exit = unsafe { run.__bindgen_anon_1.xen };
        if exit.type_ != KVM_EXIT_XEN_HCALL {
            return None;
        }
        // SAFETY: the type says the same of the inner union.
        let call = unsafe { exit.u.hcall };
        Some(Hypercall {
            long_mode: call.longmode != 0,
            privilege_level: call.cpl,
            number: call.input,
            arguments: call.params,
        })
    }

    /// Answers the hypercall; the guest sees it when the vCPU runs again.
    pub fn answer_xen_hypercall(&mut self, result: i64) {
        let run = self.get_kvm_run();
        run.__bindgen_anon_1.xen.u.hcall.result = result.cast_unsigned();
    }

    /// Sets something of Xen's. While the vCPU runs this waits for it to leave the kernel, so its own thread should do it.
    pub fn set_xen(&self, value: XenVcpu) -> Result<(), KvmError> {
        let mut attribute = kvm_xen_vcpu_attr::default();
        let kind = match value {
            XenVcpu::Number(number) => {
                attribute.u.vcpu_id = number.into();
                KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID
            }
            XenVcpu::Info(address) => {
                attribute.u.gpa = address;
                KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO
            }
            XenVcpu::Time(address) => {
                attribute.u.gpa = address;
                KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO
            }
            XenVcpu::Runstate(address) => {
                attribute.u.gpa = address;
                KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR
            }
            XenVcpu::Timer(port) => {
                attribute.u.timer = kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2 {
                    port,
                    priority: u32::MAX,
                    expires_ns: 0,
                };
                KVM_XEN_VCPU_ATTR_TYPE_TIMER
            }
            XenVcpu::Upcall(vector) => {
                attribute.u.vector = vector;
                KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR
            }
        };
        attribute.type_ = u16::try_from(kind).unwrap_or(u16::MAX);
        // SAFETY: the kernel reads the structure, which has the size that the number says.
        let result = unsafe { ioctl_with_ref(&**self, KVM_XEN_VCPU_SET_ATTR(), &attribute) };
        called(result, "set what a vCPU has of Xen")
    }
}

/// The page of RAM with this number; none where there is no RAM.
pub fn ram_frame(memory: &Memory, number: u64) -> Option<Frame> {
    let address = GuestAddress(number.checked_mul(PAGE_SIZE as u64)?);
    let page = memory.get_slice(address, PAGE_SIZE).ok()?;
    let host = NonNull::new(page.ptr_guard_mut().as_ptr())?;
    // SAFETY: all of the page is in RAM, whose mapping is page-aligned and lives as long as the clone of `memory`. All of this process
    // reach RAM by volatile accesses and atomics only.
    Some(unsafe { Frame::from_raw(host, Access::ReadWrite, number, memory.clone()) })
}

/// A thread that may be in the guest.
#[derive(Clone, Copy, Debug)]
pub struct Thread(libc::pid_t);

impl Thread {
    /// The calling thread.
    pub fn current() -> Self {
        // SAFETY: it has no conditions.
        Self(unsafe { libc::gettid() })
    }

    /// Makes it leave the guest, unless it is just about to enter. Nothing happens if it has ended.
    pub fn kick(self) {
        // SAFETY: a signal for a thread of this process, whose handler does nothing.
        let _gone = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, SIGRTMIN()) };
    }
}
