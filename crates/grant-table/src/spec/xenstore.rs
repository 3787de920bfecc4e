//! The messages of xenstore and the page that carries them (`io/xs_wire.h`, `docs/misc/xenstore.txt`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::argument;

/// The longest payload of a message.
pub const PAYLOAD: usize = 4096;
/// The longest path from the root.
pub const PATH: usize = 3072;
/// The longest path from a domain's own node.
pub const RELATIVE_PATH: usize = 2048;

/// Kinds of messages (`xsd_sockmsg_type`).
pub mod kind {
    /// The names of a node's children.
    pub const DIRECTORY: u32 = 1;
    /// A node's value.
    pub const READ: u32 = 2;
    /// A node's permissions.
    pub const GET_PERMS: u32 = 3;
    /// Tell of changes at or below a node.
    pub const WATCH: u32 = 4;
    /// Do not any more.
    pub const UNWATCH: u32 = 5;
    /// Begin a transaction.
    pub const TRANSACTION_START: u32 = 6;
    /// End one: `T` applies it, `F` drops it.
    pub const TRANSACTION_END: u32 = 7;
    /// A domain has come.
    pub const INTRODUCE: u32 = 8;
    /// A domain goes.
    pub const RELEASE: u32 = 9;
    /// The node of a domain.
    pub const GET_DOMAIN_PATH: u32 = 10;
    /// Set a node's value.
    pub const WRITE: u32 = 11;
    /// Make a node.
    pub const MKDIR: u32 = 12;
    /// Remove a node with all below.
    pub const RM: u32 = 13;
    /// Set a node's permissions.
    pub const SET_PERMS: u32 = 14;
    /// A watch has fired.
    pub const WATCH_EVENT: u32 = 15;
    /// The request failed: the payload names the error.
    pub const ERROR: u32 = 16;
    /// Whether a domain has come.
    pub const IS_DOMAIN_INTRODUCED: u32 = 17;
    /// Part of the names of many children.
    pub const DIRECTORY_PART: u32 = 20;
    /// Forget all watches and transactions.
    pub const RESET_WATCHES: u32 = 21;
}

/// Where things lie in the page (`xenstore_domain_interface`), in bytes.
pub mod page {
    /// Bytes of each of the two rings.
    pub const RING: u32 = 1024;
    /// Requests.
    pub const REQUESTS: usize = 0;
    /// Responses.
    pub const RESPONSES: usize = 1024;
    /// Requests that are consumed, 32 bits, as are the others.
    pub const REQUEST_CONSUMER: usize = 2048;
    /// Requests that are produced.
    pub const REQUEST_PRODUCER: usize = 2052;
    /// Responses that are consumed.
    pub const RESPONSE_CONSUMER: usize = 2056;
    /// Responses that are produced.
    pub const RESPONSE_PRODUCER: usize = 2060;
}

argument!(
    /// What a message begins with (`xsd_sockmsg`).
    Header {
        /// [`kind`].
        kind: u32,
        /// Comes back in the response.
        request: u32,
        /// The transaction, or 0.
        transaction: u32,
        /// Bytes that follow.
        length: u32,
    }
);
