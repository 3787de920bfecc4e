//! Watches of one connection.

use super::tree::Path;

/// What a watch waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Changes at or below a node.
    Node(Path),
    /// `@introduceDomain` or `@releaseDomain`.
    Special(String),
}

#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) target: Target,
    pub(super) token: String,
    /// The start of paths that the watch does not tell, as it was set with a relative path.
    pub(super) base: Option<String>,
}

impl Watch {
    /// The path to tell when `changed` did, with all below if it was removed; none if the watch does not care.
    pub(super) fn fires(&self, changed: &Path, removed: bool) -> Option<String> {
        let Target::Node(node) = &self.target else {
            return None;
        };
        let told = if node.holds(changed) {
            changed
        } else if removed && changed.holds(node) {
            node
        } else {
            return None;
        };
        let stripped = self
            .base
            .as_ref()
            .and_then(|base| told.0.strip_prefix(base.as_str()));
        Some(stripped.unwrap_or(&told.0).to_owned())
    }
}
