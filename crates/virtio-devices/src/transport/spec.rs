//! Registers and bits that the standard defines for transports.

use bitflags::bitflags;

bitflags! {
    /// The device status field (virtio 1.3 §2.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u8 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// The guest knows how to drive it.
        const DRIVER = 2;
        /// The driver is set up: the device may use its queues.
        const DRIVER_OK = 4;
        /// Feature negotiation is complete.
        const FEATURES_OK = 8;
        /// The device has met an error from which it cannot recover.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver has given up.
        const FAILED = 128;
    }

    /// Why a line interrupt is pending: MMIO's InterruptStatus (§4.2.2) and PCI's ISR status (§4.1.4.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Isr: u8 {
        /// The device has used a buffer of at least one queue.
        const USED = 1;
        /// The device's configuration has changed.
        const CONFIG = 2;
    }
}

/// Registers of the PCI transport (virtio 1.3 §4.1).
pub mod pci {
    use vring::Features;

    /// VIRTIO_F_SR_IOV (§6): the function has the SR-IOV capability, and its driver may enable virtual functions.
    pub const SR_IOV: Features = Features::from_bits_retain(1 << 37);
    /// Vendor of all virtio devices (§4.1.2).
    pub const VENDOR: u16 = 0x1af4;
    /// The device ID is this plus the device type (§4.1.2).
    pub const DEVICE_BASE: u16 = 0x1040;
    /// A vector register that is mapped to nothing (§4.1.5.1.2).
    pub const NO_VECTOR: u16 = 0xffff;

    /// `struct virtio_pci_cap` (§4.1.4), by the offsets of its fields.
    pub mod capability {
        /// Length of the capability.
        pub const CAP_LEN: usize = 2;
        /// Which structure it describes.
        pub const CFG_TYPE: usize = 3;
        /// The BAR it lies in.
        pub const BAR: usize = 4;
        /// Offset in the BAR.
        pub const OFFSET: usize = 8;
        /// Length of the structure.
        pub const LENGTH: usize = 12;
        /// The notification structure's multiplier, and the window of the configuration access structure.
        pub const EXTRA: usize = 16;
        /// Length without and with the extra field.
        pub const SIZES: [usize; 2] = [16, 20];

        /// VIRTIO_PCI_CAP_COMMON_CFG.
        pub const COMMON: u8 = 1;
        /// VIRTIO_PCI_CAP_NOTIFY_CFG.
        pub const NOTIFY: u8 = 2;
        /// VIRTIO_PCI_CAP_ISR_CFG.
        pub const ISR: u8 = 3;
        /// VIRTIO_PCI_CAP_DEVICE_CFG.
        pub const DEVICE: u8 = 4;
        /// VIRTIO_PCI_CAP_PCI_CFG.
        pub const CONFIG_ACCESS: u8 = 5;
    }

    /// The common configuration structure (§4.1.4.3), by the offsets of its fields.
    pub mod common {
        /// RW, 32 bits: selects a word of the offered features.
        pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
        /// R, 32 bits: the selected word of the offered features.
        pub const DEVICE_FEATURE: u64 = 0x04;
        /// RW, 32 bits: selects a word of the accepted features.
        pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
        /// RW, 32 bits: the selected word of the accepted features.
        pub const DRIVER_FEATURE: u64 = 0x0c;
        /// RW, 16 bits: vector of the configuration-change interrupt.
        pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
        /// R, 16 bits: number of queues.
        pub const NUM_QUEUES: u64 = 0x12;
        /// RW, 8 bits: device status.
        pub const DEVICE_STATUS: u64 = 0x14;
        /// R, 8 bits: changes whenever the configuration space does.
        pub const CONFIG_GENERATION: u64 = 0x15;
        /// RW, 16 bits: selects a queue.
        pub const QUEUE_SELECT: u64 = 0x16;
        /// RW, 16 bits: size of the queue; its greatest before the driver writes.
        pub const QUEUE_SIZE: u64 = 0x18;
        /// RW, 16 bits: vector of the queue's interrupt.
        pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
        /// RW, 16 bits: whether the queue is enabled.
        pub const QUEUE_ENABLE: u64 = 0x1c;
        /// R, 16 bits: which doorbell is the queue's.
        pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
        /// RW, 64 bits: descriptor area.
        pub const QUEUE_DESC: u64 = 0x20;
        /// RW, 64 bits: driver area.
        pub const QUEUE_DRIVER: u64 = 0x28;
        /// RW, 64 bits: device area.
        pub const QUEUE_DEVICE: u64 = 0x30;
        /// R, 16 bits: value for notifications, with VIRTIO_F_NOTIF_CONFIG_DATA.
        pub const QUEUE_NOTIF_CONFIG_DATA: u64 = 0x38;
        /// RW, 16 bits: resets the queue, with VIRTIO_F_RING_RESET.
        pub const QUEUE_RESET: u64 = 0x3a;
        /// Length of the structure.
        pub const LENGTH: u64 = 0x3c;
    }
}

/// Registers of the MMIO transport by their offset in bytes (virtio 1.3 §4.2.2). 32 bits each.
pub mod mmio {
    /// R: "virt".
    pub const MAGIC_VALUE: u64 = 0x000;
    /// R: version of this layout.
    pub const VERSION: u64 = 0x004;
    /// R: device type.
    pub const DEVICE_ID: u64 = 0x008;
    /// R: vendor of the device.
    pub const VENDOR_ID: u64 = 0x00c;
    /// R: the selected word of the offered features.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// W: selects a word of the offered features.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// W: the selected word of the accepted features.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// W: selects a word of the accepted features.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// W: selects a queue.
    pub const QUEUE_SEL: u64 = 0x030;
    /// R: greatest size of the selected queue; 0 if there is no such queue.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// W: size of the selected queue.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// RW: whether the selected queue is enabled.
    pub const QUEUE_READY: u64 = 0x044;
    /// W: doorbell; the value is the queue's index.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// R: pending interrupt causes.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// W: clears interrupt causes.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// RW: device status.
    pub const STATUS: u64 = 0x070;
    /// W: descriptor area, low half.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// W: descriptor area, high half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// W: driver area, low half.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// W: driver area, high half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// W: device area, low half.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// W: device area, high half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// W: selects a shared memory region.
    pub const SHM_SEL: u64 = 0x0ac;
    /// R: length of the shared memory region, low half.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// R: base of the shared memory region, high half. The length's high half and the base's low half lie between.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// RW: resets the selected queue.
    pub const QUEUE_RESET: u64 = 0x0c0;
    /// R: changes whenever the configuration space does.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Start of the device-specific configuration space.
    pub const CONFIG: u64 = 0x100;

    /// Value of [`MAGIC_VALUE`].
    pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");
    /// Value of [`VERSION`].
    pub const LAYOUT: u32 = 2;
}
