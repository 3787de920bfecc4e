//! What each step of a long task came to, and the table at its end.

use std::fmt;
use std::time::Duration;

/// How many checks passed, failed and did not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that passed.
    pub passed: u64,
    /// Those that failed.
    pub failed: u64,
    /// Those that could not run here.
    pub skipped: u64,
}

impl Counts {
    /// One check that passed.
    pub const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    /// One check that failed.
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
    /// One check that could not run.
    pub const SKIPPED: Self = Self {
        passed: 0,
        failed: 0,
        skipped: 1,
    };

    /// The sum of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }

    /// What test binaries printed: libtest's result lines, and a line with the word SKIPPED for
    /// each test that passed only because it could not run.
    pub fn of_tests(output: &str) -> Self {
        let mut counts = Self::default();
        for line in output.lines() {
            if let Some(result) = line.trim().strip_prefix("test result: ") {
                let number_before = |what: &str| -> u64 {
                    let words = || result.split_whitespace();
                    words()
                        .zip(words().skip(1))
                        .find(|(_, word)| word.trim_end_matches(';') == what)
                        .and_then(|(number, _)| number.parse().ok())
                        .unwrap_or(0)
                };
                counts.passed += number_before("passed");
                counts.failed += number_before("failed");
                counts.skipped += number_before("ignored");
            } else if line.contains("SKIPPED") {
                counts.skipped += 1;
                counts.passed = counts.passed.saturating_sub(1);
            }
        }
        counts
    }
}

/// One step's part in the summary.
#[derive(Debug)]
pub struct Row {
    /// The step.
    pub name: String,
    /// Its checks.
    pub counts: Counts,
    /// Why it failed or did not run, in a line.
    pub note: String,
    /// How long it took.
    pub took: Duration,
}

/// The rows of a task.
#[derive(Debug, Default)]
pub struct Summary(pub Vec<Row>);

impl Summary {
    /// All checks.
    pub fn counts(&self) -> Counts {
        self.0
            .iter()
            .fold(Counts::default(), |sum, row| sum.and(row.counts))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<28} {:>7} {:>7} {:>7} {:>7}",
            "step", "passed", "failed", "skipped", "time"
        )?;
        for Row {
            name,
            counts,
            note,
            took,
        } in &self.0
        {
            let Counts {
                passed,
                failed,
                skipped,
            } = counts;
            let seconds = took.as_secs();
            writeln!(
                f,
                "{name:<28} {passed:>7} {failed:>7} {skipped:>7} {seconds:>5} s  {note}"
            )?;
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = self.counts();
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_and_skips_of_test_binaries_add_up() {
        let output = "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      SKIPPED: no /dev/kvm\n\
                      test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured\n";
        assert_eq!(
            Counts::of_tests(output),
            Counts {
                passed: 4,
                failed: 1,
                skipped: 2
            }
        );
    }
}
