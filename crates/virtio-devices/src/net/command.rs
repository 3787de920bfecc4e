//! Commands of the control queue (§5.1.6.5), parsed apart from what carries them out.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U64};

use super::filter::RxMode;
use super::mac::MacAddress;
use super::spec::{self, ControlHeader, Features, MacTableLength};

/// The longest command that is looked at, in bytes: room for two tables with 512 addresses each.
pub const MAX_COMMAND: usize = 2 + 2 * (4 + 512 * 6);

/// A command of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'a> {
    /// Switches a receive mode.
    RxMode(RxMode, bool),
    /// Sets the tables of the address filter.
    MacTables {
        /// Unicast addresses.
        unicast: &'a [[u8; 6]],
        /// Multicast addresses.
        multicast: &'a [[u8; 6]],
    },
    /// Sets the device's own address.
    MacAddress(MacAddress),
    /// Receives frames of a VLAN, or no more.
    Vlan(u16, bool),
    /// Sets how many queue pairs are in use.
    QueuePairs(u16),
    /// Sets the receive offloads.
    GuestOffloads(Features),
}

/// A command that is not carried out: malformed, unknown, or of a feature that was not negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "control command {class}/{command} with {length} bytes of data is malformed, unknown or not negotiated"
)]
pub struct BadCommand {
    /// Class of the command.
    pub class: u8,
    /// Command of the class.
    pub command: u8,
    /// Bytes after class and command.
    pub length: usize,
}

impl<'a> Command<'a> {
    /// Parses everything the driver wrote before `ack`.
    ///
    /// # Errors
    /// Anything but exactly one command whose feature is among `negotiated`.
    pub fn parse(bytes: &'a [u8], negotiated: Features) -> Result<Self, BadCommand> {
        let Ok((ControlHeader { class, command }, data)) = ControlHeader::read_from_prefix(bytes)
        else {
            return Err(BadCommand {
                class: 0,
                command: 0,
                length: 0,
            });
        };
        let (needs, parsed) = match (class, command) {
            (spec::CTRL_RX, spec::CTRL_RX_PROMISC) => {
                (Features::CTRL_RX, rx_mode(RxMode::PROMISC, data))
            }
            (spec::CTRL_RX, spec::CTRL_RX_ALLMULTI) => {
                (Features::CTRL_RX, rx_mode(RxMode::ALLMULTI, data))
            }
            (spec::CTRL_RX, spec::CTRL_RX_ALLUNI) => {
                (Features::CTRL_RX_EXTRA, rx_mode(RxMode::ALLUNI, data))
            }
            (spec::CTRL_RX, spec::CTRL_RX_NOMULTI) => {
                (Features::CTRL_RX_EXTRA, rx_mode(RxMode::NOMULTI, data))
            }
            (spec::CTRL_RX, spec::CTRL_RX_NOUNI) => {
                (Features::CTRL_RX_EXTRA, rx_mode(RxMode::NOUNI, data))
            }
            (spec::CTRL_RX, spec::CTRL_RX_NOBCAST) => {
                (Features::CTRL_RX_EXTRA, rx_mode(RxMode::NOBCAST, data))
            }
            (spec::CTRL_MAC, spec::CTRL_MAC_TABLE_SET) => (Features::CTRL_RX, mac_tables(data)),
            (spec::CTRL_MAC, spec::CTRL_MAC_ADDR_SET) => (
                Features::CTRL_MAC_ADDR,
                <[u8; 6]>::read_from_bytes(data)
                    .ok()
                    .map(|mac| Self::MacAddress(MacAddress(mac))),
            ),
            (spec::CTRL_VLAN, spec::CTRL_VLAN_ADD) => (Features::CTRL_VLAN, vlan(data, true)),
            (spec::CTRL_VLAN, spec::CTRL_VLAN_DEL) => (Features::CTRL_VLAN, vlan(data, false)),
            (spec::CTRL_MQ, spec::CTRL_MQ_VQ_PAIRS_SET) => (
                Features::MQ,
                U16::read_from_bytes(data)
                    .ok()
                    .map(|pairs| Self::QueuePairs(pairs.get())),
            ),
            (spec::CTRL_GUEST_OFFLOADS, spec::CTRL_GUEST_OFFLOADS_SET) => (
                Features::CTRL_GUEST_OFFLOADS,
                U64::read_from_bytes(data)
                    .ok()
                    .and_then(|bits| Features::from_bits(bits.get()))
                    .filter(|offloads| (negotiated & Features::GUEST_OFFLOADS).contains(*offloads))
                    .map(Self::GuestOffloads),
            ),
            _ => (Features::empty(), None),
        };
        parsed
            .filter(|_| negotiated.contains(needs))
            .ok_or(BadCommand {
                class,
                command,
                length: data.len(),
            })
    }
}

fn rx_mode<'a>(mode: RxMode, data: &[u8]) -> Option<Command<'a>> {
    match data {
        [0] => Some(Command::RxMode(mode, false)),
        [1] => Some(Command::RxMode(mode, true)),
        _ => None,
    }
}

fn vlan<'a>(data: &[u8], pass: bool) -> Option<Command<'a>> {
    U16::read_from_bytes(data)
        .ok()
        .map(|vlan| Command::Vlan(vlan.get(), pass))
}

fn mac_tables(data: &[u8]) -> Option<Command<'_>> {
    let (unicast, data) = mac_table(data)?;
    let (multicast, data) = mac_table(data)?;
    data.is_empty()
        .then_some(Command::MacTables { unicast, multicast })
}

/// Splits a table off. Its length is compared with the bytes there are, so that a length alone costs nothing.
fn mac_table(data: &[u8]) -> Option<(&[[u8; 6]], &[u8])> {
    let (length, data) = MacTableLength::read_from_prefix(data).ok()?;
    let length = usize::try_from(length.get()).ok()?;
    <[[u8; 6]]>::ref_from_prefix_with_elems(data, length).ok()
}
