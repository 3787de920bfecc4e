use std::fmt;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};

use super::syntax::Span;

/// What is wrong with a model's text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// What to say at the place itself.
    pub label: String,
    /// The place, in bytes from the start of the text.
    pub span: Span,
}

impl Diagnostic {
    pub(crate) fn new(message: impl Into<String>, span: &Span) -> Self {
        Self {
            message: message.into(),
            label: String::new(),
            span: span.clone(),
        }
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Line and column of the place in `text`, both from 1; columns count characters.
    pub fn position(&self, text: &str) -> (usize, usize) {
        let before = text.get(..self.span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a text is no model: everything that is wrong with it, as far as could be found out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", render(path, text, diagnostics))]
pub struct LanguageError {
    /// The name of the file, as it was given.
    pub path: String,
    /// The text.
    pub text: String,
    /// What is wrong, at least one.
    pub diagnostics: Vec<Diagnostic>,
}

fn render(path: &str, text: &str, diagnostics: &[Diagnostic]) -> String {
    let renderer = Renderer::plain();
    let reports = diagnostics.iter().map(|diagnostic| {
        let end = diagnostic.span.end.min(text.len());
        let span = diagnostic.span.start.min(end)..end;
        let annotation = AnnotationKind::Primary.span(span).label(&diagnostic.label);
        let snippet = Snippet::source(text).path(path).annotation(annotation);
        let title = Level::ERROR.primary_title(&diagnostic.message);
        renderer.render(&[title.element(snippet)])
    });
    reports.collect::<Vec<_>>().join("\n\n")
}
