//! A guest that does anything to a physical function of ours, and to the configuration space of an assigned device whose own bytes may
//! be anything; snapshots with changed bytes.

use std::error::Error;
use std::sync::Arc;

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice};
use pio_mmio_bus::interrupt::{IrqLine, RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{
    BarKind, Capability, ConfigBuilder, Decoder, Identity, PciFunction, PortType, RequesterId,
    RootComplex, RootPort,
};
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::emulated::{
    Layout, PhysicalFunction, VfBarLayout, VfFactory, VfShare, VirtualFunction,
};
use sriov_vfio::spec::sriov::{Control, VF_ID};
use sriov_vfio::vfio::fake::FakeDevice;
use sriov_vfio::vfio::{AssignedFunction, Interrupt, Policy, RegionIndex, VfioDevice};

use crate::input::Input;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x10c9,
    revision: 1,
    class: [2, 0, 0],
    subsystem_vendor: 0x8086,
    subsystem: 0,
};
/// Virtual functions of the physical one.
const TOTAL: u16 = 5;
/// Where its capability is.
const SRIOV: u16 = 0x108;

struct Silent;

impl BusDevice for Silent {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

struct Factory(Arc<Decoder>);

impl VfFactory for Factory {
    fn create(&self, index: u16) -> Result<VirtualFunction, Box<dyn Error + Send + Sync>> {
        assert!(index < TOTAL, "virtual function {index} of {TOTAL}");
        let identity = Identity {
            vendor: VF_ID,
            device: VF_ID,
            ..IDENTITY
        };
        let function = ConfigBuilder::virtual_function(identity)
            .capability(Capability::express(PortType::Endpoint))
            .build(&self.0)?;
        Ok(VirtualFunction {
            function,
            shares: [0, 2]
                .map(|bar| VfShare {
                    bar,
                    device: Arc::new(Silent),
                    doorbells: Vec::new(),
                })
                .into(),
        })
    }
}

fn buses() -> Result<(Bus, Arc<Decoder>), Box<dyn Error>> {
    let mmio = Bus::new(AddressSpace::Mmio)?;
    Ok((
        mmio.clone(),
        Decoder::new(Bus::new(AddressSpace::Pio)?, mmio),
    ))
}

/// Takes the input apart into accesses to a physical function, its port, its virtual functions and their BARs.
pub fn physical(data: &[u8]) {
    let _ = walk(&mut Input(data));
}

fn walk(input: &mut Input<'_>) -> Result<(), Box<dyn Error>> {
    let (mmio, decoder) = buses()?;
    let lines = std::array::from_fn(|_| Arc::new(RecordingLine::default()) as Arc<dyn IrqLine>);
    let root = RootComplex::new(Arc::clone(&decoder), lines)?;
    let port = RootPort::new(&root, 1)?;
    let bar = |index, kind| VfBarLayout {
        index,
        kind,
        size: 0x2000,
    };
    let layout = Layout {
        total_vfs: TOTAL,
        first_vf_offset: 0x7e,
        vf_stride: 0x41,
        bars: vec![
            bar(0, BarKind::Memory64 { prefetchable: true }),
            bar(
                2,
                BarKind::Memory32 {
                    prefetchable: false,
                },
            ),
        ],
        ..Layout::default()
    };
    let builder =
        ConfigBuilder::endpoint(IDENTITY).capability(Capability::express(PortType::Endpoint));
    let factory = Box::new(Factory(Arc::clone(&decoder)));
    let physical = PhysicalFunction::new(builder, layout, factory, &decoder)?;
    port.bus().insert(0, physical.clone())?;
    let mut guest = mmio.reader();
    while !input.0.is_empty() {
        let (what, at) = (input.byte(), input.u16());
        let bytes = input.u64().to_le_bytes();
        let width = 1 << (what >> 6);
        let bytes = bytes.get(..width).unwrap_or_default();
        match what & 7 {
            0..3 => physical.write_config(SRIOV + at % 0x40, bytes),
            3 => physical.write_config(at % 0x200, bytes),
            4 => root.write_config(RequesterId(8), at % 0x80, bytes),
            5 => {
                root.write_config(RequesterId(at), 4, bytes);
                let mut read = [0; 8];
                root.read_config(RequesterId(at), at % 0x100, &mut read);
            }
            6 => {
                let _ = guest.write(input.u64(), bytes);
            }
            _ => {
                let mut state = physical.save();
                if let Some(byte) = state.registers.get_mut(usize::from(SRIOV + at % 0x40)) {
                    *byte ^= bytes.first().copied().unwrap_or(0);
                }
                let _ = physical.restore(&state);
            }
        }
        check(&physical);
    }
    Ok(())
}

/// What the registers say is what there is.
fn check(physical: &PhysicalFunction) {
    let mut config = vec![0; 4096];
    physical.read_config(0, &mut config);
    let found = SriovCapability::find(&config);
    let found = found.ok().flatten();
    assert!(found.is_some(), "the capability has gone");
    let Some(found) = found else {
        return;
    };
    let registers = found.registers();
    let wanted = registers.num_vfs.get();
    assert_eq!(registers.total_vfs.get(), TOTAL);
    assert!(found.system_page_size().is_ok() && found.vf_bars().is_ok());
    let enabled = found.control().contains(Control::VF_ENABLE);
    assert!(!enabled || wanted <= TOTAL, "{wanted} of {TOTAL} enabled");
    let exist = physical.virtual_functions().len();
    assert_eq!(exist, usize::from(if enabled { wanted } else { 0 }));
}

/// Takes the input apart into a device's bytes, then accesses of a guest: hidden registers stay as they are.
pub fn assigned(data: &[u8]) {
    let _ = assign(&mut Input(data));
}

fn assign(input: &mut Input<'_>) -> Result<(), Box<dyn Error>> {
    let mut config = vec![0; 4096];
    let mut put = |offset: u16, bytes: &[u8]| {
        for (to, from) in config.iter_mut().skip(offset.into()).zip(bytes) {
            *to = *from;
        }
    };
    // Something that is nearly a device.
    put(0, &[0x86, 0x80, 0xca, 0x10, 0, 0, 0x10, 0]);
    put(0x10, &[0x0c, 0, 0, 0, 0, 0, 0, 0, 0x01]);
    put(0x34, &[0x40]);
    put(0x40, &[0x11, 0x60, 2, 0, 0, 0, 0, 0, 0, 8]);
    put(0x60, &[0x10, 0xa0, 2, 0, 0, 0, 0, 0x10]);
    put(0xa0, &[0x09, 0xb0, 8]);
    put(0xb0, &[0x05, 0, 0x84, 1]);
    put(0x100, &[0x0b, 0, 1, 0x14, 0, 0, 0, 2]);
    put(0x140, &[0x10, 0, 1, 0]);
    for _ in 0..input.byte() % 32 {
        put(input.u16() & 0x1ff, &[input.byte()]);
    }
    let device = Arc::new(
        FakeDevice::new(config)
            .region(RegionIndex::Bar(0), vec![0; 0x1000], Some(0..0x1000))
            .region(RegionIndex::Bar(2), vec![0; 0x20], None)
            .vectors(Interrupt::Msi, 2)
            .vectors(Interrupt::Msix, 3),
    );
    let (mmio, decoder) = buses()?;
    let router = RecordingRouter::new();
    let shared: Arc<dyn VfioDevice> = device.clone();
    let function = AssignedFunction::new(shared, Policy::default(), &decoder, &router)?;
    let before = device.contents(RegionIndex::Config);
    let mut guest = mmio.reader();
    while !input.0.is_empty() {
        let (what, at) = (input.byte(), input.u16());
        let bytes = input.u64().to_le_bytes();
        let bytes = bytes.get(..1 << (what >> 6)).unwrap_or_default();
        match what & 7 {
            0..4 => function.write_config(at & 0x1ff, bytes),
            4 => function.write_config(at, bytes),
            5 => {
                let mut read = bytes.to_vec();
                function.read_config(at, &mut read);
            }
            6 => {
                let _ = guest.write(u64::from(at) << 4, bytes);
            }
            _ => function.set_upstream(at & 1 != 0),
        }
    }
    let after = device.contents(RegionIndex::Config);
    let mut shown = vec![0; 4096];
    function.read_config(0, &mut shown);
    assert_eq!(SriovCapability::find(&shown), Ok(None));
    // Command and status, then BARs and the rest of the header, which stay the device's.
    assert_eq!(before.get(8..0x40), after.get(8..0x40));
    let command = |config: &[u8]| config.get(4).map(|byte| byte & !4);
    assert_eq!(command(&before), command(&after));
    Ok(())
}
