//! A device: how its two ends find each other in the store, whatever it is.

use std::fmt;
use std::sync::Arc;

use grant_table::foreign::{Foreign as _, InProcess, Mapped};
use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::spec::event::Port;
use grant_table::spec::grant::GrantRef;
use grant_table::spec::xenbus::XenbusState as State;
use grant_table::xenbus::{Action, Role, closed, react};

use super::host::{GuestChannel, Host, Server, Wake};
use super::store::{Nodes, home};
use super::{GUEST, HOST, XenError};

/// What serves a device, once it is connected.
pub(super) trait BackEnd: Send {
    /// Its kind, as paths name it.
    fn kind(&self) -> &'static str;

    /// More nodes of the front end's, before it begins.
    fn front_nodes(&self) -> Vec<(&'static str, String)>;

    /// What it offers, as nodes.
    fn offers(&self) -> Vec<(&'static str, String)>;

    /// Begins to serve the front end; none if what that wrote makes no sense.
    fn connect(&self, front: &mut Front<'_>) -> Option<Server>;
}

/// What a front end wrote, and the means to use it.
pub(super) struct Front<'a> {
    nodes: &'a mut Nodes,
    path: &'a str,
    host: &'a Arc<Host>,
    /// The number of the back end.
    number: u64,
    rings: &'a mut Rings,
}

/// The pages of a device's rings.
#[derive(Debug, Default)]
struct Rings {
    /// Maps them, once there was one.
    foreign: Option<InProcess>,
    pages: Vec<Mapped>,
}

impl Rings {
    fn unmap(&mut self) {
        let pages = std::mem::take(&mut self.pages);
        if let Some(foreign) = &mut self.foreign {
            // They were mapped.
            let _unmapped = foreign.unmap(pages);
        }
    }
}

impl Front<'_> {
    /// A number that it wrote.
    pub(super) fn number(&mut self, node: &str) -> Option<u32> {
        self.nodes.number(&format!("{}/{node}", self.path))
    }

    /// Whether it wrote that it has a feature.
    pub(super) fn has(&mut self, feature: &str) -> bool {
        self.number(feature) == Some(1)
    }

    /// A text that it wrote.
    pub(super) fn text(&mut self, node: &str) -> Option<Vec<u8>> {
        self.nodes.read(&format!("{}/{node}", self.path))
    }

    /// The page of the ring whose reference it wrote.
    pub(super) fn ring(&mut self, node: &str) -> Option<Frame> {
        let reference = GrantRef(self.number(node)?);
        let map = || self.host.foreign(self.number, true);
        let foreign = self.rings.foreign.get_or_insert_with(map);
        let page = foreign
            .map(GUEST, &[reference], Access::ReadWrite)
            .pop()?
            .ok()?;
        let frame = page.frame.clone();
        self.rings.pages.push(page);
        Some(frame)
    }

    /// The event channel whose port it wrote, and whose events go to `wake`.
    pub(super) fn channel(&mut self, node: &str, wake: &Wake) -> Option<GuestChannel> {
        let port = Port(self.number(node)?);
        GuestChannel::connect(self.host.clone(), HOST, Some(port), wake).ok()
    }

    /// The guest's pages for requests.
    pub(super) fn foreign(&self) -> InProcess {
        self.host.foreign(self.number, false)
    }
}

/// A device in the store.
pub(super) struct Device {
    /// Its number among all devices, from 0.
    number: u64,
    /// By which the guest knows it.
    handle: u32,
    back_end: Box<dyn BackEnd>,
    state: State,
    rings: Rings,
    server: Option<Server>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.back_end.kind(), self.handle)
    }
}

impl Device {
    pub(super) fn new(number: u64, handle: u32, back_end: Box<dyn BackEnd>) -> Self {
        Self {
            number,
            handle,
            back_end,
            state: State::Initialising,
            rings: Rings::default(),
            server: None,
        }
    }

    fn front(&self) -> String {
        format!(
            "{}/device/{}/{}",
            home(GUEST),
            self.back_end.kind(),
            self.handle
        )
    }

    fn back(&self) -> String {
        let kind = self.back_end.kind();
        format!("{}/backend/{kind}/{}/{}", home(HOST), GUEST.0, self.handle)
    }

    /// Writes what lets the guest find it.
    pub(super) fn announce(&self, nodes: &mut Nodes) -> Result<(), XenError> {
        let (front, back) = (self.front(), self.back());
        let initialising = State::Initialising.value();
        let kind = format!("{}/device/{}", home(GUEST), self.back_end.kind());
        nodes.write(&kind, "", GUEST)?;
        for (node, value) in [
            ("frontend", front.clone()),
            ("frontend-id", GUEST.0.to_string()),
            ("online", "1".to_owned()),
            ("state", initialising.clone()),
        ] {
            nodes.write(&format!("{back}/{node}"), &value, HOST)?;
        }
        nodes.write(&back, "", HOST)?;
        nodes.write(&front, "", GUEST)?;
        let ours = [
            ("backend", back),
            ("backend-id", HOST.0.to_string()),
            ("state", initialising),
        ];
        for (node, value) in ours.into_iter().chain(self.back_end.front_nodes()) {
            nodes.write(&format!("{front}/{node}"), &value, GUEST)?;
        }
        Ok(())
    }

    /// Does what the front end's state asks for; whether the store has changed.
    pub(super) fn follow(&mut self, host: &Arc<Host>, nodes: &mut Nodes) -> bool {
        let front = self.front();
        let peer = nodes.read(&format!("{front}/state"));
        let peer = State::parse(&peer.unwrap_or_default());
        let next = match closed(self.state) {
            Some(next) => next,
            None => match react(Role::Back, self.state, peer) {
                Some((action, next)) => self.act(action, next, &front, host, nodes),
                None => return false,
            },
        };
        self.state = next;
        let written = nodes.write(&format!("{}/state", self.back()), &next.value(), HOST);
        written.is_ok()
    }

    fn act(
        &mut self,
        action: Action,
        next: State,
        path: &str,
        host: &Arc<Host>,
        nodes: &mut Nodes,
    ) -> State {
        match action {
            Action::Publish => {
                let back = self.back();
                for (node, value) in self.back_end.offers() {
                    // Domain 0 has no quota.
                    let _written = nodes.write(&format!("{back}/{node}"), &value, HOST);
                }
                next
            }
            Action::Connect => {
                let mut front = Front {
                    nodes,
                    path,
                    host,
                    number: self.number,
                    rings: &mut self.rings,
                };
                self.server = self.back_end.connect(&mut front);
                if self.server.is_some() {
                    return next;
                }
                self.disconnect();
                State::Closing
            }
            Action::Disconnect => {
                self.disconnect();
                next
            }
        }
    }

    fn disconnect(&mut self) {
        self.server = None;
        self.rings.unmap();
    }
}
