//! What a task is doing, on lines that move.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// A line on the terminal; nothing where there is none.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    all: MultiProgress,
}

impl Progress {
    /// Shows `what` is being done.
    pub fn new(what: &str) -> Self {
        Self::of(MultiProgress::new(), what)
    }

    /// One more line, below the others.
    pub fn another(&self, what: &str) -> Self {
        Self::of(self.all.clone(), what)
    }

    fn of(all: MultiProgress, what: &str) -> Self {
        let bar = all.add(ProgressBar::new_spinner());
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} [{elapsed}] {prefix}: {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, all }
    }

    /// The next step begins: kept as a line of its own where there is no terminal.
    pub fn step(&self, step: &str) {
        if self.bar.is_hidden() {
            eprintln!("{}: {step}", self.bar.prefix());
        }
        self.bar.set_message(step.to_owned());
    }

    /// A sign of life within the step.
    pub fn note(&self, note: &str) {
        let printable = note.chars().filter(|c| !c.is_control()).collect::<String>();
        self.bar.set_message(printable);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
