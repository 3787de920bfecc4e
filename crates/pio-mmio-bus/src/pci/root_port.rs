use std::sync::Arc;

use super::RequesterId;
use super::builder::{ConfigBuilder, Identity};
use super::capability::{Capability, PortType};
use super::config::{ConfigSpace, ConfigSpaceState, ConfigStateError};
use super::function::PciFunction;
use super::intx::IntxLines;
use super::root_complex::{RootComplex, RootError};
use super::spec::acs::Services;
use super::spec::{COMMAND, Command, FIRST_CAPABILITY, bridge, express};
use super::topology::PciBus;

/// A PCI Express root port: a bridge from bus 0 to a bus with one device.
///
/// It offers access control services, so that an IOMMU can tell the functions behind it apart, and forwards requests to
/// functions above 7 once the guest enables ARI (PCIe §6.13). It forwards nothing upstream until it may master the bus. The windows hold what the guest programs but do not
/// filter: a BAR behind the port is decoded wherever it is.
pub struct RootPort {
    config: Arc<ConfigSpace>,
    bus: PciBus,
    intx: IntxLines,
}

impl RootPort {
    /// The identity that QEMU's root port has: the class is all that drivers look at.
    const IDENTITY: Identity = Identity {
        vendor: 0x1b36,
        device: 0x000c,
        revision: 0,
        class: [0x06, 0x04, 0x00],
        subsystem_vendor: 0,
        subsystem: 0,
    };

    /// A port that is device number `device` of `root`, whose port number is the same.
    pub fn new(root: &RootComplex, device: u8) -> Result<Arc<Self>, RootError> {
        let services = Services::SOURCE_VALIDATION
            | Services::REQUEST_REDIRECT
            | Services::COMPLETION_REDIRECT
            | Services::UPSTREAM_FORWARDING;
        let config = ConfigBuilder::bridge(Self::IDENTITY)
            .capability(Capability::express(PortType::RootPort(device)))
            .capability(Capability::access_control(services))
            .build(root.decoder())?;
        let port = Arc::new(Self {
            config,
            bus: PciBus::new(0),
            intx: root.intx().behind(device),
        });
        port.apply();
        root.bus().insert(
            RequesterId::devfn_of(device, 0),
            Arc::clone(&port) as Arc<dyn PciFunction>,
        )?;
        Ok(port)
    }

    /// The bus behind the port. Its device is number 0.
    pub fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// The interrupt lines as the device behind the port sees them.
    pub fn intx(&self) -> &IntxLines {
        &self.intx
    }

    /// Saves the registers of the port. The functions behind it are saved by their owners.
    pub fn save(&self) -> ConfigSpaceState {
        self.config.save()
    }

    /// Takes over saved registers and numbers the bus behind the port as they say.
    pub fn restore(&self, state: &ConfigSpaceState) -> Result<(), ConfigStateError> {
        self.config.restore(state)?;
        self.apply();
        Ok(())
    }

    /// Lets the registers take effect on the bus behind.
    fn apply(&self) {
        self.bus.renumber(|| self.register(bridge::SECONDARY_BUS));
        self.bus.set_upstream(|| {
            let command = u16::from(self.register(COMMAND));
            Command::from_bits_truncate(command).contains(Command::BUS_MASTER)
        });
    }

    fn resetting(&self) -> bool {
        let control = u16::from(self.register(bridge::CONTROL));
        bridge::Control::from_bits_truncate(control).contains(bridge::Control::SECONDARY_BUS_RESET)
    }

    fn register(&self, offset: usize) -> u8 {
        let mut byte = [0];
        if let Ok(offset) = u16::try_from(offset) {
            self.config.read_config(offset, &mut byte);
        }
        let [byte] = byte;
        byte
    }

    fn forwards_ari(&self) -> bool {
        // The PCI Express capability is the first one.
        let control = self.register(FIRST_CAPABILITY + express::DEVICE_CONTROL_2);
        u16::from(control) & express::ARI_FORWARDING != 0
    }
}

impl PciFunction for RootPort {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let before = self.resetting();
        self.config.write_config(offset, data);
        self.apply();
        if self.resetting() && !before {
            self.bus.reset();
        }
    }

    fn set_requester(&self, requester: RequesterId) {
        self.config.set_requester(requester);
    }

    fn reset(&self) {
        self.config.reset();
        self.apply();
        self.bus.reset();
    }

    fn behind(&self, id: RequesterId) -> Option<Arc<dyn PciFunction>> {
        let secondary = self.register(bridge::SECONDARY_BUS);
        let subordinate = self.register(bridge::SUBORDINATE_BUS);
        if secondary == 0 || !(secondary..=subordinate).contains(&id.bus()) {
            return None;
        }
        if id.bus() == secondary && id.device() != 0 && !self.forwards_ari() {
            return None;
        }
        self.bus.find(id)
    }
}
