//! A guest with 1 MiB, and a device that keeps what it is given.

#![allow(dead_code, reason = "each test uses a part")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::sync::Arc;

use vpio_model::engine::{At, Denied, Dma, Engine, Passthrough, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::model::Model;

pub const SIZE: u64 = 1 << 20;
/// Where the device sees guest address 0, and the shadows.
pub const GUEST: u64 = 0x1000_0000;
pub const SHADOW: u64 = 0x8000_0000;

pub struct Machine {
    pub memory: Arc<Memory>,
    pub registers: Arc<Registers>,
    pub device: Passthrough<Arc<Memory>, Arc<Registers>>,
}

pub fn parse(text: &str) -> Model {
    Model::parse("test.vpio", text).unwrap_or_else(|error| panic!("{error}"))
}

impl Machine {
    pub fn new(text: &str) -> Self {
        Self::of(Arc::new(parse(text)))
    }

    pub fn of(model: Arc<Model>) -> Self {
        let shadow = usize::try_from(model.shadow_bytes()).unwrap();
        let translation = Translation::Offset {
            base: GUEST,
            size: SIZE,
        };
        let memory = Arc::new(Memory::new(1 << 20, translation, shadow, SHADOW));
        let registers = Arc::new(Registers::default());
        let engine = Engine::new(model, memory.clone());
        let device = Passthrough::new(engine, registers.clone());
        Self {
            memory,
            registers,
            device,
        }
    }

    pub fn write(&mut self, offset: u64, width: u8, value: u64) -> Result<(), Denied> {
        self.device.write(
            At {
                space: 0,
                offset,
                width,
            },
            value,
        )
    }

    pub fn read(&mut self, offset: u64, width: u8) -> Result<u64, Denied> {
        self.device.read(At {
            space: 0,
            offset,
            width,
        })
    }

    /// What the device was given.
    pub fn given(&self, offset: u64) -> u64 {
        self.registers.get(0, offset).unwrap_or(0)
    }

    pub fn state(&self, variable: &str) -> u64 {
        self.device.engine().variable(variable).unwrap()
    }

    /// Guest memory.
    pub fn store(&self, address: u64, bytes: &[u8]) {
        assert!(self.memory.write(address, bytes));
    }

    pub fn load<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        assert!(self.memory.read(address, &mut bytes));
        bytes
    }

    /// What the device reads at its address of a shadow.
    pub fn shadow<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_shadow(address - SHADOW, &mut bytes);
        bytes
    }
}

/// Words as they are in memory.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
