//! Numbers and layouts of Xen's public interface that `grant-table` has no use for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version that the guest sees: 4.10, in which the CPUID leaves and operations here are all there.
pub const VERSION: u32 = 4 << 16 | 10;
/// The model-specific register by which a guest names its page of hypercalls, as Xen has it.
pub const HYPERCALL_MSR: u32 = 0x4000_0000;

/// CPUID leaves (`arch-x86/cpuid.h`).
pub mod cpuid {
    use std::ops::Range;

    /// Leaves that hypervisors have.
    pub const HYPERVISORS: Range<u32> = 0x4000_0000..0x4001_0000;
    /// The last leaf, and `XenVMMXenVMM`.
    pub const SIGNATURE_LEAF: u32 = 0x4000_0000;
    /// EBX, ECX and EDX of that leaf.
    pub const SIGNATURE: [[u8; 4]; 3] = [*b"XenV", *b"MMXe", *b"nVMM"];
    /// The version.
    pub const VERSION_LEAF: u32 = 0x4000_0001;
    /// How many pages of hypercalls there are, and the register to place them by.
    pub const HYPERCALL_LEAF: u32 = 0x4000_0002;
    /// The time stamp counter, in three subleaves of which KVM fills in two.
    pub const TIME_LEAF: u32 = 0x4000_0003;
    /// Features of HVM.
    pub const HVM_LEAF: u32 = 0x4000_0004;
    /// EAX of that leaf: EBX is the vCPU's number.
    pub const HVM_VCPU_ID: u32 = 1 << 3;
    /// ECX is the domain's number.
    pub const HVM_DOMAIN_ID: u32 = 1 << 4;
    /// Each vCPU can have an interrupt vector for events.
    pub const HVM_UPCALL_VECTOR: u32 = 1 << 6;
}

/// Hypercalls (`xen.h`, `__HYPERVISOR_*`).
pub mod call {
    /// Memory.
    pub const MEMORY: u64 = 12;
    /// What the hypervisor is.
    pub const VERSION: u64 = 17;
    /// Grant tables.
    pub const GRANT_TABLE: u64 = 20;
    /// vCPUs.
    pub const VCPU: u64 = 24;
    /// The scheduler.
    pub const SCHED: u64 = 29;
    /// Event channels.
    pub const EVENT_CHANNEL: u64 = 32;
    /// Guests of this kind.
    pub const HVM: u64 = 34;
}

/// What the hypervisor is (`version.h`).
pub mod version {
    /// The version.
    pub const VERSION: u64 = 0;
    /// What comes after the version, 16 bytes.
    pub const EXTRA: u64 = 1;
    /// Features, in words of 32.
    pub const FEATURES: u64 = 6;
    /// The size of pages.
    pub const PAGE_SIZE: u64 = 7;
    /// In `VERSION_EXTRA`'s argument: its size.
    pub const EXTRA_SIZE: usize = 16;

    /// Features (`features.h`): the guest writes its page tables, physical addresses are the guest's own, events come by a vector.
    pub const FEATURE_BITS: u32 = 1 << 0 | 1 << 2 | 1 << 8 | 1 << 9;
}

/// Memory (`memory.h`).
pub mod memory {
    /// Show a page of the hypervisor's.
    pub const ADD_TO_PHYSMAP: u64 = 7;
    /// Take such a page away.
    pub const REMOVE_FROM_PHYSMAP: u64 = 15;
    /// The shared info page.
    pub const SPACE_SHARED_INFO: u32 = 0;
    /// Pages of the grant table.
    pub const SPACE_GRANT_TABLE: u32 = 1;
}

/// Guests of this kind (`hvm/hvm_op.h`, `hvm/params.h`).
pub mod hvm {
    /// Set a parameter.
    pub const SET_PARAM: u64 = 0;
    /// Get one.
    pub const GET_PARAM: u64 = 1;
    /// Choose a vCPU's vector for events.
    pub const SET_UPCALL_VECTOR: u64 = 23;
    /// The parameter: how all vCPUs are told of events. The kind is in the top byte.
    pub const PARAM_CALLBACK: u32 = 0;
    /// The page of the store.
    pub const PARAM_STORE_FRAME: u32 = 1;
    /// The port of the store.
    pub const PARAM_STORE_PORT: u32 = 2;
    /// How many parameters there are.
    pub const PARAMS: u32 = 40;
    /// A kind of callback: a vector that is no local APIC's.
    pub const CALLBACK_VECTOR: u8 = 2;
}

/// vCPUs (`vcpu.h`).
pub mod vcpu {
    /// Tell of run states.
    pub const REGISTER_RUNSTATE: u64 = 5;
    /// No periodic timer.
    pub const STOP_PERIODIC_TIMER: u64 = 7;
    /// No single timer event.
    pub const STOP_SINGLE_TIMER: u64 = 9;
    /// Place the vCPU's info.
    pub const REGISTER_INFO: u64 = 10;
    /// Place a second copy of its time.
    pub const REGISTER_TIME: u64 = 13;
}

/// The scheduler (`sched.h`).
pub mod sched {
    /// Let others run.
    pub const YIELD: u64 = 0;
    /// Power off, restart, or tell of a crash.
    pub const SHUTDOWN: u64 = 2;
    /// The reasons.
    pub const POWER_OFF: u32 = 0;
    /// See above.
    pub const REBOOT: u32 = 1;
    /// See above.
    pub const CRASH: u32 = 3;
}

/// The platform device and its ports (`docs/misc/hvm-emulated-unplug.markdown`).
pub mod platform {
    /// Its vendor.
    pub const VENDOR: u16 = 0x5853;
    /// Its number.
    pub const DEVICE: u16 = 0x0001;
    /// Bytes of its I/O BAR.
    pub const IO_SIZE: u64 = 0x100;
    /// Bytes of its memory BAR, at whose addresses the guest shows itself pages of the hypervisor's.
    pub const MEMORY_SIZE: u64 = 16 << 20;
    /// The first port.
    pub const BASE: u64 = 0x10;
    /// How many ports.
    pub const SIZE: u64 = 4;
    /// Two bytes at offset 0.
    pub const MAGIC: u16 = 0x49d2;
    /// The byte at offset 2: drivers tell who they are.
    pub const PROTOCOL: u8 = 1;
}

/// Declares an argument, all of whose bytes are fields.
macro_rules! argument {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* }
    };
}

argument!(
    /// `xen_feature_info`.
    FeatureInfo {
        /// In: which word.
        word: u32,
        /// Out.
        features: u32,
    }
);
argument!(
    /// `xen_add_to_physmap`.
    AddToPhysmap {
        /// In: whose memory.
        domain: u16,
        /// In: of a range that is not used here.
        size: u16,
        /// In: `SPACE_*`.
        space: u32,
        /// In: which page.
        index: u64,
        /// In: where, as a frame number.
        frame: u64,
    }
);
argument!(
    /// `xen_remove_from_physmap`.
    RemoveFromPhysmap {
        /// In: whose memory.
        domain: u16,
        /// Padding.
        padding: [u16; 3],
        /// In: where, as a frame number.
        frame: u64,
    }
);
argument!(
    /// `xen_hvm_param`.
    HvmParam {
        /// In: whose.
        domain: u16,
        /// Padding.
        padding: u16,
        /// In: which.
        index: u32,
        /// In or out.
        value: u64,
    }
);
argument!(
    /// `xen_hvm_evtchn_upcall_vector`.
    UpcallVector {
        /// In: whose.
        vcpu: u32,
        /// In: which.
        vector: u8,
        /// Padding.
        padding: [u8; 3],
    }
);
argument!(
    /// `vcpu_register_vcpu_info`.
    RegisterVcpuInfo {
        /// In: the page's frame number.
        frame: u64,
        /// In: where in the page.
        offset: u32,
        /// Padding.
        padding: u32,
    }
);
