//! Xenstore: the tree in which domains and tools tell each other about devices, served in process.

mod error;
mod page;
mod store;
mod transaction;
mod tree;
mod watch;

pub use error::StoreError;
pub use page::{Connection, PageError, StoreClient};
pub use store::{Message, Quota, XenStore};
pub use tree::{Mode, Permission};
