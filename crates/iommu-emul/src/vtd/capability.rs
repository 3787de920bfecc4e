use serde::{Deserialize, Serialize};

use crate::spec::register::{Cap, Ecap, cap, ecap, offset};

/// What a unit shall be able to do; [`Config::capabilities`] checks that it is consistent.
///
/// The default is a legacy-mode unit: 3 and 4 levels, 2 MiB and 1 GiB pages, pass-through, interrupt remapping with x2APIC
/// destinations, one fault recording register, registers within one 4 KiB page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Width of the guest's physical addresses in bits, 32 to 52.
    pub host_address_width: u8,
    /// Most levels of paging tables, 3 to 5; fewer, down to 3, are supported too.
    pub levels: u8,
    /// Caching mode: the guest invalidates what it makes present too (§6.1), so that tables can be shadowed.
    pub caching_mode: bool,
    /// Scalable mode (§3.4.3).
    pub scalable: bool,
    /// First-stage translation; needs `scalable`.
    pub first_stage: bool,
    /// Nested translation; needs `first_stage`.
    pub nested: bool,
    /// Width of a PASID in bits, 0 (no requests with PASID) to 20; needs `scalable`.
    pub pasid_bits: u8,
    /// Pass-through translation type.
    pub pass_through: bool,
    /// Device-TLBs.
    pub device_tlb: bool,
    /// Interrupt remapping (§5.1).
    pub interrupt_remapping: bool,
    /// 32-bit interrupt destinations (x2APIC); needs `interrupt_remapping`.
    pub extended_interrupts: bool,
    /// Interrupt posting (§5.2); needs `extended_interrupts`.
    pub posted_interrupts: bool,
    /// Number of fault recording registers, 1 to 256.
    pub fault_records: u16,
    /// Offset of the fault recording registers in bytes, a multiple of 16.
    pub fault_record_offset: u16,
    /// Offset of the IOTLB registers in bytes, a multiple of 16.
    pub iotlb_offset: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            host_address_width: 48,
            levels: 4,
            caching_mode: false,
            scalable: false,
            first_stage: false,
            nested: false,
            pasid_bits: 0,
            pass_through: true,
            device_tlb: false,
            interrupt_remapping: true,
            extended_interrupts: true,
            posted_interrupts: false,
            fault_records: 1,
            fault_record_offset: 0x220,
            iotlb_offset: offset::FIRST_FREE,
        }
    }
}

/// Why a [`Config`] is not a possible unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// A number is out of its range.
    #[error("{field} is {value}, not {min} to {max}")]
    Range {
        /// The field of [`Config`].
        field: &'static str,
        /// Its value.
        value: u16,
        /// Least value.
        min: u16,
        /// Greatest value.
        max: u16,
    },
    /// A feature needs another.
    #[error("{feature} needs {needs}")]
    Needs {
        /// The feature that is switched on.
        feature: &'static str,
        /// The feature that is switched off.
        needs: &'static str,
    },
    /// A block of registers is misplaced.
    #[error(
        "{field} {offset:#x} is not a multiple of 16 in the free part of the registers, or overlaps the other block"
    )]
    Offset {
        /// The field of [`Config`].
        field: &'static str,
        /// Its value.
        offset: u16,
    },
}

impl Config {
    /// Registers for a unit whose first register page can be plain guest memory (polled by a sidecore): what must trap, the
    /// fault recording and IOTLB registers, lies on the second page.
    pub fn on_second_page(self) -> Self {
        Self {
            iotlb_offset: 0x1000,
            fault_record_offset: 0x1010,
            ..self
        }
    }

    /// Checks the configuration and computes the capability registers.
    pub fn capabilities(&self) -> Result<Capabilities, CapabilityError> {
        self.check()?;
        let mut cap =
            Cap::SAGAW_39 | Cap::SSLPS_2M | Cap::SSLPS_1G | Cap::PSI | Cap::DWD | Cap::DRD;
        cap.set(Cap::SAGAW_48, self.levels >= 4);
        cap.set(Cap::SAGAW_57, self.levels >= 5);
        cap.set(Cap::CM, self.caching_mode);
        cap.set(Cap::PI, self.posted_interrupts);
        cap.set(Cap::FS1GP, self.first_stage);
        cap.set(Cap::FS5LP, self.first_stage && self.levels >= 5);
        let cap_fields = cap::ND_16_BITS
            | u64::from(self.address_width() - 1) << cap::MGAW_SHIFT
            | u64::from(self.fault_record_offset / 16) << cap::FRO_SHIFT
            | u64::from(self.fault_records - 1) << cap::NFR_SHIFT
            | u64::from(Capabilities::MAX_ADDRESS_MASK) << cap::MAMV_SHIFT;

        let mut ecap = Ecap::C | Ecap::QI;
        ecap.set(Ecap::IR, self.interrupt_remapping);
        ecap.set(Ecap::EIM, self.extended_interrupts);
        ecap.set(Ecap::PT, self.pass_through);
        ecap.set(Ecap::DT, self.device_tlb);
        ecap.set(
            Ecap::SMTS | Ecap::SSTS | Ecap::SRS | Ecap::SMPWCS,
            self.scalable,
        );
        ecap.set(Ecap::FSTS, self.first_stage);
        ecap.set(Ecap::NEST, self.nested);
        ecap.set(Ecap::PASID, self.pasid_bits > 0);
        let mut ecap_fields = u64::from(self.iotlb_offset / 16) << ecap::IRO_SHIFT
            | u64::from(self.pasid_bits.saturating_sub(1)) << ecap::PSS_SHIFT;
        if self.interrupt_remapping {
            ecap_fields |= 0xf << ecap::MHMV_SHIFT;
        }
        Ok(Capabilities {
            cap: cap.bits() | cap_fields,
            ecap: ecap.bits() | ecap_fields,
            config: self.clone(),
        })
    }

    fn address_width(&self) -> u8 {
        12 + 9 * self.levels
    }

    fn check(&self) -> Result<(), CapabilityError> {
        let range = |field, value: u16, min, max| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(CapabilityError::Range {
                    field,
                    value,
                    min,
                    max,
                })
            }
        };
        range("host_address_width", self.host_address_width.into(), 32, 52)?;
        range("levels", self.levels.into(), 3, 5)?;
        range("pasid_bits", self.pasid_bits.into(), 0, 20)?;
        range("fault_records", self.fault_records, 1, 256)?;

        let needs = |feature, on: bool, needs, met: bool| {
            if on && !met {
                Err(CapabilityError::Needs { feature, needs })
            } else {
                Ok(())
            }
        };
        needs("first_stage", self.first_stage, "scalable", self.scalable)?;
        needs("nested", self.nested, "first_stage", self.first_stage)?;
        needs("pasid_bits", self.pasid_bits > 0, "scalable", self.scalable)?;
        needs(
            "extended_interrupts",
            self.extended_interrupts,
            "interrupt_remapping",
            self.interrupt_remapping,
        )?;
        needs(
            "posted_interrupts",
            self.posted_interrupts,
            "extended_interrupts",
            self.extended_interrupts,
        )?;

        let faults = u32::from(self.fault_record_offset)
            ..u32::from(self.fault_record_offset) + 16 * u32::from(self.fault_records);
        let iotlb = u32::from(self.iotlb_offset)..u32::from(self.iotlb_offset) + 16;
        let placed =
            |start: u16| start.is_multiple_of(16) && (offset::FIRST_FREE..=0x3ff0).contains(&start);
        if !placed(self.iotlb_offset) {
            return Err(CapabilityError::Offset {
                field: "iotlb_offset",
                offset: self.iotlb_offset,
            });
        }
        if !placed(self.fault_record_offset)
            || (faults.start < iotlb.end && iotlb.start < faults.end)
        {
            return Err(CapabilityError::Offset {
                field: "fault_record_offset",
                offset: self.fault_record_offset,
            });
        }
        Ok(())
    }
}

/// A consistent set of capabilities: the capability registers and what they promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    cap: u64,
    ecap: u64,
    config: Config,
}

impl Capabilities {
    /// MAMV: the largest address mask that a page-selective invalidation may use, 2^18 pages or one GiB.
    pub const MAX_ADDRESS_MASK: u8 = 18;

    /// The capability register.
    pub fn cap(&self) -> u64 {
        self.cap
    }

    /// The extended capability register.
    pub fn ecap(&self) -> u64 {
        self.ecap
    }

    /// The configuration that these come from.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Size of the register window in bytes, a power-of-two number of 4 KiB pages (§8.3, DRHD size).
    pub fn register_bytes(&self) -> u64 {
        let faults =
            u64::from(self.config.fault_record_offset) + 16 * u64::from(self.config.fault_records);
        let iotlb = u64::from(self.config.iotlb_offset) + 16;
        faults.max(iotlb).max(4096).next_power_of_two()
    }

    /// Whether tables of `levels` levels are supported (SAGAW).
    pub fn supports_levels(&self, levels: u8) -> bool {
        (3..=self.config.levels).contains(&levels)
    }

    /// The widest address that a second stage translates, in bits (MGAW).
    pub fn guest_address_width(&self) -> u8 {
        self.config.address_width()
    }

    /// Whether a guest-physical address is beyond the host address width.
    pub fn beyond_host(&self, address: u64) -> bool {
        address >> self.config.host_address_width != 0
    }
}
