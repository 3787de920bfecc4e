//! The text of a model: grammar and errors. The grammar is described in the crate's `LANGUAGE.md`.

mod diagnostic;
mod parser;
pub(crate) mod syntax;

pub use diagnostic::{Diagnostic, LanguageError};
pub use syntax::{Access, Kind, Policy};

pub(crate) use parser::parse;
