//! Emulation of a unit by a thread that polls, a sidecore (Amit, Ben-Yehuda, Tsafrir and Schuster, ATC'11): the guest's register
//! accesses are plain memory accesses and never exit.
//!
//! The first register page is memory that guest and sidecore share. The sidecore looks for what the guest wrote, writes that to the
//! unit's registers as a trapped access would have, and shows the registers' values in the page. The unit never reads its state
//! back from there: what a guest scribbles over a read-only register only the guest sees.
//!
//! A register suits this if a write can be told from its absence. How each that does not is told anyway:
//!
//! | register | why it does not | how |
//! |---|---|---|
//! | GCMD | the same command may be given again | the sidecore takes a command by putting [`GCMD_TAKEN`], which no driver writes, in its place |
//! | CCMD | the same, and it mixes command and status | ICC set is a command until the unit took it, and is cleared when it is done, as in hardware |
//! | FECTL, IECTL | IP is read-only, IM is not | a value other than the one shown is a write; writing the one shown would change nothing |
//! | FSTS, ICS | write 1 to clear: writing what is shown has an effect | while one is not 0, the page traps ([`PageControl`]) |
//! | IVA, IOTLB, FRCD | commands and write 1 to clear | they lie on the second page, which always traps ([`Config::on_second_page`](crate::vtd::Config::on_second_page)) |

mod page;
mod thread;

pub use page::{GCMD_TAKEN, PageControl, PolledUnit};
pub use thread::{Backoff, Counters, Sidecore};
