//! From the tree to the tables. Names are collected first, so that a rule may use what is declared below it.

mod code;
mod declare;

use std::collections::BTreeMap;
use std::rc::Rc;

use super::by_state::Key;
use super::program::{Code, Op, Slot, VARIABLES};
use super::{Buffer, Follow, Free, Model, Table};
use crate::language::Diagnostic;
use crate::language::syntax::{
    Access, Expr, ExprKind, Item, Name, Span, Statement, TableItem, Trigger,
};

pub use code::MAX_OPS;

type Result<T> = std::result::Result<T, Diagnostic>;

/// How often all `for`s together may repeat something.
const MAX_REPEATS: u64 = 4096;
/// Bytes of a space.
const MAX_SPACE: u64 = 1 << 20;
/// Entries of a table, bytes of an entry and of what is before the first.
const MAX_ENTRIES: u64 = 1 << 12;
const MAX_ENTRY: u64 = 64;
const MAX_HEAD: u64 = 4096;
/// Bytes of all shadows.
const MAX_SHADOW: u64 = 64 << 20;

/// What a name means.
#[derive(Clone, Copy, Debug)]
enum Symbol {
    Const(u64),
    Machine(usize),
    Variable(Slot),
    Space(u8),
    Register(u16),
    Transfer(u8),
    Table(u8),
}

/// The values of the `for` variables around something.
#[derive(Clone, Debug, Default)]
struct Scope(Option<Rc<(String, u64, Scope)>>);

impl Scope {
    fn with(&self, name: &str, value: u64) -> Self {
        Self(Some(Rc::new((name.to_owned(), value, self.clone()))))
    }

    fn find(&self, name: &str) -> Option<u64> {
        let (inner, value, outer) = self.0.as_deref()?;
        if inner == name {
            Some(*value)
        } else {
            outer.find(name)
        }
    }
}

/// What is compiled when all names are known.
enum Later<'a> {
    When(u16, &'a Expr),
    Transfer(u8, [&'a Expr; 3]),
    Table(u8, Option<(&'a Expr, &'a Expr)>, &'a [TableItem]),
    On(&'a Trigger, &'a [Statement], &'a Span),
    Promise(&'a Expr, Option<&'a Expr>, &'a str),
    Reusable(&'a Expr),
    Save(&'a [Statement]),
    Restore(&'a [Statement]),
}

#[derive(Default)]
struct Compiler<'a> {
    model: Option<String>,
    symbols: BTreeMap<String, Symbol>,
    constants: BTreeMap<u64, Slot>,
    /// The first slot that is free, and one more than the last.
    next: u16,
    top: u16,
    /// The least that `top` ever was: below it nothing was temporary.
    lowest: u16,
    repeats: u64,
    later: Vec<(Scope, Later<'a>)>,
    /// The fields of the table that is compiled.
    fields: Vec<(String, Slot)>,
    free: Vec<Free>,
    reusable: Option<Code>,
    out: Parts,
}

/// What the model will be made of.
#[derive(Default)]
struct Parts {
    policy: crate::language::Policy,
    spaces: Vec<super::Space>,
    machines: Vec<super::Machine>,
    variables: Vec<super::Variable>,
    registers: Vec<super::Register>,
    transfers: Vec<super::Transfer>,
    tables: Vec<Table>,
    denials: Vec<super::Denial>,
    promises: Vec<super::Promise>,
    ops: Vec<Op>,
    interrupt: Option<u16>,
    timer: Option<u16>,
    save: Option<u16>,
    restore: Option<u16>,
    most_sets: usize,
}

pub fn compile(items: &[Item]) -> Result<Model> {
    let mut compiler = Compiler {
        next: VARIABLES.into(),
        top: 256,
        lowest: 256,
        ..Compiler::default()
    };
    compiler.declare(items, &Scope::default())?;
    let whole = 0..1;
    let Some(name) = compiler.model.take() else {
        return Err(
            Diagnostic::new("the model has no name", &whole).label("begin with `model \"NAME\";`")
        );
    };
    for (scope, later) in std::mem::take(&mut compiler.later) {
        compiler.later(&scope, later)?;
    }
    compiler.every_table_has_a_place()?;
    let reusable = compiler.reusable.ok_or_else(|| {
        Diagnostic::new("the model does not say when the device is reusable", &whole)
            .label("add `reusable when …;`")
    })?;
    let free = std::mem::take(&mut compiler.free);
    let constants = compiler
        .constants
        .iter()
        .map(|(&value, &slot)| (slot, value));
    let constants = constants.collect();
    let Parts {
        policy,
        spaces,
        machines,
        variables,
        registers,
        transfers,
        mut tables,
        denials,
        promises,
        ops,
        interrupt,
        timer,
        save,
        restore,
        most_sets,
    } = compiler.out;
    let shadow_bytes = place_shadows(&mut tables)?;
    let written = ops.len();
    let mut model = Model {
        name,
        policy,
        spaces,
        machines,
        variables,
        registers,
        transfers,
        tables,
        denials,
        promises,
        constants,
        ops,
        written,
        by_value: Vec::new(),
        key: Key::default(),
        by_state: Vec::new(),
        interrupt,
        timer,
        reusable: Some(reusable),
        save,
        restore,
        free,
        lookups: Vec::new().into(),
        most_sets,
        shadow_bytes,
    };
    model.work_out();
    Ok(model)
}

/// Gives each table its part of the shadow memory: one copy, or one for each entry that points at it.
fn place_shadows(tables: &mut [Table]) -> Result<u64> {
    let mut copies = vec![1; tables.len()];
    for table in tables.iter() {
        if let Some(follow) = &table.follow
            && let Some(count) = copies.get_mut(follow.table)
        {
            *count = table.max;
        }
    }
    let mut end = 0_u64;
    for (table, copies) in tables.iter_mut().zip(copies) {
        table.offset = end;
        end = end.saturating_add(table.bytes().saturating_mul(copies));
    }
    if end > MAX_SHADOW {
        return Err(Diagnostic::new("the tables are too large", &(0..1)));
    }
    Ok(end)
}

impl<'a> Compiler<'a> {
    fn find(&self, name: &Name, scope: &Scope) -> Result<Symbol> {
        let full = self.full(name, scope)?;
        if let Some(value) = scope.find(&full) {
            return Ok(Symbol::Const(value));
        }
        if let Some((_, slot)) = self.fields.iter().find(|(field, _)| *field == full) {
            return Ok(Symbol::Variable(*slot));
        }
        let missing = || Diagnostic::new(format!("nothing is called `{full}`"), &name.span);
        self.symbols.get(&full).copied().ok_or_else(missing)
    }

    /// The name with its index as a number.
    fn full(&self, name: &Name, scope: &Scope) -> Result<String> {
        match &name.index {
            Some(index) => {
                let index = self.number(index, scope)?;
                Ok(format!("{}[{index}]", name.word))
            }
            None => Ok(name.word.clone()),
        }
    }

    /// The value of an expression that must have one now.
    fn number(&self, expr: &Expr, scope: &Scope) -> Result<u64> {
        self.constant(expr, scope).ok_or_else(|| {
            Diagnostic::new("this is not known before the model runs", &expr.span)
                .label("only numbers and constants are")
        })
    }

    /// The value of an expression that has one now.
    fn constant(&self, expr: &Expr, scope: &Scope) -> Option<u64> {
        use super::program::{binary, unary};
        match &expr.kind {
            ExprKind::Number(number) => Some(*number),
            ExprKind::Name(name) => match self.find(name, scope) {
                Ok(Symbol::Const(value)) => Some(value),
                _ => None,
            },
            ExprKind::Unary(operator, of) => Some(unary(*operator, self.constant(of, scope)?)),
            ExprKind::Binary(operator, left, right) => Some(binary(
                *operator,
                self.constant(left, scope)?,
                self.constant(right, scope)?,
            )),
            ExprKind::Call(..) | ExprKind::Is(..) => None,
        }
    }

    fn within(&self, expr: &Expr, scope: &Scope, low: u64, high: u64) -> Result<u64> {
        let value = self.number(expr, scope)?;
        if !(low..=high).contains(&value) {
            let message = format!("{value} is not between {low} and {high}");
            return Err(Diagnostic::new(message, &expr.span));
        }
        Ok(value)
    }

    /// The values that a `for` runs through.
    fn range(&mut self, first: &Expr, end: &Expr, scope: &Scope) -> Result<std::ops::Range<u64>> {
        let range = self.number(first, scope)?..self.number(end, scope)?;
        let count = range.end.saturating_sub(range.start);
        self.repeats = self.repeats.saturating_add(count.max(1));
        if self.repeats > MAX_REPEATS {
            let span = first.span.start..end.span.end;
            return Err(Diagnostic::new("this repeats too often", &span));
        }
        Ok(range)
    }

    fn later(&mut self, scope: &Scope, later: Later<'a>) -> Result<()> {
        match later {
            Later::When(register, when) => {
                let code = self.expression(when, scope)?;
                if let Some(register) = self.out.registers.get_mut(usize::from(register)) {
                    register.when = Some(code);
                }
            }
            Later::Transfer(index, [address, length, active]) => {
                let codes = [
                    self.expression(address, scope)?,
                    self.expression(length, scope)?,
                    self.expression(active, scope)?,
                ];
                if let Some(transfer) = self.out.transfers.get_mut(usize::from(index)) {
                    [transfer.address, transfer.length, transfer.active] = codes;
                }
            }
            Later::Table(index, at, body) => self.table(index, at, body, scope)?,
            Later::On(trigger, body, span) => self.on(trigger, body, span, scope)?,
            Later::Promise(expr, during, why) => {
                let expr = self.expression(expr, scope)?;
                let during = match during {
                    Some(during) => Some(self.expression(during, scope)?),
                    None => None,
                };
                let why = why.to_owned();
                self.out.promises.push(super::Promise { why, expr, during });
            }
            Later::Reusable(expr) => self.reusable = Some(self.expression(expr, scope)?),
            Later::Save(body) => self.out.save = Some(self.rule(body, scope)?),
            Later::Restore(body) => self.out.restore = Some(self.rule(body, scope)?),
        }
        Ok(())
    }

    fn on(
        &mut self,
        trigger: &Trigger,
        body: &[Statement],
        span: &Span,
        scope: &Scope,
    ) -> Result<()> {
        let start = Some(self.rule(body, scope)?);
        let place = match trigger {
            Trigger::Interrupt => &mut self.out.interrupt,
            Trigger::Timer => &mut self.out.timer,
            Trigger::Access(access, name) => {
                let index = self.register(name, scope)?;
                let Some(register) = self.out.registers.get_mut(usize::from(index)) else {
                    return Ok(());
                };
                if register.direction.is_some_and(|only| only != *access) {
                    return Err(Diagnostic::new(
                        "the register is not accessed this way",
                        span,
                    ));
                }
                match access {
                    Access::Read => &mut register.on_read,
                    Access::Write => &mut register.on_write,
                }
            }
        };
        if place.is_some() {
            return Err(Diagnostic::new("there is a rule for this already", span));
        }
        *place = start;
        Ok(())
    }

    fn table(
        &mut self,
        index: u8,
        at: Option<(&Expr, &Expr)>,
        body: &[TableItem],
        scope: &Scope,
    ) -> Result<()> {
        let at = match at {
            Some((base, count)) => Some((
                self.expression(base, scope)?,
                self.expression(count, scope)?,
            )),
            None => None,
        };
        let Some(mut table) = self.out.tables.get(usize::from(index)).cloned() else {
            return Ok(());
        };
        table.at = at;
        self.fields = table
            .fields
            .iter()
            .map(|field| (field.name.clone(), field.slot))
            .collect();
        for item in body {
            self.table_item(&mut table, item, scope)?;
        }
        self.fields.clear();
        if let Some(place) = self.out.tables.get_mut(usize::from(index)) {
            *place = table;
        }
        Ok(())
    }

    fn table_item(&mut self, table: &mut Table, item: &TableItem, scope: &Scope) -> Result<()> {
        let field = |table: &Table, name: &Name| {
            let found = table
                .fields
                .iter()
                .position(|field| field.address && field.name == name.word);
            found.ok_or_else(|| Diagnostic::new("this is no address of the entry", &name.span))
        };
        match item {
            TableItem::Field { .. } => {}
            TableItem::Buffer {
                access,
                address,
                length,
                condition,
            } => {
                let condition = match condition {
                    Some(condition) => Some(self.expression(condition, scope)?),
                    None => None,
                };
                table.buffers.push(Buffer {
                    access: *access,
                    field: field(table, address)?,
                    length: self.expression(length, scope)?,
                    condition,
                });
            }
            TableItem::Follow {
                address,
                count,
                table: name,
            } => {
                let Symbol::Table(to) = self.find(name, scope)? else {
                    return Err(Diagnostic::new("this is no table", &name.span));
                };
                let to = usize::from(to);
                let has_place = self.out.tables.get(to).is_none_or(|to| {
                    to.at.is_some() || to.follow.is_some() || to.name == table.name
                });
                let followed = self.out.tables.iter().any(|other| {
                    other
                        .follow
                        .as_ref()
                        .is_some_and(|follow| follow.table == to)
                });
                if has_place || followed || table.follow.is_some() || table.at.is_none() {
                    let message = "a table that is followed has one place and follows none";
                    return Err(Diagnostic::new(message, &name.span));
                }
                table.follow = Some(Follow {
                    field: field(table, address)?,
                    count: self.expression(count, scope)?,
                    table: to,
                });
            }
            TableItem::Device(first, end) => {
                let end = self.within(end, scope, 0, table.entry)?;
                table.device = (self.within(first, scope, 0, end)?, end);
            }
            TableItem::While(expr) => table.during = Some(self.expression(expr, scope)?),
            TableItem::Last(expr) => table.last = Some(self.expression(expr, scope)?),
            TableItem::Wrap(expr) => table.wrap = Some(self.expression(expr, scope)?),
            TableItem::Done(expr) => table.done = Some(self.expression(expr, scope)?),
        }
        Ok(())
    }

    /// A table without a place of its own must be followed, or nothing ever fetches it.
    fn every_table_has_a_place(&self) -> Result<()> {
        for (table, i) in self.out.tables.iter().zip(0..) {
            let followed = |other: &Table| other.follow.as_ref().is_some_and(|f| f.table == i);
            if table.at.is_none() && !self.out.tables.iter().any(followed) {
                let message = format!("table `{}` is nowhere: no `at`, no `follow`", table.name);
                return Err(Diagnostic::new(message, &(0..1)));
            }
            if table.at.is_some() && table.head != 0 {
                let message = format!(
                    "table `{}`: only a table that is followed has a head",
                    table.name
                );
                return Err(Diagnostic::new(message, &(0..1)));
            }
            let written = table.device.0 < table.device.1;
            if written != table.done.is_some() || written && table.at.is_none() {
                let message = format!(
                    "table `{}`: `device` and `done` belong together, where the table has an `at`",
                    table.name
                );
                return Err(Diagnostic::new(message, &(0..1)));
            }
        }
        Ok(())
    }
}
