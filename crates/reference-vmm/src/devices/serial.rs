//! The first serial port, a 16550A.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::interrupt::IrqLine;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

/// First port of COM1.
pub const BASE: u16 = 0x3f8;
/// Number of ports.
pub const SIZE: u16 = 8;
/// Interrupt of COM1.
pub const IRQ: u32 = 4;

/// Input that the guest has not taken beyond this is refused, so that the sender waits.
const INPUT_LIMIT: usize = 4096;

struct Interrupt(Arc<dyn IrqLine>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

struct State {
    chip: Serial<Interrupt, NoEvents, Box<dyn Write + Send>>,
    /// Input that does not fit in the chip's FIFO yet.
    backlog: VecDeque<u8>,
}

impl State {
    /// Moves input into the FIFO as far as it fits.
    fn feed(&mut self) {
        let room = self.chip.fifo_capacity().min(self.backlog.len());
        if room > 0 {
            let bytes: Vec<u8> = self.backlog.drain(..room).collect();
            // It fits; and a receive interrupt that cannot be raised is found by the guest's polling.
            let _ = self.chip.enqueue_raw_bytes(&bytes);
        }
    }
}

/// A serial port that prints to a writer and takes its input from [`SerialPort::input`].
pub struct SerialPort {
    state: Mutex<State>,
}

impl SerialPort {
    /// A port that signals `interrupt`, edge-triggered, and prints to `output`.
    pub fn new(interrupt: Arc<dyn IrqLine>, output: Box<dyn Write + Send>) -> Self {
        Self {
            state: Mutex::new(State {
                chip: Serial::new(Interrupt(interrupt), output),
                backlog: VecDeque::new(),
            }),
        }
    }

    /// Sends bytes to the guest. Returns how many were taken; the rest is to be offered again later.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let room = INPUT_LIMIT.saturating_sub(state.backlog.len());
        let taken = room.min(bytes.len());
        state.backlog.extend(bytes.iter().take(taken));
        state.feed();
        taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let register = register(offset, data.len())?;
        let mut state = self.lock();
        data.fill(state.chip.read(register));
        if register == 0 {
            state.feed();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = register(offset, data.len())?;
        let mut state = self.lock();
        for value in data {
            // Output that cannot be written is lost, as on a line that nobody listens to.
            let _ = state.chip.write(register, *value);
        }
        Ok(())
    }
}

/// All registers of the chip are one byte wide.
fn register(offset: u64, width: usize) -> Result<u8, AccessError> {
    match u8::try_from(offset) {
        Ok(register) if width == 1 => Ok(register),
        _ => Err(AccessError::Width { offset, width }),
    }
}
