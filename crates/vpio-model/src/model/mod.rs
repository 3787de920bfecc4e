//! A model, compiled: tables that the [engine](crate::engine) works through.

mod by_state;
mod by_value;
mod compile;
mod live;
mod lookup;
pub(crate) mod program;
mod sharing;

use std::sync::Arc;

use crate::language::{self, Access, Kind, LanguageError, Policy};
use by_state::{ByState, Key};
use by_value::ByValue;
use program::{Code, Op, Slot};

pub(crate) use by_state::Next;
pub(crate) use lookup::{Class, Found, Lookup};
pub use sharing::Sharing;

/// A model of a device, ready for an [`Engine`](crate::engine::Engine).
#[derive(Clone, Debug)]
pub struct Model {
    pub(crate) name: String,
    pub(crate) policy: Policy,
    pub(crate) spaces: Vec<Space>,
    pub(crate) machines: Vec<Machine>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) registers: Vec<Register>,
    pub(crate) transfers: Vec<Transfer>,
    pub(crate) tables: Vec<Table>,
    pub(crate) denials: Vec<Denial>,
    pub(crate) promises: Vec<Promise>,
    pub(crate) constants: Vec<(Slot, u64)>,
    /// The rules, and behind them what they come down to for values.
    pub(crate) ops: Vec<Op>,
    /// How many of them are the rules.
    pub(crate) written: usize,
    pub(crate) by_value: Vec<ByValue>,
    /// What the tables of these are about.
    pub(crate) key: Key,
    pub(crate) by_state: Vec<ByState>,
    pub(crate) interrupt: Option<u16>,
    pub(crate) timer: Option<u16>,
    /// None: nobody asks.
    pub(crate) reusable: Option<Code>,
    pub(crate) save: Option<u16>,
    pub(crate) restore: Option<u16>,
    pub(crate) free: Vec<Free>,
    pub(crate) lookups: Arc<[Lookup]>,
    /// Most assignments that one event makes.
    pub(crate) most_sets: usize,
    /// Bytes of host memory that the tables' shadows take.
    pub(crate) shadow_bytes: u64,
}

impl Model {
    /// Compiles a text. `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// The text is no model. Shown, the error points at lines and columns.
    pub fn parse(path: &str, text: &str) -> Result<Self, LanguageError> {
        language::parse(text)
            .and_then(|items| compile::compile(&items).map_err(|error| vec![error]))
            .map_err(|diagnostics| LanguageError {
                path: path.to_owned(),
                text: text.to_owned(),
                diagnostics,
            })
    }

    /// What the model calls itself.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The spaces of registers, in the order in which events number them.
    pub fn spaces(&self) -> &[Space] {
        &self.spaces
    }

    /// How many bytes the shadows of descriptor tables take, which the device must be able to reach.
    pub fn shadow_bytes(&self) -> u64 {
        self.shadow_bytes
    }

    /// Whether the model is to be told of time ([`Engine::timer`](crate::engine::Engine::timer)): it says so, or devices write into
    /// descriptors without an interrupt.
    pub fn needs_time(&self) -> bool {
        self.timer.is_some() || !self.tables.is_empty()
    }
}

/// The shadow of each table begins at a multiple of this.
pub(crate) const SHADOW_ALIGNMENT: u64 = 4096;

/// A range of registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// What the model calls it.
    pub name: String,
    /// How it is reached: a device may have the same registers in two places. With the base address register that says where,
    /// if it is a PCI function.
    pub places: Vec<(Kind, Option<u8>)>,
    /// Its size in bytes.
    pub size: u64,
}

/// A state machine, which is a variable with names for its values.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub name: String,
    pub states: Vec<String>,
    pub slot: Slot,
}

#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub name: String,
    pub slot: Slot,
    pub bits: u32,
    pub initial: u64,
    /// Whether it holds an address of guest memory.
    pub address: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Register {
    pub name: String,
    pub space: u8,
    pub offset: u64,
    pub width: u8,
    /// None: both.
    pub direction: Option<Access>,
    /// Which bank it is in.
    pub when: Option<Code>,
    pub on_read: Option<u16>,
    pub on_write: Option<u16>,
    /// Which of [`Model::by_value`] is for its writes.
    pub by_value: Option<u16>,
    /// Which of [`Model::by_state`] is.
    pub by_state: Option<u16>,
}

/// Bytes that are accessed freely.
#[derive(Clone, Debug)]
pub(crate) struct Free {
    pub space: u8,
    pub first: u64,
    pub end: u64,
    /// None: both.
    pub direction: Option<Access>,
}

impl Register {
    pub fn rule(&self, access: Access) -> Option<u16> {
        match access {
            Access::Read => self.on_read,
            Access::Write => self.on_write,
        }
    }
}

/// What the device does with guest memory on its own, while `active`.
#[derive(Clone, Debug)]
pub(crate) struct Transfer {
    pub name: String,
    pub access: Access,
    pub address: Code,
    pub length: Code,
    pub active: Code,
}

/// What the rules keep true, for the checker to look after.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub why: String,
    pub expr: Code,
    /// None: `expr` holds in every state. Otherwise no event changes its value while this holds.
    pub during: Option<Code>,
}

/// Descriptors in guest memory, which the device gets a checked copy of.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub name: String,
    /// Address and count of entries; None if another table's entries point at it.
    pub at: Option<(Code, Code)>,
    pub max: u64,
    /// Bytes before the first entry.
    pub head: u64,
    /// Bytes of an entry.
    pub entry: u64,
    pub fields: Vec<Field>,
    pub buffers: Vec<Buffer>,
    pub follow: Option<Follow>,
    /// The bytes of an entry that the device writes.
    pub device: (u64, u64),
    pub during: Option<Code>,
    pub last: Option<Code>,
    pub wrap: Option<Code>,
    pub done: Option<Code>,
    /// Where the address of the shadow is.
    pub shadow: Slot,
    /// Where the shadow is, from the start of all of them.
    pub offset: u64,
}

impl Table {
    /// Bytes of one copy. Behind the last entry there is always one of zeroes, and each copy begins at a page.
    pub fn bytes(&self) -> u64 {
        let entries = self.max.saturating_add(1).saturating_mul(self.entry);
        self.head
            .saturating_add(entries)
            .next_multiple_of(SHADOW_ALIGNMENT)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub name: String,
    pub slot: Slot,
    pub offset: u64,
    pub width: u64,
    pub address: bool,
}

/// Guest memory that an entry points at.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    pub access: Access,
    /// Index of the field.
    pub field: usize,
    pub length: Code,
    pub condition: Option<Code>,
}

/// Another table that an entry points at.
#[derive(Clone, Debug)]
pub(crate) struct Follow {
    /// Index of the field.
    pub field: usize,
    pub count: Code,
    pub table: usize,
}

/// Why a rule says no.
#[derive(Clone, Debug)]
pub(crate) struct Denial {
    pub reason: String,
    /// What to do instead of what the model says in general.
    pub policy: Option<Policy>,
    /// Where in the text.
    pub span: language::syntax::Span,
    /// Nobody wrote it: no arm of a `match` covered the case.
    pub uncovered: bool,
}
