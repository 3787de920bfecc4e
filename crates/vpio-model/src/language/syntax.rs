//! The tree that a model's text is read into, before names mean anything.

use std::ops::Range;

/// Where something stands in the text, in bytes.
pub type Span = Range<usize>;

/// A word, perhaps with an index: `tx`, `tx[n]`.
#[derive(Clone, Debug)]
pub struct Name {
    pub word: String,
    pub index: Option<Box<Expr>>,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub struct Expr {
    pub kind: ExprKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum ExprKind {
    Number(u64),
    Name(Name),
    Unary(Unary, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    /// `device(x)`, `peek(REG)`, `shadow(table)`, `if(c, a, b)`.
    Call(Name, Vec<Expr>),
    /// `machine is state`.
    Is(Name, Name),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// 1 for 0, 0 for everything else.
    Not,
    /// All 64 bits inverted.
    Invert,
}

/// Numbers are 64-bit and wrap; a shift by 64 or more and a division by zero give 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    Or,
    And,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    BitOr,
    BitXor,
    BitAnd,
    ShiftLeft,
    ShiftRight,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

/// Which way bytes go, as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
}

/// What happens to an access that is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// A write has no effect and a read gives all ones, as where there is no device.
    #[default]
    Ignore,
    /// The access fails in the way of the bus, which the VMM may tell the guest.
    Fail,
    /// The guest gets a machine check.
    MachineCheck,
    /// The device is reset.
    Reset,
}

#[derive(Clone, Debug)]
pub struct Statement {
    pub kind: StatementKind,
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum StatementKind {
    Assign(Name, Expr),
    /// `machine -> state;`
    Goto(Name, Name),
    If(Expr, Vec<Statement>, Vec<Statement>),
    /// The arms' patterns; none of them is `_`.
    Match(Expr, Vec<(Vec<Expr>, Vec<Statement>)>),
    For(Name, Expr, Expr, Vec<Statement>),
    Require(Expr, Option<Policy>, String),
    Check(Name),
    Fetch(Name, Fetch),
    Forward(Expr),
    Reset,
    /// Write to a register: `put REG, value (times n);`
    Put(Name, Expr, Option<Expr>),
    /// Read a register into a variable: `get var, REG;`
    Get(Name, Name),
}

/// Which entries of a table the device is about to look at.
#[derive(Clone, Debug)]
pub enum Fetch {
    /// From the first up to, and not, the second, around the end of the table.
    Range(Expr, Expr),
    /// Those whose bit is set.
    Bits(Expr),
    /// From the variable's index on, as long as the table says; the variable is then the index after the last.
    Chain(Name),
}

#[derive(Clone, Debug)]
pub enum Item {
    Model(String),
    Deny(Policy),
    Space {
        name: Name,
        places: Vec<(Kind, Option<Expr>)>,
        size: Expr,
    },
    Const(Name, Expr),
    Machine(Name, Vec<Name>),
    Variable {
        name: Name,
        address: bool,
        bits: Expr,
        initial: Option<Expr>,
    },
    For(Name, Expr, Expr, Vec<Item>),
    Register {
        name: Name,
        space: Name,
        offset: Expr,
        width: Expr,
        direction: Option<Access>,
        when: Option<Expr>,
    },
    Free {
        space: Name,
        first: Expr,
        end: Expr,
        direction: Option<Access>,
    },
    Transfer {
        name: Name,
        access: Access,
        address: Expr,
        length: Expr,
        active: Expr,
    },
    Table {
        name: Name,
        at: Option<(Expr, Expr)>,
        max: Expr,
        head: Option<Expr>,
        entry: Expr,
        body: Vec<TableItem>,
    },
    On(Trigger, Vec<Statement>, Span),
    /// What holds in every state; or, with a condition, what no event changes while that holds.
    Promise {
        expr: Expr,
        during: Option<Expr>,
        why: String,
    },
    Reusable(Expr),
    Save(Vec<Statement>),
    Restore(Vec<Statement>),
}

#[derive(Clone, Debug)]
pub enum TableItem {
    Field {
        name: Name,
        address: bool,
        offset: Expr,
        width: Expr,
    },
    Buffer {
        access: Access,
        address: Name,
        length: Expr,
        condition: Option<Expr>,
    },
    Follow {
        address: Name,
        count: Expr,
        table: Name,
    },
    /// The bytes that the device writes.
    Device(Expr, Expr),
    While(Expr),
    Last(Expr),
    Wrap(Expr),
    Done(Expr),
}

#[derive(Clone, Debug)]
pub enum Trigger {
    Access(Access, Name),
    Interrupt,
    Timer,
}

/// What a space of registers is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// I/O ports.
    Port,
    /// Memory-mapped.
    Memory,
    /// PCI configuration space.
    Config,
}
