//! Faults and their records (§7.1, §9.9).

use super::mask;

/// Why a request was blocked: the fault reason codes (§7.1, tables of fault conditions).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FaultReason {
    /// LRT.2: the root entry is not present.
    RootNotPresent = 0x01,
    /// LCT.2: the context entry is not present.
    ContextNotPresent = 0x02,
    /// LCT.4: the context entry is invalid: an unsupported width, a reserved translation type, or a root of the second-stage tables
    /// that could not be read.
    ContextInvalid = 0x03,
    /// LGN.1: the address is beyond the width of the tables or of the unit.
    AddressBeyondWidth = 0x04,
    /// LGN.2: no write permission.
    Write = 0x05,
    /// LGN.3: no read permission.
    Read = 0x06,
    /// LSL.1: a second-stage entry below the root could not be read.
    SecondStageAccess = 0x07,
    /// LRT.1: the root entry could not be read.
    RootAccess = 0x08,
    /// LCT.1: the context entry could not be read.
    ContextAccess = 0x09,
    /// LRT.3: a reserved field of the root entry is set.
    RootReserved = 0x0a,
    /// LCT.3: a reserved field of the context entry is set.
    ContextReserved = 0x0b,
    /// LSL.2: a reserved field of a second-stage entry is set.
    SecondStageReserved = 0x0c,
    /// LGN.4: the translation ends in the interrupt address range.
    InterruptAddress = 0x0e,

    /// A reserved field of a remappable interrupt request is set.
    InterruptRequestReserved = 0x20,
    /// The index is beyond the interrupt remapping table.
    InterruptIndex = 0x21,
    /// The interrupt remapping entry is not present.
    InterruptEntryNotPresent = 0x22,
    /// The interrupt remapping entry could not be read.
    InterruptEntryAccess = 0x23,
    /// A reserved field of the interrupt remapping entry is set.
    InterruptEntryReserved = 0x24,
    /// A compatibility format interrupt was blocked.
    InterruptCompatibility = 0x25,
    /// The source of the interrupt does not match the entry.
    InterruptSource = 0x26,
    /// The posted interrupt descriptor could not be read or written.
    PostedDescriptorAccess = 0x27,
    /// A reserved field of the posted interrupt descriptor is set.
    PostedDescriptorReserved = 0x28,

    /// RTA.1: the root table address register is invalid.
    RootTableAddress = 0x30,
    /// RTA.2: a request with PASID in legacy mode.
    PasidInLegacyMode = 0x31,
    /// SRT.1: the root entry could not be read.
    ScalableRootAccess = 0x38,
    /// SRT.2: the half of the root entry is not present.
    ScalableRootNotPresent = 0x39,
    /// SRT.3: a reserved field of the root entry is set.
    ScalableRootReserved = 0x3a,
    /// SCT.1: the context entry could not be read.
    ScalableContextAccess = 0x40,
    /// SCT.2: the context entry is not present.
    ScalableContextNotPresent = 0x41,
    /// SCT.3: a reserved field of the context entry is set.
    ScalableContextReserved = 0x42,
    /// SCT.6: a request with PASID, but PASIDE is clear.
    PasidDisabled = 0x45,
    /// SCT.7: the PASID is beyond the directory.
    PasidBeyondDirectory = 0x46,
    /// SCT.9: RID_PASID is beyond the directory.
    RidPasid = 0x48,
    /// SPD.1: the PASID directory entry could not be read.
    PasidDirectoryAccess = 0x50,
    /// SPD.2: the PASID directory entry is not present.
    PasidDirectoryNotPresent = 0x51,
    /// SPD.3: a reserved field of the PASID directory entry is set.
    PasidDirectoryReserved = 0x52,
    /// SPT.1: the PASID table entry could not be read.
    PasidEntryAccess = 0x58,
    /// SPT.2: the PASID table entry is not present.
    PasidEntryNotPresent = 0x59,
    /// SPT.3: a reserved field of the PASID table entry is set.
    PasidEntryReserved = 0x5a,
    /// SPT.4: the PASID table entry is invalid: an unsupported width, mode or translation type.
    PasidEntryInvalid = 0x5b,
    /// SFL.1: a first-stage entry below the root could not be read.
    FirstStageAccess = 0x70,
    /// SFL.2: a first-stage entry is not present.
    FirstStageNotPresent = 0x71,
    /// SFL.3: a reserved field of a first-stage entry is set.
    FirstStageReserved = 0x72,
    /// SFL.4: an entry of the first-stage root could not be read.
    FirstStageRootAccess = 0x73,
    /// SFL.5: nested, the address of a first-stage table is beyond the second stage's width.
    FirstStageBeyondWidth = 0x74,
    /// SFL.6: nested, the second stage does not let the first-stage root be read.
    FirstStageRootRead = 0x75,
    /// SFL.7: nested, the second stage does not let another first-stage table be read.
    FirstStageTableRead = 0x76,
    /// SFL.8: nested, the second stage does not let a first-stage entry's accessed and dirty flags be written.
    FirstStageTableWrite = 0x77,
    /// SSL.1: a second-stage entry below the root could not be read.
    ScalableSecondStageAccess = 0x78,
    /// SSL.3: a reserved field of a second-stage entry is set.
    ScalableSecondStageReserved = 0x7a,
    /// SSL.4: an entry of the second-stage root could not be read.
    ScalableSecondStageRootAccess = 0x7b,
    /// SGN.1: the address is not canonical.
    NotCanonical = 0x80,
    /// SGN.2: a user-privilege request to a supervisor page.
    Privilege = 0x81,
    /// SGN.4: the address is beyond the width of the tables or of the unit.
    ScalableAddressBeyondWidth = 0x83,
    /// SGN.5: nested, the output of the first stage is beyond the second stage's width.
    SecondStageAddressBeyondWidth = 0x84,
    /// SGN.6: no write permission.
    ScalableWrite = 0x85,
    /// SGN.7: no read permission.
    ScalableRead = 0x86,
    /// SGN.8: the translation of a request ends in the interrupt address range, or a request with PASID starts there.
    ScalableInterruptAddress = 0x87,
    /// SFL.10: the accessed and dirty flags of a first-stage entry could not be set.
    FirstStageFlagUpdate = 0x91,
}

/// What a fault record tells (§9.9): the two words of a fault recording register.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FaultRecord(pub [u64; 2]);

impl FaultRecord {
    /// F: the register holds a fault; write 1 to clear.
    pub const FAULT: u64 = 1 << 63;
    const READ: u64 = 1 << 62;
    const PASID_PRESENT: u64 = 1 << 31;

    /// The record of a blocked DMA request of `source` to `address`.
    pub fn dma(
        reason: FaultReason,
        source: u16,
        pasid: Option<u32>,
        address: u64,
        write: bool,
    ) -> Self {
        let mut high = Self::FAULT | (reason as u64) << 32 | u64::from(source);
        if !write {
            high |= Self::READ;
        }
        if let Some(pasid) = pasid {
            high |= Self::PASID_PRESENT | (u64::from(pasid) << 40) & mask(59, 40);
        }
        Self([address & mask(63, 12), high])
    }

    /// The record of a blocked interrupt request of `source` for the remapping entry `index`.
    pub fn interrupt(reason: FaultReason, source: u16, index: u16) -> Self {
        Self([
            u64::from(index) << 48,
            Self::FAULT | (reason as u64) << 32 | u64::from(source),
        ])
    }

    /// F: the register holds a fault.
    pub const fn pending(self) -> bool {
        self.0[1] & Self::FAULT != 0
    }

    /// The fault reason code.
    pub const fn reason(self) -> u8 {
        super::low8(self.0[1] >> 32)
    }

    /// The requester that was blocked.
    pub const fn source(self) -> u16 {
        super::low16(self.0[1])
    }

    /// Whether no reserved field is set: what hardware can have recorded.
    pub const fn valid(self) -> bool {
        self.0[1] & mask(30, 16) == 0
    }
}
