//! Exits to user space as KVM's `kvm_userspace_exit` tracepoint counts them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// `KVM_EXIT_…` of include/uapi/linux/kvm.h, by number.
const REASONS: [&str; 18] = [
    "unknown",
    "exception",
    "io",
    "hypercall",
    "debug",
    "hlt",
    "mmio",
    "irq window open",
    "shutdown",
    "fail entry",
    "intr",
    "set tpr",
    "tpr access",
    "s390 sieic",
    "s390 reset",
    "dcr",
    "nmi",
    "internal error",
];

/// How many exits there were, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Exits(pub BTreeMap<String, u64>);

impl Exits {
    /// Reads the lines of a `hist:keys=reason` trigger; none if the kernel has no such tracepoint.
    pub fn read(path: &Path) -> Result<Self> {
        let text = if path.exists() {
            fs::read_to_string(path)?
        } else {
            String::new()
        };
        Self::parse(&text).with_context(|| format!("{} is not a histogram", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut exits = BTreeMap::new();
        for line in text.lines() {
            // `{ reason:          2 } hitcount:       1234`
            let (key, count) = line.split_once('}')?;
            let number: usize = key.split_once("reason:")?.1.trim().parse().ok()?;
            let count: u64 = count.split_once("hitcount:")?.1.trim().parse().ok()?;
            let reason = match (REASONS.get(number), number) {
                (Some(reason), _) => (*reason).to_owned(),
                (None, 24) => "system event".to_owned(),
                (None, 29) => "rdmsr".to_owned(),
                (None, 30) => "wrmsr".to_owned(),
                (None, other) => format!("reason {other}"),
            };
            *exits.entry(reason).or_default() += count;
        }
        Some(Self(exits))
    }

    /// All exits.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_read_by_reason() {
        let exits = Exits::parse(
            "{ reason:          2 } hitcount:       1234\n{ reason:         29 } hitcount:          1\n",
        )
        .unwrap();
        assert_eq!(exits.0["io"], 1234);
        assert_eq!(exits.0["rdmsr"], 1);
        assert_eq!(exits.total(), 1235);
        assert!(Exits::parse("{ reason: 2 hitcount: 3").is_none());
    }
}
