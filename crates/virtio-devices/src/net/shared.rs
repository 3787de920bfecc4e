use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde::{Deserialize, Serialize};

use super::backend::{NetBackend, NetPort};
use super::command::Command;
use super::filter::RxFilter;
use super::mac::MacAddress;
use super::spec::Features;
use super::statistics::Counters;

/// What a driver has set up beyond the queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The negotiated features, once a queue was started.
    pub features: Option<Features>,
    /// Which frames it receives, and its address.
    pub filter: RxFilter,
    /// Queue pairs in use.
    pub queue_pairs: u16,
    /// Receive offloads in use.
    pub guest_offloads: Features,
}

impl NetState {
    pub(super) fn new(mac: MacAddress) -> Self {
        Self {
            features: None,
            filter: RxFilter::new(mac),
            queue_pairs: 1,
            guest_offloads: Features::empty(),
        }
    }
}

/// What the queues of a device share.
pub(super) struct Shared<B> {
    pub(super) backend: B,
    settings: RwLock<NetState>,
    pub(super) counters: Counters,
}

impl<B: NetBackend> Shared<B> {
    pub(super) fn new(backend: B, mac: MacAddress) -> Self {
        Self {
            backend,
            settings: RwLock::new(NetState::new(mac)),
            counters: Counters::default(),
        }
    }

    pub(super) fn settings(&self) -> RwLockReadGuard<'_, NetState> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settings_mut(&self) -> RwLockWriteGuard<'_, NetState> {
        self.settings
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out a control command and tells whether that worked.
    pub(super) fn execute(&self, command: Command<'_>) -> bool {
        let mut settings = self.settings_mut();
        let filter = &mut settings.filter;
        match command {
            Command::RxMode(mode, on) => {
                filter.mode.set(mode, on);
                true
            }
            Command::MacTables { unicast, multicast } => {
                filter.set_tables(unicast, multicast);
                true
            }
            Command::MacAddress(mac) => {
                filter.mac = mac;
                true
            }
            Command::Vlan(vlan, pass) => filter.set_vlan(vlan, pass),
            Command::QueuePairs(pairs) => {
                let possible = (1..=self.backend.ports().len()).contains(&usize::from(pairs));
                let done = possible && self.enable_ports(pairs).is_ok();
                if done {
                    settings.queue_pairs = pairs;
                }
                done
            }
            Command::GuestOffloads(offloads) => {
                let done = self.backend.set_guest_offloads(offloads).is_ok();
                if done {
                    settings.guest_offloads = offloads;
                }
                done
            }
        }
    }

    /// Has the host use the first `pairs` ports.
    fn enable_ports(&self, pairs: u16) -> io::Result<()> {
        for (pair, port) in (0..).zip(self.backend.ports()) {
            port.set_enabled(pair < pairs)?;
        }
        Ok(())
    }

    /// Makes the back-end as `settings` says.
    pub(super) fn apply(&self, settings: &NetState) -> io::Result<()> {
        self.enable_ports(settings.queue_pairs)?;
        self.backend.set_guest_offloads(settings.guest_offloads)
    }

    /// Takes up what was negotiated, when the first queue starts.
    pub(super) fn negotiate(&self, features: Features) -> io::Result<()> {
        let mut settings = self.settings_mut();
        if settings.features.is_none() {
            settings.guest_offloads = features & Features::GUEST_OFFLOADS;
            self.backend.set_guest_offloads(settings.guest_offloads)?;
            settings.filter.negotiate(features);
            settings.features = Some(features);
        }
        Ok(())
    }
}
