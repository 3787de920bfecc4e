//! The ACPI tables: a hardware-reduced machine (ACPI 6.5 §4.1), so that there is no SCI, no PM timer and no PIC to describe.

mod dsdt;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use iommu_emul::dmar::Dmar;
use iommu_emul::viot::Viot;

pub use dsdt::VirtioMmioSlot;

use crate::devices::{cmos, keyboard, power};
use crate::machine::layout::{ACPI_TABLES, IOAPIC, IOAPIC_ID, LOCAL_APIC, Layout};

const OEM_ID: [u8; 6] = *b"VRING ";
const OEM_TABLE_ID: [u8; 8] = *b"REFVMM  ";
const OEM_REVISION: u32 = 1;

/// Length of the header that every table has (ACPI 6.5 table 5.4).
const HEADER: u32 = 36;

/// `IAPC_BOOT_ARCH`: there is no VGA (ACPI 6.5 table 5.11).
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    /// The address map.
    pub layout: &'a Layout,
    /// Number of processors; their APIC IDs are 0 and up.
    pub cpus: u8,
    /// The virtio devices that are not found by themselves.
    pub virtio_mmio: &'a [VirtioMmioSlot],
    /// What announces the IOMMU, if there is one.
    pub iommu: Option<&'a IommuTable>,
}

/// The table that tells of IOMMUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IommuTable {
    /// VT-d units (VT-d §8).
    Dmar(Dmar),
    /// Paravirtual IOMMUs (ACPI 6.5, VIOT).
    Viot(Viot),
}

/// The tables as they lie in guest memory.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Where the first byte goes.
    pub address: u64,
    /// All tables.
    pub bytes: Vec<u8>,
    /// Where the RSDP is.
    pub rsdp: u64,
}

/// The tables do not fit in the range that is kept for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables take {0} bytes, more than there is room for")]
pub struct TooLarge(usize);

/// Builds the tables for `board`.
pub fn build(board: &Board<'_>) -> Result<Tables, TooLarge> {
    let mut tables = Tables {
        address: ACPI_TABLES.start,
        bytes: vec![0; Rsdp::len()],
        rsdp: ACPI_TABLES.start,
    };
    let dsdt = tables.append(&dsdt::build(board));
    let fadt = tables.append(&fadt(dsdt));
    let madt = tables.append(&madt(board.cpus));
    let mcfg = tables.append(&mcfg(board.layout));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let iommu = board.iommu.map(|table| tables.append(&iommu(table)));
    for table in [fadt, madt, mcfg].into_iter().chain(iommu) {
        xsdt.add_entry(table);
    }
    let xsdt = tables.append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    tables.bytes.splice(..rsdp.len(), rsdp);
    let room = ACPI_TABLES.end.saturating_sub(ACPI_TABLES.start);
    if tables.bytes.len() as u64 > room {
        return Err(TooLarge(tables.bytes.len()));
    }
    Ok(tables)
}

impl Tables {
    /// Adds a table on an 8-byte boundary and returns its address.
    fn append(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let address = self.address.saturating_add(self.bytes.len() as u64);
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |address: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            address.into(),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::Unspecified)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    // Without the legacy-device and keyboard-controller bits an OS does not go looking for them.
    fadt.iapc_boot_arch = VGA_NOT_PRESENT.into();
    fadt.century = cmos::CENTURY;
    fadt.reset_reg = port(keyboard::COMMAND);
    fadt.reset_value = keyboard::RESET;
    fadt.sleep_control_reg = port(power::CONTROL);
    fadt.sleep_status_reg = port(power::STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(LOCAL_APIC),
    );
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(
        IOAPIC_ID,
        u32::try_from(IOAPIC).unwrap_or_default(),
        0,
    ));
    madt
}

fn iommu(table: &IommuTable) -> Sdt {
    let (signature, revision, body) = match table {
        IommuTable::Dmar(dmar) => (*b"DMAR", 1, dmar.body().to_vec()),
        IommuTable::Viot(viot) => (*b"VIOT", 0, viot.body()),
    };
    let mut table = Sdt::new(
        signature,
        HEADER,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&body);
    table
}

fn mcfg(layout: &Layout) -> impl Aml {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout.ecam().start, 0, 0, layout.last_pci_bus());
    mcfg
}
