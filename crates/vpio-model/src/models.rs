//! The models that come with the crate, as text.

/// NE2000, ISA or PCI.
pub const NE2000: &str = include_str!("../models/ne2000.vpio");
/// RTL8139 with four transmit slots.
pub const RTL8139: &str = include_str!("../models/rtl8139.vpio");
/// RTL8139C+ with rings of descriptors.
pub const RTL8139CP: &str = include_str!("../models/rtl8139cp.vpio");
/// Intel 82540EM.
pub const E1000: &str = include_str!("../models/e1000.vpio");
/// AHCI with six ports.
pub const AHCI: &str = include_str!("../models/ahci.vpio");
/// The bus-master registers of PIIX IDE.
pub const PIIX_BMIDE: &str = include_str!("../models/piix-bmide.vpio");

/// All of them, by the names of their files.
pub const ALL: [(&str, &str); 6] = [
    ("ne2000.vpio", NE2000),
    ("rtl8139.vpio", RTL8139),
    ("rtl8139cp.vpio", RTL8139CP),
    ("e1000.vpio", E1000),
    ("ahci.vpio", AHCI),
    ("piix-bmide.vpio", PIIX_BMIDE),
];
