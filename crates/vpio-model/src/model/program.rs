//! What a model's rules and expressions are compiled to, and what carries it out.

use super::Model;
use crate::language::Access;
use crate::language::syntax::{Binary, Unary};

/// Index of a number in a [`Frame`]. A model whose numbers do not fit is refused, so that no index is ever outside.
pub type Slot = u8;

/// What an event brings: the value written or read.
pub const VALUE: Slot = 0;
/// The index of the entry of a table.
pub const INDEX: Slot = 1;
/// The first variable.
pub const VARIABLES: Slot = 2;

/// Where a piece of the program begins, and where its result is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub start: u16,
    pub result: Slot,
}

/// The tag has a byte of its own, which is faster to tell them apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    End,
    /// To a variable; the old number is kept until the event is over.
    Set {
        to: Slot,
        from: Slot,
    },
    Copy {
        to: Slot,
        from: Slot,
    },
    Binary {
        operator: Binary,
        to: Slot,
        left: Slot,
        right: Slot,
    },
    Unary {
        operator: Unary,
        to: Slot,
        from: Slot,
    },
    Jump(u16),
    JumpIfZero {
        slot: Slot,
        to: u16,
    },
    /// Jumps unless some of the bits of `mask` are set in `slot`.
    JumpUnlessAny {
        slot: Slot,
        mask: Slot,
        to: u16,
    },
    /// Jumps unless both are the same number.
    JumpUnlessEqual {
        left: Slot,
        right: Slot,
        to: u16,
    },
    Require {
        slot: Slot,
        denial: u16,
    },
    Check {
        transfer: u8,
        denial: u16,
    },
    Fetch {
        table: u8,
        which: Which,
        from: Slot,
        to: Slot,
        denial: u16,
    },
    /// The device's address for a guest's, all ones if there is none.
    Device {
        to: Slot,
        from: Slot,
    },
    Peek {
        to: Slot,
        register: u16,
    },
    Put {
        register: u16,
        value: Slot,
        times: Slot,
    },
    Forward(Slot),
    Reset,
}

impl Op {
    /// Where a jump leads.
    pub fn target(mut self) -> Option<u16> {
        self.target_mut().copied()
    }

    /// The numbers that it works on.
    pub fn reads(self) -> impl Iterator<Item = Slot> {
        let both = match self {
            Self::End | Self::Jump(_) | Self::Check { .. } | Self::Peek { .. } | Self::Reset => {
                [None, None]
            }
            Self::Set { from, .. }
            | Self::Copy { from, .. }
            | Self::Unary { from, .. }
            | Self::Device { from, .. } => [Some(from), None],
            Self::JumpIfZero { slot, .. } | Self::Require { slot, .. } | Self::Forward(slot) => {
                [Some(slot), None]
            }
            Self::Binary { left, right, .. }
            | Self::JumpUnlessEqual { left, right, .. }
            | Self::JumpUnlessAny {
                slot: left,
                mask: right,
                ..
            }
            | Self::Fetch {
                from: left,
                to: right,
                ..
            }
            | Self::Put {
                value: left,
                times: right,
                ..
            } => [Some(left), Some(right)],
        };
        both.into_iter().flatten()
    }

    /// Where an intermediate result goes, if it does nothing but compute one.
    pub fn computes(self) -> Option<Slot> {
        match self {
            Self::Copy { to, .. }
            | Self::Binary { to, .. }
            | Self::Unary { to, .. }
            | Self::Device { to, .. }
            | Self::Peek { to, .. } => Some(to),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn target_mut(&mut self) -> Option<&mut u16> {
        match self {
            Self::Jump(to)
            | Self::JumpIfZero { to, .. }
            | Self::JumpUnlessAny { to, .. }
            | Self::JumpUnlessEqual { to, .. } => Some(to),
            _ => None,
        }
    }

    /// Its jump, which led from the start of its rule on, from where that is.
    pub fn lead(&mut self, start: u16) {
        if let Some(to) = self.target_mut() {
            *to = to.saturating_add(start);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    Range,
    Bits,
    Chain,
}

/// The numbers that a program works on: variables, constants and intermediate results.
#[derive(Clone, Debug)]
pub struct Frame {
    slots: [u64; 256],
    /// What variables were before the event.
    undo: Vec<(Slot, u64)>,
    /// What the device gets instead of what was written, or the guest instead of what was read.
    pub forward: Option<u64>,
    /// Whether the event reset the device.
    pub reset: bool,
}

impl Frame {
    pub fn new(model: &Model) -> Self {
        let mut frame = Self {
            slots: [0; 256],
            undo: Vec::with_capacity(model.most_sets),
            forward: None,
            reset: false,
        };
        for &(slot, value) in &model.constants {
            frame.set(slot, value);
        }
        for variable in &model.variables {
            frame.set(variable.slot, variable.initial);
        }
        frame
    }

    #[inline]
    pub fn get(&self, slot: Slot) -> u64 {
        // Always there: the compiler leaves nothing of the test.
        self.slots.get(usize::from(slot)).copied().unwrap_or(0)
    }

    #[inline]
    pub fn set(&mut self, slot: Slot, value: u64) {
        if let Some(place) = self.slots.get_mut(usize::from(slot)) {
            *place = value;
        }
    }

    /// Begins an event.
    #[inline]
    pub fn begin(&mut self, value: u64) {
        self.undo.clear();
        self.forward = None;
        self.reset = false;
        self.set(VALUE, value);
    }

    /// Makes everything as it was before the event.
    pub fn roll_back(&mut self) {
        while let Some((slot, value)) = self.undo.pop() {
            self.set(slot, value);
        }
    }

    #[inline]
    pub fn assign(&mut self, slot: Slot, value: u64) {
        let old = self.get(slot);
        if old != value {
            self.undo.push((slot, old));
            self.set(slot, value);
        }
    }
}

/// What a program needs of the world.
pub trait Host {
    /// The device's address of guest memory, if the device may access all of it.
    fn translate(&mut self, address: u64, length: u64, access: Access) -> Option<u64>;
    /// Reads a register of the device.
    fn peek(&mut self, register: u16) -> u64;
    /// Writes a register of the device.
    fn put(&mut self, register: u16, value: u64);
    /// A transfer was found to be within bounds.
    fn approve(&mut self, transfer: u8, address: u64, length: u64);
    /// Takes over entries of a table. None if the guest may not have them; otherwise, for a chain, the next index.
    fn fetch(
        &mut self,
        model: &Model,
        frame: &mut Frame,
        table: u8,
        which: Which,
        from: u64,
        to: u64,
    ) -> Option<u64>;
}

#[inline(always)]
pub fn binary(operator: Binary, left: u64, right: u64) -> u64 {
    // Only where it shifts.
    let shift = || u32::try_from(right).ok();
    match operator {
        Binary::Or => u64::from(left != 0 || right != 0),
        Binary::And => u64::from(left != 0 && right != 0),
        Binary::Equal => u64::from(left == right),
        Binary::NotEqual => u64::from(left != right),
        Binary::Less => u64::from(left < right),
        Binary::LessEqual => u64::from(left <= right),
        Binary::Greater => u64::from(left > right),
        Binary::GreaterEqual => u64::from(left >= right),
        Binary::BitOr => left | right,
        Binary::BitXor => left ^ right,
        Binary::BitAnd => left & right,
        Binary::ShiftLeft => shift().and_then(|by| left.checked_shl(by)).unwrap_or(0),
        Binary::ShiftRight => shift().and_then(|by| left.checked_shr(by)).unwrap_or(0),
        Binary::Add => left.wrapping_add(right),
        Binary::Subtract => left.wrapping_sub(right),
        Binary::Multiply => left.wrapping_mul(right),
        Binary::Divide => left.checked_div(right).unwrap_or(0),
        Binary::Remainder => left.checked_rem(right).unwrap_or(0),
    }
}

pub fn unary(operator: Unary, number: u64) -> u64 {
    match operator {
        Unary::Not => u64::from(number == 0),
        Unary::Invert => !number,
    }
}

impl Model {
    /// Evaluates an expression.
    #[inline]
    pub(crate) fn evaluate(&self, code: Code, frame: &mut Frame, host: &mut impl Host) -> u64 {
        // Of a number by itself there is nothing to compute.
        if self.ops.get(usize::from(code.start)) != Some(&Op::End) {
            // Expressions deny nothing.
            let _never = self.run(code.start, frame, host);
        }
        frame.get(code.result)
    }

    /// Carries out a rule; on error, which denial it ended in. Every jump leads forwards, so that it ends.
    #[inline]
    pub(crate) fn run(
        &self,
        start: u16,
        frame: &mut Frame,
        host: &mut impl Host,
    ) -> Result<(), u16> {
        let mut at = usize::from(start);
        loop {
            let Some(&op) = self.ops.get(at) else {
                return Ok(());
            };
            at += 1;
            match op {
                Op::End => return Ok(()),
                Op::Set { to, from } => {
                    let value = frame.get(from);
                    frame.assign(to, value);
                }
                Op::Copy { to, from } => {
                    let value = frame.get(from);
                    frame.set(to, value);
                }
                Op::Binary {
                    operator,
                    to,
                    left,
                    right,
                } => {
                    let value = binary(operator, frame.get(left), frame.get(right));
                    frame.set(to, value);
                }
                Op::Unary { operator, to, from } => {
                    let value = unary(operator, frame.get(from));
                    frame.set(to, value);
                }
                Op::Jump(to) => at = usize::from(to),
                Op::JumpIfZero { slot, to } => {
                    if frame.get(slot) == 0 {
                        at = usize::from(to);
                    }
                }
                Op::JumpUnlessAny { slot, mask, to } => {
                    if frame.get(slot) & frame.get(mask) == 0 {
                        at = usize::from(to);
                    }
                }
                Op::JumpUnlessEqual { left, right, to } => {
                    if frame.get(left) != frame.get(right) {
                        at = usize::from(to);
                    }
                }
                Op::Require { slot, denial } => {
                    if frame.get(slot) == 0 {
                        return Err(denial);
                    }
                }
                Op::Forward(slot) => frame.forward = Some(frame.get(slot)),
                Op::Check { .. }
                | Op::Fetch { .. }
                | Op::Device { .. }
                | Op::Peek { .. }
                | Op::Put { .. }
                | Op::Reset => self.reach_out(op, frame, host)?,
            }
        }
    }

    /// Carries out what is about more than numbers. By itself, so that the registers of [`run`](Self::run) stay what they are there.
    #[inline(never)]
    fn reach_out(&self, op: Op, frame: &mut Frame, host: &mut impl Host) -> Result<(), u16> {
        match op {
            Op::Check { transfer, denial } => {
                let Some(of) = self.transfers.get(usize::from(transfer)) else {
                    return Err(denial);
                };
                let address = self.evaluate(of.address, frame, host);
                let length = self.evaluate(of.length, frame, host);
                if host.translate(address, length, of.access).is_none() {
                    return Err(denial);
                }
                host.approve(transfer, address, length);
            }
            Op::Fetch {
                table,
                which,
                from,
                to,
                denial,
            } => {
                let (first, end) = (frame.get(from), frame.get(to));
                let value = frame.get(VALUE);
                let next = host.fetch(self, frame, table, which, first, end);
                frame.set(VALUE, value);
                match next {
                    Some(next) if which == Which::Chain => frame.assign(from, next),
                    Some(_) => {}
                    None => return Err(denial),
                }
            }
            Op::Device { to, from } => {
                let address = host.translate(frame.get(from), 1, Access::Read);
                frame.set(to, address.unwrap_or(u64::MAX));
            }
            Op::Peek { to, register } => {
                let value = host.peek(register);
                frame.set(to, value);
            }
            Op::Put {
                register,
                value,
                times,
            } => {
                for _ in 0..frame.get(times).min(MAX_TIMES) {
                    host.put(register, frame.get(value));
                }
            }
            Op::Reset => {
                frame.reset = true;
                for variable in &self.variables {
                    frame.assign(variable.slot, variable.initial);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// How often a restore may write one register: enough to clear the memory on a card.
pub const MAX_TIMES: u64 = 1 << 16;
