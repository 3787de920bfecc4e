use std::sync::Arc;

use super::function::CapabilityHandler;
use super::spec::{
    acs, ari, capability_id, express,
    express::{DeviceControl, ROLE_BASED_ERRORS},
    extended_capability_id,
};

/// A capability to be placed in a configuration space: its registers, what the guest may do to them, and its handler.
///
/// Offsets are from the start of the capability, header included. The header itself is made when it is placed.
pub struct Capability {
    pub(super) id: Id,
    pub(super) registers: Vec<u8>,
    pub(super) writable: Vec<u8>,
    pub(super) clearable: Vec<u8>,
    pub(super) handler: Option<Arc<dyn CapabilityHandler>>,
}

/// Which list a capability belongs to, and its name there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Id {
    Standard(u8),
    Extended { id: u16, version: u8 },
}

/// What kind of port or endpoint a PCI Express capability announces (PCIe §7.5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortType {
    /// A device behind a port.
    Endpoint,
    /// A device on the root complex's own bus.
    IntegratedEndpoint,
    /// A root port with this port number.
    RootPort(u8),
}

impl Capability {
    /// A capability of `length` bytes, two of them its header, all others 0 and read-only (PCI §6.7).
    pub fn standard(id: u8, length: usize) -> Self {
        Self::new(Id::Standard(id), length)
    }

    /// An extended capability of `length` bytes, four of them its header, all others 0 and read-only (PCIe §7.6).
    pub fn extended(id: u16, version: u8, length: usize) -> Self {
        Self::new(Id::Extended { id, version }, length)
    }

    fn new(id: Id, length: usize) -> Self {
        Self {
            id,
            registers: vec![0; length],
            writable: vec![0; length],
            clearable: vec![0; length],
            handler: None,
        }
    }

    /// Sets the initial value of the registers from `offset`. Bytes beyond the end are dropped.
    pub fn value(mut self, offset: usize, bytes: &[u8]) -> Self {
        put(&mut self.registers, offset, bytes);
        self
    }

    /// Makes the bits set in `mask` writable.
    pub fn writable(mut self, offset: usize, mask: &[u8]) -> Self {
        put(&mut self.writable, offset, mask);
        self
    }

    /// Makes the bits set in `mask` clear when 1 is written.
    pub fn write_one_to_clear(mut self, offset: usize, mask: &[u8]) -> Self {
        put(&mut self.clearable, offset, mask);
        self
    }

    /// Lets `handler` take part.
    pub fn handler(mut self, handler: Arc<dyn CapabilityHandler>) -> Self {
        self.handler = Some(handler);
        self
    }

    /// The PCI Express capability (PCIe §7.5.3). Endpoints can be reset by function, a root port can forward ARI
    /// requests and has a link that is up.
    pub fn express(port: PortType) -> Self {
        let (kind, device) = match port {
            PortType::Endpoint => (0, express::FUNCTION_LEVEL_RESET),
            PortType::RootPort(_) => (4, 0),
            PortType::IntegratedEndpoint => (9, express::FUNCTION_LEVEL_RESET),
        };
        let control = DeviceControl::all().difference(DeviceControl::INITIATE_RESET);
        let mut capability = Self::standard(capability_id::EXPRESS, express::LENGTH)
            .value(
                express::CAPABILITIES,
                &(express::VERSION | kind << 4).to_le_bytes(),
            )
            .value(
                express::DEVICE_CAPABILITIES,
                &(ROLE_BASED_ERRORS | device).to_le_bytes(),
            )
            .value(
                express::DEVICE_CONTROL,
                &DeviceControl::RESET.bits().to_le_bytes(),
            )
            .writable(express::DEVICE_CONTROL, &control.bits().to_le_bytes())
            .write_one_to_clear(
                express::DEVICE_STATUS,
                &express::DEVICE_STATUS_CLEARABLE.to_le_bytes(),
            );
        if port != PortType::IntegratedEndpoint {
            let (number, active, status) = match port {
                PortType::RootPort(number) => (
                    u32::from(number),
                    express::LINK_ACTIVE_REPORTING,
                    express::LINK_ACTIVE,
                ),
                _ => (0, 0, 0),
            };
            capability = capability
                .value(
                    express::LINK_CAPABILITIES,
                    &(express::LINK_GEN1_X1 | active | number << 24).to_le_bytes(),
                )
                .writable(
                    express::LINK_CONTROL,
                    &express::LINK_CONTROL_WRITABLE.to_le_bytes(),
                )
                .value(
                    express::LINK_STATUS,
                    &(express::LINK_STATUS_GEN1_X1 | status).to_le_bytes(),
                )
                .value(
                    express::LINK_CAPABILITIES_2,
                    &express::LINK_SPEEDS_GEN1.to_le_bytes(),
                )
                .value(express::LINK_CONTROL_2, &1_u16.to_le_bytes())
                .writable(
                    express::LINK_CONTROL_2,
                    &express::TARGET_LINK_SPEED.to_le_bytes(),
                );
        }
        if matches!(port, PortType::RootPort(_)) {
            let ari = express::ARI_FORWARDING.to_le_bytes();
            capability = capability
                .writable(
                    express::ROOT_CONTROL,
                    &express::ROOT_CONTROL_WRITABLE.to_le_bytes(),
                )
                .write_one_to_clear(
                    express::ROOT_STATUS,
                    &express::ROOT_STATUS_PME.to_le_bytes(),
                )
                .value(express::DEVICE_CAPABILITIES_2, &ari)
                .writable(express::DEVICE_CONTROL_2, &ari);
        }
        capability
    }

    /// Access control services that software can enable (PCIe §7.7.8).
    pub fn access_control(services: acs::Services) -> Self {
        let bits = services.bits().to_le_bytes();
        Self::extended(extended_capability_id::ACS, acs::VERSION, acs::LENGTH)
            .value(acs::CAPABILITY, &bits)
            .writable(acs::CONTROL, &bits)
    }

    /// Alternative routing-ID interpretation, by which software finds functions above 7; `next` is the function to look
    /// at after this one, 0 for none (PCIe §7.8.7).
    pub fn alternative_routing(next: u8) -> Self {
        Self::extended(extended_capability_id::ARI, ari::VERSION, ari::LENGTH)
            .value(ari::NEXT_FUNCTION, &[next])
    }
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in target.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}
