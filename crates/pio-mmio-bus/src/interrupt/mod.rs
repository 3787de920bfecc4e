//! How a device raises an interrupt without knowing who delivers it.
//!
//! A device holds an [`IrqLine`] (a pin), sends one-shot messages through an [`MsiSink`], or keeps a live
//! [`MsiRoute`] that it got from an [`MsiRouter`]. A VMM implements these over its hypervisor; an interrupt
//! remapper stands between as another implementation; tests use recording ones.

pub mod ioapic;
mod line;
mod msi;
mod record;

pub use ioapic::{Ioapic, IoapicPinState, IoapicState, IoapicStateError};
pub use line::{EndObserver, IrqLine};
pub use msi::{InterruptError, MsiMessage, MsiRoute, MsiRouter, MsiSink};
pub use record::{RecordingLine, RecordingRouter, RecordingSink};
