//! Event channels (`event_channel.h`), and where their bits lie (`xen.h`, `arch-x86/xen.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{DomId, argument};

/// The number of an event channel in its domain (`evtchn_port_t`). Port 0 is never used.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct Port(pub u32);

/// Ports of the two-level ABI with 64-bit words (`EVTCHN_2L_NR_CHANNELS`).
pub const TWO_LEVEL_PORTS: u32 = 4096;
/// Ports of the FIFO ABI (`EVTCHN_FIFO_NR_CHANNELS`): as many as a link can name.
pub const FIFO_PORTS: u32 = 1 << 17;
/// Interrupts that the hypervisor makes up (`NR_VIRQS`).
pub const VIRQS: u32 = 24;
/// Those of which each virtual CPU has its own: timer, debug, profiling and performance counters.
pub const VCPU_VIRQS: [u32; 4] = [0, 1, 7, 13];

/// Where things lie in the shared info page of a 64-bit guest (`struct shared_info`), in bytes.
pub mod shared_info {
    /// Virtual CPUs that have their info in the page (`XEN_LEGACY_MAX_VCPUS`).
    pub const VCPUS: usize = 32;
    /// The pending bits of all ports, in 64-bit words.
    pub const PENDING: usize = 2048;
    /// The mask bits of all ports.
    pub const MASK: usize = 2560;
}

/// Where things lie in a virtual CPU's info (`struct vcpu_info`), in bytes.
pub mod vcpu_info {
    /// Its size.
    pub const SIZE: usize = 64;
    /// A byte: an upcall is due.
    pub const UPCALL_PENDING: usize = 0;
    /// The words of pending bits to look at, as a bit each.
    pub const PENDING_SELECT: usize = 8;
}

/// The FIFO ABI (`event_channel.h`, `EVTCHN_FIFO_*`).
pub mod fifo {
    /// Priorities: 0 is the highest.
    pub const PRIORITIES: u8 = 16;
    /// The priority of a port when it is bound.
    pub const DEFAULT_PRIORITY: u8 = 7;
    /// The bits of an event word that name the next port of the queue.
    pub const LINK: u32 = (1 << 17) - 1;
    /// The hypervisor changes the link: the guest must not unmask.
    pub const BUSY: u32 = 1 << 28;
    /// The event is in a queue.
    pub const LINKED: u32 = 1 << 29;
    /// The event is not delivered.
    pub const MASKED: u32 = 1 << 30;
    /// The event has happened.
    pub const PENDING: u32 = 1 << 31;
    /// Bytes of a control block.
    pub const CONTROL_SIZE: usize = 72;
    /// In the control block: queues that have events, a bit each.
    pub const READY: usize = 0;
    /// In the control block: the first port of each queue.
    pub const HEAD: usize = 8;
    /// Event words in a page of the array.
    pub const WORDS: u32 = 1024;
}

/// The operations of the hypercall (`EVTCHNOP_*`).
pub mod op {
    /// Connect to an unbound port.
    pub const BIND_INTERDOMAIN: u32 = 0;
    /// Bind a port to a virtual interrupt.
    pub const BIND_VIRQ: u32 = 1;
    /// Bind a port to a physical interrupt.
    pub const BIND_PIRQ: u32 = 2;
    /// Close a port.
    pub const CLOSE: u32 = 3;
    /// Notify the other end.
    pub const SEND: u32 = 4;
    /// What a port is bound to.
    pub const STATUS: u32 = 5;
    /// Make a port to which another domain may connect.
    pub const ALLOC_UNBOUND: u32 = 6;
    /// Make a port for a virtual CPU's own events.
    pub const BIND_IPI: u32 = 7;
    /// Which virtual CPU is notified.
    pub const BIND_VCPU: u32 = 8;
    /// Unmask a port.
    pub const UNMASK: u32 = 9;
    /// Close all ports.
    pub const RESET: u32 = 10;
    /// Choose the FIFO ABI, with a control block for a virtual CPU.
    pub const INIT_CONTROL: u32 = 11;
    /// Add a page of event words.
    pub const EXPAND_ARRAY: u32 = 12;
    /// Set a port's priority.
    pub const SET_PRIORITY: u32 = 13;
    /// Continues a reset.
    pub const RESET_CONT: u32 = 14;
}

argument!(
    /// `evtchn_alloc_unbound`.
    AllocUnbound {
        /// In: whose port.
        domain: DomId,
        /// In: who may connect.
        remote: DomId,
        /// Out.
        port: Port,
    }
);
argument!(
    /// `evtchn_bind_interdomain`.
    BindInterdomain {
        /// In: whom to connect to.
        remote: DomId,
        /// Padding.
        padding: u16,
        /// In: its port.
        remote_port: Port,
        /// Out.
        port: Port,
    }
);
argument!(
    /// `evtchn_bind_virq`.
    BindVirq {
        /// In: the virtual interrupt.
        virq: u32,
        /// In: whom to notify.
        vcpu: u32,
        /// Out.
        port: Port,
    }
);
argument!(
    /// `evtchn_bind_pirq`.
    BindPirq {
        /// In: the physical interrupt.
        pirq: u32,
        /// In: 1 if it may be shared.
        flags: u32,
        /// Out.
        port: Port,
    }
);
argument!(
    /// `evtchn_bind_ipi`.
    BindIpi {
        /// In: whom to notify.
        vcpu: u32,
        /// Out.
        port: Port,
    }
);
argument!(
    /// A port (`evtchn_close`, `evtchn_send`, `evtchn_unmask`).
    OnePort {
        /// In.
        port: Port,
    }
);
argument!(
    /// `evtchn_status`.
    GetStatus {
        /// In: whose port.
        domain: DomId,
        /// Padding.
        padding: u16,
        /// In: which.
        port: Port,
        /// Out: closed 0, unbound 1, interdomain 2, physical interrupt 3, virtual interrupt 4, inter-processor 5.
        status: u32,
        /// Out: who is notified.
        vcpu: u32,
        /// Out: the other domain in the low 16 bits, or the interrupt.
        peer: u32,
        /// Out: the other domain's port.
        peer_port: Port,
    }
);
argument!(
    /// `evtchn_bind_vcpu`.
    BindVcpu {
        /// In: which port.
        port: Port,
        /// In: whom to notify.
        vcpu: u32,
    }
);
argument!(
    /// `evtchn_reset`.
    Reset {
        /// In: whose ports.
        domain: DomId,
    }
);
argument!(
    /// `evtchn_init_control`.
    InitControl {
        /// In: the frame of the control block.
        frame: u64,
        /// In: where it begins, in bytes.
        offset: u32,
        /// In: whose it is.
        vcpu: u32,
        /// Out: the bits of a link, 17.
        link_bits: u8,
        /// Padding.
        padding: [u8; 7],
    }
);
argument!(
    /// `evtchn_expand_array`.
    ExpandArray {
        /// In: the frame of the event words.
        frame: u64,
    }
);
argument!(
    /// `evtchn_set_priority`.
    SetPriority {
        /// In: which port.
        port: Port,
        /// In: 0, the highest, to 15.
        priority: u32,
    }
);
