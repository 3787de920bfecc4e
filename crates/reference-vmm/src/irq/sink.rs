use std::io;

use kvm_bindings::kvm_msi;
use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiSink};

use crate::kvm::Vm;

/// Delivers single messages to the in-kernel local APICs.
#[derive(Clone, Debug)]
pub struct KvmSink {
    vm: Vm,
}

impl KvmSink {
    /// The local APICs of `vm`.
    pub fn new(vm: Vm) -> Self {
        Self { vm }
    }
}

impl MsiSink for KvmSink {
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError> {
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        let msi = kvm_msi {
            address_lo: u32::from_le_bytes([a, b, c, d]),
            address_hi: u32::from_le_bytes([e, f, g, h]),
            data: message.data,
            ..Default::default()
        };
        // The answer 0 is a guest that does not take it, as a masked local APIC does.
        self.vm.signal_msi(msi).map_err(io::Error::from)?;
        Ok(())
    }
}
