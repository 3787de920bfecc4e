use std::ops::Range;
use std::sync::Arc;

use super::RequesterId;

/// A function as the bus it sits on sees it: what answers configuration requests.
///
/// [`ConfigSpace`](super::ConfigSpace) is the usual one; a bridge adds a bus behind it, and a passed-through device forwards.
pub trait PciFunction: Send + Sync {
    /// Reads `data.len()` bytes at `offset` of the 4 KiB configuration space. Bytes that do not exist read as all ones.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes `data` at `offset`.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// Tells the function the identity that its requests carry, when it is placed on a bus and whenever the guest renumbers
    /// that bus.
    ///
    /// Called with the bus locked: it must not access the configuration space of any function.
    fn set_requester(&self, requester: RequesterId);

    /// Tells the function whether the bridges above it forward its requests upstream, when it is placed on a bus and whenever the guest
    /// changes a bridge (PCIe §7.5.1.1.3, Bus Master Enable of a port).
    ///
    /// Called with the bus locked, as [`set_requester`](Self::set_requester).
    fn set_upstream(&self, forwarded: bool) {
        let _ = forwarded;
    }

    /// Conventional reset: registers take their initial values and nothing is decoded any more (PCIe §6.6.1).
    fn reset(&self);

    /// The function behind this one that answers to `id`, if this one is a bridge or a physical function with virtual ones. Asked with
    /// the bus locked.
    fn behind(&self, id: RequesterId) -> Option<Arc<dyn PciFunction>> {
        let _ = id;
        None
    }
}

/// The life in a capability: takes part in accesses to its registers and in the events of its function.
///
/// Offsets are from the start of the capability, header included, as the specifications give them. All but
/// `set_requester` run with the configuration space locked, so they must not access it again.
pub trait CapabilityHandler: Send + Sync {
    /// Before the guest reads `range`: brings `registers`, the whole capability, up to date.
    fn refresh(&self, registers: &mut [u8], range: Range<usize>) {
        let _ = (registers, range);
    }

    /// Before what the guest writes takes effect: `after` is the whole capability as it would be, read-only bits unchanged. What may not
    /// be, the handler changes back to what it is in `before`. Also asked of a snapshot, with the capability after a reset
    /// as `before`: it is refused if the handler changes anything.
    fn constrain(&self, before: &[u8], after: &mut [u8]) {
        let _ = (before, after);
    }

    /// After a write to `range` took effect in `registers`, the whole capability. Also after a reset and after a restored
    /// snapshot, with the whole range.
    fn written(&self, registers: &[u8], range: Range<usize>);

    /// Whether the function may send memory requests: reach memory, signal messages (Bus Master Enable, its own and of the bridges above,
    /// PCIe §7.5.1.1.3). Not, until told otherwise; may be told the same again.
    fn set_bus_master(&self, enabled: bool) {
        let _ = enabled;
    }

    /// The function's requests carry this identity from now on.
    fn set_requester(&self, requester: RequesterId) {
        let _ = requester;
    }

    /// The function is being reset; `written` follows.
    fn reset(&self) {}
}
