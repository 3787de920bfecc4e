use std::collections::BTreeSet;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use super::mac::MacAddress;
use super::spec::{ETHERNET_HEADER, Features};

/// Addresses each table holds. A driver with more gets all frames of the kind (§5.1.6.5.2 allows that).
pub const TABLE_SIZE: usize = 64;

/// VLAN identifiers are below this (IEEE 802.1Q, 12 bits).
const VLANS: u16 = 4096;

/// Type of a frame with a VLAN tag (IEEE 802.1Q).
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];

bitflags! {
    /// Which frames pass whatever the tables say (§5.1.6.5.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
    pub struct RxMode: u8 {
        /// All.
        const PROMISC = 1 << 0;
        /// All multicast.
        const ALLMULTI = 1 << 1;
        /// All unicast.
        const ALLUNI = 1 << 2;
        /// No multicast, broadcast apart.
        const NOMULTI = 1 << 3;
        /// No unicast.
        const NOUNI = 1 << 4;
        /// No broadcast.
        const NOBCAST = 1 << 5;
    }
}

/// Which received frames the driver wants (§5.1.6.5.1 to §5.1.6.5.3). Also its own saved state: every value is a filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RxFilter {
    /// The modes.
    pub mode: RxMode,
    /// The device's own address.
    pub mac: MacAddress,
    /// Further unicast addresses; `None` is too many to hold, so all pass.
    pub unicast: Option<BTreeSet<MacAddress>>,
    /// Multicast addresses; `None` is too many to hold, so all pass.
    pub multicast: Option<BTreeSet<MacAddress>>,
    /// VLANs whose frames pass; `None` is no VLAN filter.
    pub vlans: Option<BTreeSet<u16>>,
}

impl RxFilter {
    /// The filter after reset. It lets everything pass until the driver sets a mode, for drivers that never do.
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mode: RxMode::PROMISC,
            mac,
            unicast: Some(BTreeSet::new()),
            multicast: Some(BTreeSet::new()),
            vlans: None,
        }
    }

    /// Takes up the negotiated features: with a VLAN filter, no VLAN passes at first (§5.1.6.5.3).
    pub fn negotiate(&mut self, features: Features) {
        self.vlans = features.contains(Features::CTRL_VLAN).then(BTreeSet::new);
    }

    /// Replaces both tables.
    pub fn set_tables(&mut self, unicast: &[[u8; 6]], multicast: &[[u8; 6]]) {
        self.unicast = table(unicast);
        self.multicast = table(multicast);
    }

    /// Whether a driver that negotiated `features` can set this filter.
    pub(super) fn fits(&self, features: Features) -> bool {
        let tables = [&self.unicast, &self.multicast];
        tables
            .into_iter()
            .flatten()
            .all(|table| table.len() <= TABLE_SIZE)
            && self.vlans.is_some() == features.contains(Features::CTRL_VLAN)
            && self.vlans.iter().flatten().all(|vlan| *vlan < VLANS)
    }

    /// Lets frames of a VLAN pass, or no more. Returns whether that is a VLAN and there is a filter.
    pub fn set_vlan(&mut self, vlan: u16, pass: bool) -> bool {
        match &mut self.vlans {
            Some(vlans) if vlan < VLANS => {
                if pass {
                    vlans.insert(vlan);
                } else {
                    vlans.remove(&vlan);
                }
                true
            }
            _ => false,
        }
    }

    /// Whether the driver wants this Ethernet frame. A frame too short to have a header is not wanted.
    pub fn accepts(&self, frame: &[u8]) -> bool {
        let Some((destination, rest)) = frame
            .split_first_chunk()
            .filter(|_| frame.len() >= ETHERNET_HEADER)
        else {
            return false;
        };
        if self.mode.contains(RxMode::PROMISC) {
            return true;
        }
        self.accepts_vlan(rest) && self.accepts_destination(MacAddress(*destination))
    }

    /// `rest` is the frame after its destination.
    fn accepts_vlan(&self, rest: &[u8]) -> bool {
        let (Some(vlans), Some(([_, _, _, _, _, _, t0, t1, c0, c1], _))) =
            (&self.vlans, rest.split_first_chunk())
        else {
            return true;
        };
        [*t0, *t1] != ETHERTYPE_VLAN || vlans.contains(&(u16::from_be_bytes([*c0, *c1]) % VLANS))
    }

    fn accepts_destination(&self, to: MacAddress) -> bool {
        let mode = |flag| self.mode.contains(flag);
        let listed = |table: &Option<BTreeSet<MacAddress>>| {
            table.as_ref().is_none_or(|table| table.contains(&to))
        };
        if to == MacAddress::BROADCAST {
            !mode(RxMode::NOBCAST)
        } else if to.is_multicast() {
            !mode(RxMode::NOMULTI) && (mode(RxMode::ALLMULTI) || listed(&self.multicast))
        } else {
            !mode(RxMode::NOUNI)
                && (mode(RxMode::ALLUNI) || to == self.mac || listed(&self.unicast))
        }
    }
}

fn table(addresses: &[[u8; 6]]) -> Option<BTreeSet<MacAddress>> {
    let table: BTreeSet<_> = addresses.iter().copied().map(MacAddress).collect();
    (table.len() <= TABLE_SIZE).then_some(table)
}
