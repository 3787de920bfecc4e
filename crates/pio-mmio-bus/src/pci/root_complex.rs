use std::sync::Arc;

use super::RequesterId;
use super::builder::{ConfigBuilder, ConfigError, Identity};
use super::decode::Decoder;
use super::intx::IntxLines;
use super::topology::{PciBus, TopologyError};
use crate::interrupt::IrqLine;

/// Why a root complex or a port of it could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// Its configuration space.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its place.
    #[error(transparent)]
    Topology(#[from] TopologyError),
}

/// Where PCI begins: bus 0 with a host bridge at device 0, and the four interrupt lines.
pub struct RootComplex {
    bus: PciBus,
    intx: IntxLines,
    decoder: Arc<Decoder>,
}

impl RootComplex {
    /// The host bridge: the identity that QEMU's generic one has, since no driver binds to it but all know it.
    const HOST_BRIDGE: Identity = Identity {
        vendor: 0x1b36,
        device: 0x0008,
        revision: 0,
        class: [0x06, 0x00, 0x00],
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
    };

    /// A root complex whose functions decode through `decoder` and whose INTx pins drive `lines`.
    pub fn new(
        decoder: Arc<Decoder>,
        lines: [Arc<dyn IrqLine>; 4],
    ) -> Result<Arc<Self>, RootError> {
        let bus = PciBus::new(0);
        bus.insert(
            0,
            ConfigBuilder::endpoint(Self::HOST_BRIDGE).build(&decoder)?,
        )?;
        Ok(Arc::new(Self {
            bus,
            intx: IntxLines::new(lines),
            decoder,
        }))
    }

    /// Bus 0.
    pub fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// The interrupt lines as the devices on bus 0 see them.
    pub fn intx(&self) -> &IntxLines {
        &self.intx
    }

    /// What places BARs.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    /// A configuration read. All ones where there is no function (PCIe §2.3.2).
    pub fn read_config(&self, id: RequesterId, offset: u16, data: &mut [u8]) {
        match self.bus.find(id) {
            Some(function) => function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A configuration write. Ignored where there is no function.
    pub fn write_config(&self, id: RequesterId, offset: u16, data: &[u8]) {
        if let Some(function) = self.bus.find(id) {
            function.write_config(offset, data);
        }
    }
}
