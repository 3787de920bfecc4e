//! Statements and expressions.

use super::declare::{ones, too_large};
use super::{Compiler, Result, Scope, Symbol};
use crate::language::Diagnostic;
use crate::language::syntax::{
    Binary, Expr, ExprKind, Fetch, Name, Span, Statement, StatementKind,
};
use crate::model::Denial;
use crate::model::program::{Code, Op, Slot, Which};

/// Ops of a model.
pub const MAX_OPS: usize = 1 << 15;

impl<'a> Compiler<'a> {
    /// Compiles a rule; its start.
    pub(super) fn rule(&mut self, body: &[Statement], scope: &Scope) -> Result<u16> {
        let start = self.here()?;
        self.statements(body, scope)?;
        self.emit(Op::End)?;
        let variables = self.out.variables.len();
        let sets = self
            .out
            .ops
            .iter()
            .skip(usize::from(start))
            .map(|op| match op {
                Op::Set { .. } | Op::Fetch { .. } => 1,
                Op::Reset => variables,
                _ => 0,
            });
        self.out.most_sets = self.out.most_sets.max(sets.sum());
        Ok(start)
    }

    /// Compiles an expression that stands alone.
    pub(super) fn expression(&mut self, expr: &Expr, scope: &Scope) -> Result<Code> {
        let start = self.here()?;
        let top = self.top;
        let result = self.value(expr, scope)?;
        // Pieces share slots for what is temporary: a result is taken before the next piece runs.
        self.top = top;
        self.emit(Op::End)?;
        Ok(Code { start, result })
    }

    fn here(&self) -> Result<u16> {
        let here = self.out.ops.len();
        let fits = u16::try_from(here).ok().filter(|_| here < MAX_OPS);
        fits.ok_or_else(|| Diagnostic::new("the model is too long", &(0..1)))
    }

    fn emit(&mut self, op: Op) -> Result<()> {
        self.here()?;
        self.out.ops.push(op);
        Ok(())
    }

    /// Emits a jump whose target [`land`](Self::land) fills in.
    fn jump(&mut self, op: Op) -> Result<usize> {
        self.emit(op)?;
        Ok(self.out.ops.len() - 1)
    }

    /// Lets the jump lead here.
    fn land(&mut self, jump: usize) -> Result<()> {
        let here = self.here()?;
        if let Some(to) = self.out.ops.get_mut(jump).and_then(Op::target_mut) {
            *to = here;
        }
        Ok(())
    }

    fn constant_slot(&mut self, value: u64, span: &Span) -> Result<Slot> {
        if let Some(slot) = self.constants.get(&value) {
            return Ok(*slot);
        }
        let slot = self.slot(span)?;
        self.constants.insert(value, slot);
        Ok(slot)
    }

    fn temporary(&mut self, span: &Span) -> Result<Slot> {
        self.top = self.top.saturating_sub(1);
        self.lowest = self.lowest.min(self.top);
        let slot = Slot::try_from(self.top).ok();
        slot.filter(|_| self.lowest >= self.next)
            .ok_or_else(|| too_large(span))
    }

    /// Compiles an expression; the slot where its value is.
    fn value(&mut self, expr: &Expr, scope: &Scope) -> Result<Slot> {
        if let Some(value) = self.constant(expr, scope) {
            return self.constant_slot(value, &expr.span);
        }
        match &expr.kind {
            ExprKind::Number(number) => self.constant_slot(*number, &expr.span),
            ExprKind::Name(name) => {
                if let Some(slot) = Self::reserved(&name.word) {
                    return Ok(slot);
                }
                match self.find(name, scope)? {
                    Symbol::Variable(slot) => Ok(slot),
                    _ => Err(Diagnostic::new("this has no value", &name.span)),
                }
            }
            ExprKind::Unary(operator, of) => {
                let top = self.top;
                let from = self.value(of, scope)?;
                self.top = top;
                let to = self.temporary(&expr.span)?;
                let operator = *operator;
                self.emit(Op::Unary { operator, to, from })?;
                Ok(to)
            }
            ExprKind::Binary(operator, left, right) => {
                let top = self.top;
                let left = self.value(left, scope)?;
                let right = self.value(right, scope)?;
                self.top = top;
                self.emit_binary(*operator, left, right, &expr.span)
            }
            ExprKind::Is(machine, state) => {
                let (slot, number) = self.state(machine, state, scope)?;
                let right = self.constant_slot(number, &state.span)?;
                self.emit_binary(Binary::Equal, slot, right, &expr.span)
            }
            ExprKind::Call(name, arguments) => self.call(name, arguments, scope),
        }
    }

    fn emit_binary(
        &mut self,
        operator: Binary,
        left: Slot,
        right: Slot,
        span: &Span,
    ) -> Result<Slot> {
        let to = self.temporary(span)?;
        self.emit(Op::Binary {
            operator,
            to,
            left,
            right,
        })?;
        Ok(to)
    }

    fn call(&mut self, name: &Name, arguments: &[Expr], scope: &Scope) -> Result<Slot> {
        let named = |expr: &Expr| match &expr.kind {
            ExprKind::Name(name) => Ok(name.clone()),
            _ => Err(Diagnostic::new("a name belongs here", &expr.span)),
        };
        let top = self.top;
        match (name.word.as_str(), arguments) {
            ("device", [address]) => {
                let from = self.value(address, scope)?;
                self.top = top;
                let to = self.temporary(&name.span)?;
                self.emit(Op::Device { to, from })?;
                Ok(to)
            }
            ("peek", [register]) => {
                let register = self.register(&named(register)?, scope)?;
                let to = self.temporary(&name.span)?;
                self.emit(Op::Peek { to, register })?;
                Ok(to)
            }
            ("shadow", [table]) => {
                let index = self.table_index(&named(table)?, scope)?;
                let table = self.out.tables.get(usize::from(index));
                table
                    .map(|table| table.shadow)
                    .ok_or_else(|| too_large(&name.span))
            }
            ("if", [condition, then, otherwise]) => {
                let to = self.temporary(&name.span)?;
                let inner = self.top;
                let slot = self.value(condition, scope)?;
                self.top = inner;
                let skip = self.jump(Op::JumpIfZero { slot, to: 0 })?;
                let from = self.value(then, scope)?;
                self.emit(Op::Copy { to, from })?;
                let end = self.jump(Op::Jump(0))?;
                self.land(skip)?;
                self.top = inner;
                let from = self.value(otherwise, scope)?;
                self.emit(Op::Copy { to, from })?;
                self.land(end)?;
                self.top = inner;
                Ok(to)
            }
            _ => {
                let message = format!(
                    "there is no `{}` of {} arguments",
                    name.word,
                    arguments.len()
                );
                Err(Diagnostic::new(message, &name.span)
                    .label("there are device(1), peek(1), shadow(1) and if(3)"))
            }
        }
    }

    fn statements(&mut self, body: &[Statement], scope: &Scope) -> Result<()> {
        for statement in body {
            let top = self.top;
            self.statement(statement, scope)?;
            self.top = top;
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement, scope: &Scope) -> Result<()> {
        let span = &statement.span;
        match &statement.kind {
            StatementKind::Assign(name, expr) => {
                let from = self.value(expr, scope)?;
                self.assign(name, from, scope)
            }
            StatementKind::Goto(machine, state) => {
                let (to, number) = self.state(machine, state, scope)?;
                let from = self.constant_slot(number, span)?;
                self.emit(Op::Set { to, from })
            }
            StatementKind::If(condition, then, otherwise) => {
                let skip = self.jump_unless(condition, scope)?;
                self.statements(then, scope)?;
                if otherwise.is_empty() {
                    return self.land(skip);
                }
                let end = self.jump(Op::Jump(0))?;
                self.land(skip)?;
                self.statements(otherwise, scope)?;
                self.land(end)
            }
            StatementKind::Match(subject, arms) => self.select(subject, arms, span, scope),
            StatementKind::For(name, first, end, body) => {
                for value in self.range(first, end, scope)? {
                    self.statements(body, &scope.with(&name.word, value))?;
                }
                Ok(())
            }
            StatementKind::Require(condition, policy, reason) => {
                let slot = self.value(condition, scope)?;
                let denial = self.denial(Denial {
                    reason: reason.clone(),
                    policy: *policy,
                    span: span.clone(),
                    uncovered: false,
                })?;
                self.emit(Op::Require { slot, denial })
            }
            StatementKind::Check(name) => {
                let Symbol::Transfer(transfer) = self.find(name, scope)? else {
                    return Err(Diagnostic::new("this is no transfer", &name.span));
                };
                let reason = format!("transfer `{}` is out of bounds", self.full(name, scope)?);
                let denial = self.simple_denial(reason, span)?;
                self.emit(Op::Check { transfer, denial })
            }
            StatementKind::Fetch(name, which) => {
                let table = self.table_index(name, scope)?;
                let reason = format!("table `{}` is out of bounds", self.full(name, scope)?);
                let denial = self.simple_denial(reason, span)?;
                let (which, from, to) = match which {
                    Fetch::Range(from, to) => {
                        let from = self.value(from, scope)?;
                        (Which::Range, from, self.value(to, scope)?)
                    }
                    Fetch::Bits(bits) => {
                        let bits = self.value(bits, scope)?;
                        (Which::Bits, bits, bits)
                    }
                    Fetch::Chain(name) => {
                        let Symbol::Variable(slot) = self.find(name, scope)? else {
                            return Err(Diagnostic::new("this is no variable", &name.span));
                        };
                        (Which::Chain, slot, slot)
                    }
                };
                self.emit(Op::Fetch {
                    table,
                    which,
                    from,
                    to,
                    denial,
                })
            }
            StatementKind::Forward(expr) => {
                let slot = self.value(expr, scope)?;
                self.emit(Op::Forward(slot))
            }
            StatementKind::Reset => self.emit(Op::Reset),
            StatementKind::Put(name, value, times) => {
                let register = self.register(name, scope)?;
                let value = self.value(value, scope)?;
                let times = match times {
                    Some(times) => self.value(times, scope)?,
                    None => self.constant_slot(1, span)?,
                };
                self.emit(Op::Put {
                    register,
                    value,
                    times,
                })
            }
            StatementKind::Get(name, register) => {
                let register = self.register(register, scope)?;
                let to = self.temporary(span)?;
                self.emit(Op::Peek { to, register })?;
                self.assign(name, to, scope)
            }
        }
    }

    fn assign(&mut self, name: &Name, from: Slot, scope: &Scope) -> Result<()> {
        let (Symbol::Variable(to), false) = (
            self.find(name, scope)?,
            Self::reserved(&name.word).is_some(),
        ) else {
            return Err(Diagnostic::new("this is no variable", &name.span)
                .label("machines change by `machine -> state;`"));
        };
        let variable = self
            .out
            .variables
            .iter()
            .find(|variable| variable.slot == to);
        let bits = variable.map_or(64, |variable| variable.bits);
        let from = if bits < 64 {
            let mask = self.constant_slot(ones(bits), &name.span)?;
            self.emit_binary(Binary::BitAnd, from, mask, &name.span)?
        } else {
            from
        };
        self.emit(Op::Set { to, from })
    }

    /// Emits a jump that is taken unless the condition holds, in as few ops as it takes.
    fn jump_unless(&mut self, condition: &Expr, scope: &Scope) -> Result<usize> {
        let top = self.top;
        let known = self.constant(condition, scope).is_some();
        let op = match &condition.kind {
            ExprKind::Binary(Binary::BitAnd, left, right) if !known => Op::JumpUnlessAny {
                slot: self.value(left, scope)?,
                mask: self.value(right, scope)?,
                to: 0,
            },
            ExprKind::Binary(Binary::Equal, left, right) if !known => Op::JumpUnlessEqual {
                left: self.value(left, scope)?,
                right: self.value(right, scope)?,
                to: 0,
            },
            ExprKind::Is(machine, state) => {
                let (left, number) = self.state(machine, state, scope)?;
                let right = self.constant_slot(number, &state.span)?;
                Op::JumpUnlessEqual { left, right, to: 0 }
            }
            _ => Op::JumpIfZero {
                slot: self.value(condition, scope)?,
                to: 0,
            },
        };
        self.top = top;
        self.jump(op)
    }

    fn select(
        &mut self,
        subject: &Expr,
        arms: &[(Vec<Expr>, Vec<Statement>)],
        span: &Span,
        scope: &Scope,
    ) -> Result<()> {
        let machine = match &subject.kind {
            ExprKind::Name(name) => match self.find(name, scope) {
                Ok(Symbol::Machine(_)) => Some(name),
                _ => None,
            },
            _ => None,
        };
        let slot = match machine {
            Some(name) => self.machine(name, scope)?.0,
            None => self.value(subject, scope)?,
        };
        let (mut ends, mut otherwise) = (Vec::new(), false);
        for (patterns, body) in arms {
            let mut wild = false;
            let mut bodies = Vec::new();
            for pattern in patterns {
                let right = match (&pattern.kind, machine) {
                    (ExprKind::Name(name), _) if name.word == "_" => {
                        wild = true;
                        continue;
                    }
                    (ExprKind::Name(state), Some(machine)) => self.state(machine, state, scope)?.1,
                    _ => self.number(pattern, scope)?,
                };
                let right = self.constant_slot(right, &pattern.span)?;
                let left = slot;
                let skip = self.jump(Op::JumpUnlessEqual { left, right, to: 0 })?;
                bodies.push(self.jump(Op::Jump(0))?);
                self.land(skip)?;
            }
            let next = if wild {
                None
            } else {
                Some(self.jump(Op::Jump(0))?)
            };
            for jump in bodies {
                self.land(jump)?;
            }
            self.statements(body, scope)?;
            match next {
                Some(next) => {
                    ends.push(self.jump(Op::Jump(0))?);
                    self.land(next)?;
                }
                None => otherwise = true,
            }
            if otherwise {
                break;
            }
        }
        if !otherwise {
            let zero = self.constant_slot(0, span)?;
            let denial = self.denial(Denial {
                reason: "no arm covers this".to_owned(),
                policy: None,
                span: subject.span.clone(),
                uncovered: true,
            })?;
            self.emit(Op::Require { slot: zero, denial })?;
        }
        for end in ends {
            self.land(end)?;
        }
        Ok(())
    }

    fn simple_denial(&mut self, reason: String, span: &Span) -> Result<u16> {
        self.denial(Denial {
            reason,
            policy: None,
            span: span.clone(),
            uncovered: false,
        })
    }

    fn denial(&mut self, denial: Denial) -> Result<u16> {
        let index = u16::try_from(self.out.denials.len()).map_err(|_| too_large(&denial.span))?;
        self.out.denials.push(denial);
        Ok(index)
    }

    pub(super) fn register(&self, name: &Name, scope: &Scope) -> Result<u16> {
        match self.find(name, scope)? {
            Symbol::Register(index) => Ok(index),
            _ => Err(Diagnostic::new("this is no register", &name.span)),
        }
    }

    fn table_index(&self, name: &Name, scope: &Scope) -> Result<u8> {
        match self.find(name, scope)? {
            Symbol::Table(index) => Ok(index),
            _ => Err(Diagnostic::new("this is no table", &name.span)),
        }
    }

    fn machine(&self, name: &Name, scope: &Scope) -> Result<(Slot, &[String])> {
        let machine = match self.find(name, scope)? {
            Symbol::Machine(index) => self.out.machines.get(index),
            _ => None,
        };
        machine
            .map(|machine| (machine.slot, &machine.states[..]))
            .ok_or_else(|| Diagnostic::new("this is no machine", &name.span))
    }

    fn state(&self, machine: &Name, state: &Name, scope: &Scope) -> Result<(Slot, u64)> {
        let (slot, states) = self.machine(machine, scope)?;
        let position = states.iter().position(|word| *word == state.word);
        let missing = || {
            Diagnostic::new(format!("`{}` has no such state", machine.word), &state.span)
                .label(format!("one of {}", states.join(", ")))
        };
        let number = position.and_then(|position| u64::try_from(position).ok());
        Ok((slot, number.ok_or_else(missing)?))
    }
}
