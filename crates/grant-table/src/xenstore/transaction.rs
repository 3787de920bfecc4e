//! Transactions: changes to a view of the tree, which are made again on the tree itself if nothing that was looked at has changed.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::StoreError;
use super::tree::{Path, Permission, Tree};
use crate::spec::DomId;

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(Path, Vec<u8>),
    Make(Path),
    Remove(Path),
    Permissions(Path, Vec<Permission>),
}

impl Change {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Write(path, _)
            | Self::Make(path)
            | Self::Remove(path)
            | Self::Permissions(path, _) => path,
        }
    }

    pub(super) fn apply(
        &self,
        tree: &mut Tree,
        domain: DomId,
        generation: u64,
    ) -> Result<(), StoreError> {
        match self {
            Self::Write(path, value) => tree.write(domain, path, value, generation),
            Self::Make(path) => tree.make(domain, path, generation),
            Self::Remove(path) => tree.remove(domain, path, generation),
            Self::Permissions(path, list) => {
                tree.set_permissions(domain, path, list.clone(), generation)
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Transaction {
    /// The tree when it began.
    base: Arc<Tree>,
    /// The tree with its changes.
    pub(super) view: Arc<Tree>,
    touched: BTreeSet<Path>,
    pub(super) changes: Vec<Change>,
}

impl Transaction {
    pub(super) fn new(tree: &Arc<Tree>) -> Self {
        Self {
            base: Arc::clone(tree),
            view: Arc::clone(tree),
            touched: BTreeSet::new(),
            changes: Vec::new(),
        }
    }

    /// Remembers that a path was looked at.
    pub(super) fn touch(&mut self, path: &Path) {
        self.touched.insert(path.clone());
    }

    /// Whether everything that was looked at is in `tree` as it was.
    pub(super) fn holds(&self, tree: &Tree) -> bool {
        self.touched
            .iter()
            .all(|path| tree.generation(path) == self.base.generation(path))
    }
}
