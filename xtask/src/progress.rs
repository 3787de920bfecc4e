//! What a task is doing, on one line that moves.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line on the terminal; nothing where there is none.
#[derive(Debug)]
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows `what` is being done.
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{elapsed}] {prefix}: {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// The next step begins: kept as a line of its own where there is no terminal.
    pub fn step(&self, step: &str) {
        if self.0.is_hidden() {
            eprintln!("{}: {step}", self.0.prefix());
        }
        self.0.set_message(step.to_owned());
    }

    /// A sign of life within the step.
    pub fn note(&self, note: &str) {
        let printable = note.chars().filter(|c| !c.is_control()).collect::<String>();
        self.0.set_message(printable);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
