//! The store: connections, requests, and what they are answered.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::StoreError;
use super::transaction::{Change, Transaction};
use super::tree::{Path, Permission, Tree};
use super::watch::{Target, Watch};
use crate::spec::DomId;
use crate::spec::xenstore::{Header, PAYLOAD, kind};

/// A message: a request, its answer, or an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// [`kind`].
    pub kind: u32,
    /// Comes back in the answer.
    pub request: u32,
    /// The transaction, or 0.
    pub transaction: u32,
    /// At most 4096 bytes.
    pub payload: Vec<u8>,
}

impl Message {
    pub(super) fn header(&self) -> Header {
        Header {
            kind: self.kind,
            request: self.request,
            transaction: self.transaction,
            length: u32::try_from(self.payload.len()).unwrap_or(u32::MAX),
        }
    }
}

/// What each unprivileged domain may have.
#[derive(Clone, Copy, Debug)]
pub struct Quota {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of a value.
    pub value: usize,
    /// Watches.
    pub watches: usize,
    /// Transactions at a time.
    pub transactions: usize,
    /// Changes in a transaction.
    pub changes: usize,
    /// Messages that it has not taken. Events beyond are lost.
    pub outstanding: usize,
}

impl Default for Quota {
    /// As xenstored's where it has such.
    fn default() -> Self {
        Self {
            nodes: 1000,
            value: 2048,
            watches: 128,
            transactions: 10,
            changes: 1024,
            outstanding: 1024,
        }
    }
}

#[derive(Debug, Default)]
struct Client {
    watches: Vec<Watch>,
    transactions: HashMap<u32, Transaction>,
    last_transaction: u32,
    outbox: VecDeque<Message>,
}

/// The store.
#[derive(Debug)]
pub struct XenStore {
    tree: Arc<Tree>,
    generation: u64,
    quota: Quota,
    clients: BTreeMap<DomId, Client>,
}

/// The answer to a request.
type Answer = Result<Vec<u8>, StoreError>;

const DONE: &[u8] = b"OK\0";

/// The strings of a payload, each with its end.
fn strings(payload: &[u8]) -> Result<Vec<&str>, StoreError> {
    let all = payload.strip_suffix(b"\0").ok_or(StoreError::Invalid)?;
    let parts = all.split(|&byte| byte == 0);
    parts
        .map(|part| std::str::from_utf8(part).map_err(|_| StoreError::Invalid))
        .collect()
}

fn one(payload: &[u8]) -> Result<&str, StoreError> {
    match *strings(payload)?.as_slice() {
        [one] => Ok(one),
        _ => Err(StoreError::Invalid),
    }
}

impl XenStore {
    /// A store with a root only, that knows domain 0.
    pub fn new(quota: Quota) -> Self {
        Self {
            tree: Arc::new(Tree::new()),
            generation: 0,
            quota,
            clients: BTreeMap::from([(DomId(0), Client::default())]),
        }
    }

    /// A domain has come: it may make requests. False if it was there.
    pub fn introduce(&mut self, domain: DomId) -> bool {
        if self.clients.contains_key(&domain) {
            return false;
        }
        self.clients.insert(domain, Client::default());
        self.fire_special("@introduceDomain");
        true
    }

    /// A domain goes. False if it was not there.
    pub fn release(&mut self, domain: DomId) -> bool {
        let gone = domain != DomId(0) && self.clients.remove(&domain).is_some();
        if gone {
            self.fire_special("@releaseDomain");
        }
        gone
    }

    /// Takes the next message for a domain.
    pub fn next(&mut self, domain: DomId) -> Option<Message> {
        self.clients.get_mut(&domain)?.outbox.pop_front()
    }

    /// Serves a request of a domain that was introduced. The answer is among its next messages.
    pub fn request(&mut self, domain: DomId, message: &Message) {
        let answer = self.answer(domain, message);
        let (kind, payload) = match answer {
            Ok(payload) if payload.len() <= PAYLOAD => (message.kind, payload),
            Ok(_) => (
                kind::ERROR,
                format!("{}\0", StoreError::TooBig).into_bytes(),
            ),
            Err(error) => (kind::ERROR, format!("{error}\0").into_bytes()),
        };
        let Some(client) = self.clients.get_mut(&domain) else {
            return;
        };
        let at = match kind {
            // What a new watch tells at once comes after it is confirmed.
            kind::WATCH => client.outbox.len().saturating_sub(1),
            _ => client.outbox.len(),
        };
        let Message {
            request,
            transaction,
            ..
        } = *message;
        let answer = Message {
            kind,
            request,
            transaction,
            payload,
        };
        client.outbox.insert(at, answer);
    }

    fn answer(&mut self, domain: DomId, message: &Message) -> Answer {
        let payload = message.payload.as_slice();
        if payload.len() > PAYLOAD || !self.clients.contains_key(&domain) {
            return Err(StoreError::Invalid);
        }
        let transaction = message.transaction;
        let privileged = domain == DomId(0);
        let path = |text| Path::parse(domain, text);
        match message.kind {
            kind::READ => {
                let path = path(one(payload)?)?;
                Ok(self
                    .view(domain, transaction, &path)?
                    .read(domain, &path)?
                    .value
                    .clone())
            }
            kind::DIRECTORY => {
                let path = path(one(payload)?)?;
                let tree = self.view(domain, transaction, &path)?;
                tree.read(domain, &path)?;
                Ok(tree
                    .children(&path)
                    .iter()
                    .flat_map(|name| [name.as_bytes(), b"\0"].concat())
                    .collect())
            }
            kind::DIRECTORY_PART => {
                let [node, offset] = *strings(payload)?.as_slice() else {
                    return Err(StoreError::Invalid);
                };
                let path = path(node)?;
                self.directory_part(domain, transaction, &path, offset)
            }
            kind::GET_PERMS => {
                let path = path(one(payload)?)?;
                let node = self.view(domain, transaction, &path)?.read(domain, &path)?;
                Ok(node
                    .permissions
                    .iter()
                    .flat_map(|one| format!("{}\0", one.text()).into_bytes())
                    .collect())
            }
            kind::WRITE => {
                let end = payload
                    .iter()
                    .position(|&byte| byte == 0)
                    .ok_or(StoreError::Invalid)?;
                let (name, value) = payload.split_at(end);
                let name = std::str::from_utf8(name).map_err(|_| StoreError::Invalid)?;
                let value = value.get(1..).unwrap_or_default().to_vec();
                if !privileged && value.len() > self.quota.value {
                    return Err(StoreError::NoSpace);
                }
                self.change(domain, transaction, Change::Write(path(name)?, value))
            }
            kind::MKDIR => self.change(domain, transaction, Change::Make(path(one(payload)?)?)),
            kind::RM => self.change(domain, transaction, Change::Remove(path(one(payload)?)?)),
            kind::SET_PERMS => match strings(payload)?.as_slice() {
                [name, list @ ..] => {
                    let list: Result<_, _> =
                        list.iter().map(|text| Permission::parse(text)).collect();
                    self.change(domain, transaction, Change::Permissions(path(name)?, list?))
                }
                [] => Err(StoreError::Invalid),
            },
            kind::WATCH => match *strings(payload)?.as_slice() {
                [node, token] => self.watch(domain, node, token),
                _ => Err(StoreError::Invalid),
            },
            kind::UNWATCH => match *strings(payload)?.as_slice() {
                [node, token] => self.unwatch(domain, node, token),
                _ => Err(StoreError::Invalid),
            },
            kind::RESET_WATCHES => {
                let client = self.client(domain)?;
                client.watches.clear();
                client.transactions.clear();
                Ok(DONE.to_vec())
            }
            kind::TRANSACTION_START => self.start(domain, transaction),
            kind::TRANSACTION_END => match one(payload)? {
                "T" => self.end(domain, transaction, true),
                "F" => self.end(domain, transaction, false),
                _ => Err(StoreError::Invalid),
            },
            kind::GET_DOMAIN_PATH => {
                let number: u16 = one(payload)?.parse().map_err(|_| StoreError::Invalid)?;
                Ok(format!("/local/domain/{number}\0").into_bytes())
            }
            kind::IS_DOMAIN_INTRODUCED => {
                let number: u16 = one(payload)?.parse().map_err(|_| StoreError::Invalid)?;
                let there = self.clients.contains_key(&DomId(number));
                Ok(if there { b"T\0" } else { b"F\0" }.to_vec())
            }
            kind::INTRODUCE | kind::RELEASE => {
                if !privileged {
                    return Err(StoreError::Access);
                }
                let number = strings(payload)?
                    .first()
                    .and_then(|number| number.parse().ok());
                let domain = DomId(number.ok_or(StoreError::Invalid)?);
                let done = match message.kind {
                    kind::INTRODUCE => self.introduce(domain),
                    _ => self.release(domain),
                };
                done.then(|| DONE.to_vec()).ok_or(StoreError::Invalid)
            }
            _ => Err(StoreError::NotImplemented),
        }
    }

    fn client(&mut self, domain: DomId) -> Result<&mut Client, StoreError> {
        self.clients.get_mut(&domain).ok_or(StoreError::Invalid)
    }

    /// The tree that a request sees, which looks at `path`.
    fn view(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<&Tree, StoreError> {
        if transaction == 0 {
            return Ok(&self.tree);
        }
        let client = self.clients.get_mut(&domain).ok_or(StoreError::Invalid)?;
        let transaction = client
            .transactions
            .get_mut(&transaction)
            .ok_or(StoreError::NoEntry)?;
        transaction.touch(path);
        Ok(&transaction.view)
    }

    /// Part of the names of a node's children, from a byte on, after the node's generation.
    fn directory_part(
        &mut self,
        domain: DomId,
        transaction: u32,
        path: &Path,
        offset: &str,
    ) -> Answer {
        let offset: usize = offset.parse().map_err(|_| StoreError::Invalid)?;
        let tree = self.view(domain, transaction, path)?;
        let mut answer = format!("{}\0", tree.read(domain, path)?.generation).into_bytes();
        let names: Vec<u8> = tree
            .children(path)
            .iter()
            .flat_map(|name| [name.as_bytes(), b"\0"].concat())
            .collect();
        let rest = names.get(offset..).unwrap_or_default();
        let room = PAYLOAD.saturating_sub(answer.len() + 1);
        if rest.len() <= room {
            answer.extend_from_slice(rest);
            // An empty name after the last.
            answer.push(0);
        } else {
            let fits = rest.get(..room).unwrap_or_default();
            let end = fits
                .iter()
                .rposition(|&byte| byte == 0)
                .map_or(0, |last| last + 1);
            answer.extend(fits.iter().take(end));
        }
        Ok(answer)
    }

    /// Makes a change, in a transaction or at once.
    fn change(&mut self, domain: DomId, transaction: u32, change: Change) -> Answer {
        self.generation += 1;
        let (generation, quota) = (self.generation, self.quota);
        let limited = domain != DomId(0);
        let mut changes = None;
        let tree = if transaction == 0 {
            &mut self.tree
        } else {
            let client = self.clients.get_mut(&domain).ok_or(StoreError::Invalid)?;
            let transaction = client
                .transactions
                .get_mut(&transaction)
                .ok_or(StoreError::NoEntry)?;
            if limited && transaction.changes.len() >= quota.changes {
                return Err(StoreError::NoSpace);
            }
            transaction.touch(change.path());
            changes = Some(&mut transaction.changes);
            &mut transaction.view
        };
        let makes = matches!(change, Change::Write(..) | Change::Make(_));
        if limited && makes && tree.exceeds(domain, change.path(), quota.nodes) {
            return Err(StoreError::NoSpace);
        }
        change.apply(Arc::make_mut(tree), domain, generation)?;
        match changes {
            Some(changes) => changes.push(change),
            None => self.fire(&change),
        }
        Ok(DONE.to_vec())
    }

    fn start(&mut self, domain: DomId, transaction: u32) -> Answer {
        let (limit, begun) = (self.quota.transactions, Transaction::new(&self.tree));
        let client = self.client(domain)?;
        if transaction != 0 {
            return Err(StoreError::Invalid);
        }
        if domain != DomId(0) && client.transactions.len() >= limit {
            return Err(StoreError::NoSpace);
        }
        let mut id = client.last_transaction.wrapping_add(1);
        while id == 0 || client.transactions.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        client.last_transaction = id;
        client.transactions.insert(id, begun);
        Ok(format!("{id}\0").into_bytes())
    }

    fn end(&mut self, domain: DomId, transaction: u32, commit: bool) -> Answer {
        let ended = self
            .client(domain)?
            .transactions
            .remove(&transaction)
            .ok_or(StoreError::NoEntry)?;
        if !commit {
            return Ok(DONE.to_vec());
        }
        if !ended.holds(&self.tree) {
            return Err(StoreError::Again);
        }
        self.generation += 1;
        let tree = Arc::make_mut(&mut self.tree);
        for change in &ended.changes {
            change.apply(tree, domain, self.generation)?;
        }
        for change in &ended.changes {
            self.fire(change);
        }
        Ok(DONE.to_vec())
    }

    fn target(domain: DomId, node: &str) -> Result<Target, StoreError> {
        match node {
            "@introduceDomain" | "@releaseDomain" => Ok(Target::Special(node.to_owned())),
            _ => Path::parse(domain, node).map(Target::Node),
        }
    }

    fn watch(&mut self, domain: DomId, node: &str, token: &str) -> Answer {
        let target = Self::target(domain, node)?;
        let limit = self.quota.watches;
        let client = self.client(domain)?;
        if client
            .watches
            .iter()
            .any(|watch| watch.target == target && watch.token == token)
        {
            return Err(StoreError::Exists);
        }
        if domain != DomId(0) && client.watches.len() >= limit {
            return Err(StoreError::NoSpace);
        }
        let relative = !node.starts_with('/') && matches!(target, Target::Node(_));
        let base = relative.then(|| format!("/local/domain/{}/", domain.0));
        client.watches.push(Watch {
            target,
            token: token.to_owned(),
            base,
        });
        client.outbox.push_back(event(node, token));
        Ok(DONE.to_vec())
    }

    fn unwatch(&mut self, domain: DomId, node: &str, token: &str) -> Answer {
        let target = Self::target(domain, node)?;
        let watches = &mut self.client(domain)?.watches;
        let index = watches
            .iter()
            .position(|watch| watch.target == target && watch.token == token);
        watches.remove(index.ok_or(StoreError::NoEntry)?);
        Ok(DONE.to_vec())
    }

    /// Tells of a change those that watch it and may read it.
    fn fire(&mut self, change: &Change) {
        let (path, removed) = (change.path(), matches!(change, Change::Remove(_)));
        for (&domain, client) in &mut self.clients {
            let readable = match self.tree.read(domain, path) {
                Ok(_) => true,
                Err(error) => removed && error == StoreError::NoEntry,
            };
            if readable {
                let told = client
                    .watches
                    .iter()
                    .filter_map(|watch| Some((watch.fires(path, removed)?, &watch.token)));
                let events: Vec<_> = told.map(|(path, token)| event(&path, token)).collect();
                client.tell(events, self.quota.outstanding);
            }
        }
    }

    fn fire_special(&mut self, name: &str) {
        for client in self.clients.values_mut() {
            let wanted = |watch: &&Watch| watch.target == Target::Special(name.to_owned());
            let events: Vec<_> = client
                .watches
                .iter()
                .filter(wanted)
                .map(|watch| event(name, &watch.token))
                .collect();
            client.tell(events, self.quota.outstanding);
        }
    }
}

impl Client {
    /// Adds events as long as there is room.
    fn tell(&mut self, events: Vec<Message>, limit: usize) {
        let room = limit.saturating_sub(self.outbox.len());
        self.outbox.extend(events.into_iter().take(room));
    }
}

fn event(path: &str, token: &str) -> Message {
    Message {
        kind: kind::WATCH_EVENT,
        request: 0,
        transaction: 0,
        payload: format!("{path}\0{token}\0").into_bytes(),
    }
}
