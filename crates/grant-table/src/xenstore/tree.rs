//! The nodes and who may do what with them.

use std::collections::BTreeMap;

use super::StoreError;
use crate::spec::DomId;
use crate::spec::xenstore::{PATH, RELATIVE_PATH};

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Read its value, its children's names and its permissions.
    pub read: bool,
    /// Change and remove it, and make children.
    pub write: bool,
}

/// Whom a [`Mode`] is for. A node's first permission names its owner, who may do everything, with the mode of all domains that no other
/// permission names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// The domain.
    pub domain: DomId,
    /// What it may do.
    pub mode: Mode,
}

impl Permission {
    /// The letter and number of the wire.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let mut chars = text.chars();
        let (read, write) = match chars.next() {
            Some('n') => (false, false),
            Some('r') => (true, false),
            Some('w') => (false, true),
            Some('b') => (true, true),
            _ => return Err(StoreError::Invalid),
        };
        let domain = chars
            .as_str()
            .parse()
            .map(DomId)
            .map_err(|_| StoreError::Invalid)?;
        Ok(Self {
            domain,
            mode: Mode { read, write },
        })
    }

    pub(super) fn text(self) -> String {
        let letter = match (self.mode.read, self.mode.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        };
        format!("{letter}{}", self.domain.0)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Vec<Permission>,
    /// Changes with the node, and with the set of its children.
    pub(super) generation: u64,
}

impl Node {
    fn mode(&self, domain: DomId) -> Mode {
        let owner = self.permissions.first();
        if domain == DomId(0) || owner.is_some_and(|owner| owner.domain == domain) {
            return Mode {
                read: true,
                write: true,
            };
        }
        let named = self
            .permissions
            .iter()
            .skip(1)
            .find(|one| one.domain == domain);
        named.or(owner).map_or(
            Mode {
                read: false,
                write: false,
            },
            |one| one.mode,
        )
    }

    pub(super) fn owner(&self) -> DomId {
        self.permissions
            .first()
            .map_or(DomId(0), |owner| owner.domain)
    }
}

/// An absolute path: `/`, or names with a slash before each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path(pub(super) String);

impl Path {
    /// The path that a domain means.
    pub(super) fn parse(domain: DomId, text: &str) -> Result<Self, StoreError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-/_@".contains(c);
        let limit = if text.starts_with('/') {
            PATH
        } else {
            RELATIVE_PATH
        };
        if text.is_empty() || text.len() > limit || !text.chars().all(good) {
            return Err(StoreError::Invalid);
        }
        if text == "/" {
            return Ok(Self(text.to_owned()));
        }
        if text.ends_with('/') || text.contains("//") || text.contains('@') {
            return Err(StoreError::Invalid);
        }
        Ok(Self(if text.starts_with('/') {
            text.to_owned()
        } else {
            format!("/local/domain/{}/{text}", domain.0)
        }))
    }

    pub(super) fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.rsplit_once('/')?;
        if name.is_empty() {
            return None;
        }
        Some(Self(
            if parent.is_empty() { "/" } else { parent }.to_owned(),
        ))
    }

    /// What the paths of nodes below begin with.
    fn prefix(&self) -> String {
        if self.0 == "/" {
            self.0.clone()
        } else {
            format!("{}/", self.0)
        }
    }

    /// Whether `other` is this or below.
    pub(super) fn holds(&self, other: &Self) -> bool {
        self == other || other.0.starts_with(&self.prefix())
    }
}

/// All nodes.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<Path, Node>,
}

impl Tree {
    pub(super) fn new() -> Self {
        let permissions = vec![Permission {
            domain: DomId(0),
            mode: Mode {
                read: true,
                write: false,
            },
        }];
        let root = Node {
            value: Vec::new(),
            permissions,
            generation: 0,
        };
        Self {
            nodes: BTreeMap::from([(Path("/".to_owned()), root)]),
        }
    }

    pub(super) fn generation(&self, path: &Path) -> Option<u64> {
        self.nodes.get(path).map(|node| node.generation)
    }

    /// A node that a domain may read.
    pub(super) fn read(&self, domain: DomId, path: &Path) -> Result<&Node, StoreError> {
        self.get(domain, path, |mode| mode.read)
    }

    fn get(
        &self,
        domain: DomId,
        path: &Path,
        allowed: impl Fn(Mode) -> bool,
    ) -> Result<&Node, StoreError> {
        match self.nodes.get(path) {
            Some(node) if allowed(node.mode(domain)) => Ok(node),
            Some(_) => Err(StoreError::Access),
            // Whether it is there is for those to know who may read what it would be in.
            None => {
                let nearest = self.nearest(path).ok_or(StoreError::NoEntry)?;
                if nearest.1.mode(domain).read {
                    Err(StoreError::NoEntry)
                } else {
                    Err(StoreError::Access)
                }
            }
        }
    }

    /// The deepest node that is there above a path.
    fn nearest(&self, path: &Path) -> Option<(Path, &Node)> {
        let mut at = path.parent()?;
        loop {
            if let Some(node) = self.nodes.get(&at) {
                return Some((at, node));
            }
            at = at.parent()?;
        }
    }

    /// The names of a node's children.
    pub(super) fn children(&self, path: &Path) -> Vec<&str> {
        let prefix = path.prefix();
        let below = self.nodes.range(Path(prefix.clone())..);
        let names = below.map_while(|(path, _)| path.0.strip_prefix(&prefix));
        names
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .collect()
    }

    /// Whether making a node would give a domain more than `limit`.
    pub(super) fn exceeds(&self, domain: DomId, path: &Path, limit: usize) -> bool {
        let depth = |path: &Path| {
            if path.0 == "/" {
                0
            } else {
                path.0.matches('/').count()
            }
        };
        let missing = match self.nearest(path) {
            Some((above, _)) if !self.nodes.contains_key(path) => depth(path) - depth(&above),
            _ => return false,
        };
        let owned = self
            .nodes
            .values()
            .filter(|node| node.owner() == domain)
            .count();
        owned.saturating_add(missing) > limit
    }

    /// Makes a node and those above it, if it is not there.
    pub(super) fn make(
        &mut self,
        domain: DomId,
        path: &Path,
        generation: u64,
    ) -> Result<(), StoreError> {
        if let Some(node) = self.nodes.get(path) {
            return if node.mode(domain).write {
                Ok(())
            } else {
                Err(StoreError::Access)
            };
        }
        let (above, nearest) = self.nearest(path).ok_or(StoreError::NoEntry)?;
        if !nearest.mode(domain).write {
            return Err(StoreError::Access);
        }
        let mut permissions = nearest.permissions.clone();
        if let Some(owner) = permissions.first_mut()
            && domain != DomId(0)
        {
            owner.domain = domain;
        }
        let mut at = Some(path.clone()).filter(|path| *path != above);
        while let Some(path) = at {
            let node = Node {
                value: Vec::new(),
                permissions: permissions.clone(),
                generation,
            };
            at = path.parent().filter(|path| *path != above);
            self.nodes.insert(path, node);
        }
        self.touch(&above, generation);
        Ok(())
    }

    fn touch(&mut self, path: &Path, generation: u64) {
        if let Some(node) = self.nodes.get_mut(path) {
            node.generation = generation;
        }
    }

    /// Sets a value, making the node if it is not there.
    pub(super) fn write(
        &mut self,
        domain: DomId,
        path: &Path,
        value: &[u8],
        generation: u64,
    ) -> Result<(), StoreError> {
        self.make(domain, path, generation)?;
        if let Some(node) = self.nodes.get_mut(path) {
            node.value = value.to_vec();
            node.generation = generation;
        }
        Ok(())
    }

    /// Removes a node with all below. One that is not there need not be removed, if what it would be in is there.
    pub(super) fn remove(
        &mut self,
        domain: DomId,
        path: &Path,
        generation: u64,
    ) -> Result<(), StoreError> {
        let parent = path.parent().ok_or(StoreError::Invalid)?;
        match self.get(domain, path, |mode| mode.write) {
            Ok(_) => {}
            Err(StoreError::NoEntry) if self.nodes.contains_key(&parent) => return Ok(()),
            Err(error) => return Err(error),
        }
        self.nodes.remove(path);
        let prefix = path.prefix();
        let below = self.nodes.range(Path(prefix.clone())..);
        let below: Vec<_> = below
            .map_while(|(path, _)| path.0.starts_with(&prefix).then(|| path.clone()))
            .collect();
        for path in below {
            self.nodes.remove(&path);
        }
        self.touch(&parent, generation);
        Ok(())
    }

    /// Sets permissions: the owner's right, who keeps the node unless a privileged domain gives it away.
    pub(super) fn set_permissions(
        &mut self,
        domain: DomId,
        path: &Path,
        permissions: Vec<Permission>,
        generation: u64,
    ) -> Result<(), StoreError> {
        let owner = self.get(domain, path, |mode| mode.write)?.owner();
        let first = permissions.first().ok_or(StoreError::Invalid)?;
        if domain != DomId(0) && (owner != domain || first.domain != domain) {
            return Err(StoreError::Access);
        }
        if let Some(node) = self.nodes.get_mut(path) {
            node.permissions = permissions;
            node.generation = generation;
        }
        Ok(())
    }
}
