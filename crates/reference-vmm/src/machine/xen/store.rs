//! Xenstore: the page by which the guest talks to it, what is written there, and the thread that serves it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use grant_table::frame::Frame;
use grant_table::spec::DomId;
use grant_table::spec::xenstore::kind;
use grant_table::xenstore::{Connection, Message, Quota, XenStore};

use super::device::Device;
use super::host::{GuestChannel, Host, Server, Wake};
use super::{GUEST, HOST, XenError};

/// The store of a machine, and the devices in it.
pub(super) struct Store {
    page: Frame,
    host: Arc<Host>,
    /// Until the guest has event channels.
    devices: Mutex<Option<(Nodes, Vec<Device>)>>,
    server: Mutex<Option<Server>>,
    /// The guest's port; 0 until there is one.
    port: AtomicU32,
}

impl Store {
    /// A store that the guest reaches by `page`, once it is connected.
    pub(super) fn new(
        page: Frame,
        host: Arc<Host>,
        devices: Vec<Device>,
    ) -> Result<Self, XenError> {
        let mut nodes = Nodes(XenStore::new(Quota::default()));
        nodes.populate()?;
        for device in &devices {
            device.announce(&mut nodes)?;
        }
        Ok(Self {
            page,
            host,
            devices: Mutex::new(Some((nodes, devices))),
            server: Mutex::default(),
            port: AtomicU32::new(0),
        })
    }

    /// The guest's port.
    pub(super) fn guest_port(&self) -> u32 {
        self.port.load(Ordering::Acquire)
    }

    /// Gives the guest a port, now that it has event channels, and begins to serve it.
    pub(super) fn connect(&self) -> io::Result<()> {
        let devices = self
            .devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some((mut nodes, mut devices)) = devices else {
            return Ok(());
        };
        let wake = Wake::new()?;
        let channel = GuestChannel::connect(self.host.clone(), HOST, None, &wake)?;
        let port = channel.remote().0;
        let mut connection = Connection::new(GUEST, self.page.clone());
        let host = self.host.clone();
        let mut serve = move |wake: &Wake| {
            while !wake.is_stopped() {
                let served = match connection.serve(&mut nodes.0) {
                    Ok(served) => served,
                    // A guest that breaks its page has no store any more.
                    Err(_) => return false,
                };
                if served {
                    channel.notify();
                }
                // Changes of the guest's come by this connection, so this is the time to look, and each may make us answer.
                let changed = devices
                    .iter_mut()
                    .fold(false, |any, device| device.follow(&host, &mut nodes) | any);
                // A guest may send an event only when it finds all taken that it wrote before: after taking some, look again.
                if !served && !changed {
                    break;
                }
            }
            true
        };
        let server = Server::spawn("xenstore".to_owned(), wake, move |wake| {
            while wake.wait() && serve(wake) {}
        })?;
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        self.port.store(port, Ordering::Release);
        Ok(())
    }

    /// Ends the thread, and with it those of the devices.
    pub(super) fn stop(&self) {
        let mut server = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        *server = None;
    }
}

/// The nodes of the store, as domain 0 reaches them.
pub(super) struct Nodes(XenStore);

impl Nodes {
    /// Writes what every guest finds.
    fn populate(&mut self) -> Result<(), XenError> {
        self.0.introduce(GUEST);
        let home = home(GUEST);
        let nodes = [
            ("", String::new()),
            ("/domid", GUEST.0.to_string()),
            ("/name", "guest".to_owned()),
            ("/device", String::new()),
            ("/control", String::new()),
            ("/control/shutdown", String::new()),
            ("/data", String::new()),
        ];
        for (node, value) in nodes {
            self.write(&format!("{home}{node}"), &value, GUEST)?;
        }
        Ok(())
    }

    /// Writes a node; it is then `owner`'s, and the other of the two domains may read it.
    pub(super) fn write(&mut self, path: &str, value: &str, owner: DomId) -> Result<(), XenError> {
        let (owner, other) = match owner {
            HOST => (HOST, GUEST),
            owner => (owner, HOST),
        };
        let permissions = format!("{path}\0n{}\0r{}\0", owner.0, other.0);
        self.request(kind::WRITE, format!("{path}\0{value}"))
            .and_then(|_| self.request(kind::SET_PERMS, permissions))
            .map(|_| ())
            .ok_or_else(|| XenError::Node(path.to_owned()))
    }

    /// A node's value.
    pub(super) fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        self.request(kind::READ, format!("{path}\0"))
    }

    /// A node's value as a number.
    pub(super) fn number(&mut self, path: &str) -> Option<u32> {
        let value = self.read(path)?;
        std::str::from_utf8(&value).ok()?.parse().ok()
    }

    fn request(&mut self, kind: u32, payload: String) -> Option<Vec<u8>> {
        let message = Message {
            kind,
            request: 0,
            transaction: 0,
            payload: payload.into_bytes(),
        };
        self.0.request(HOST, &message);
        // Domain 0 watches nothing, so the answer is all there is.
        let answer = self.0.next(HOST)?;
        (answer.kind == kind).then_some(answer.payload)
    }
}

/// The node of a domain.
pub(super) fn home(domain: DomId) -> String {
    format!("/local/domain/{}", domain.0)
}
