//! Domains whose mappings a driver asks for one by one, as with virtio-iommu (Virtio 1.3, §5.13), rather than writing tables.
//!
//! An endpoint is a device, known by its requester ID; it exists while there is a view of it. Attached to a domain, it reaches what
//! is mapped there; not attached, it reaches everything or nothing. What a request takes away from devices may still be in use by
//! their I/O: the request is complete when [`Domains::settled`] says so, and nothing waits meanwhile.

mod domains;
mod mappings;
mod state;

pub use domains::{DomainConfig, DomainError, DomainEvents, Domains, Fault, FaultKind};
pub use mappings::Mapping;
pub use state::{DomainState, DomainStateError, DomainsState};
