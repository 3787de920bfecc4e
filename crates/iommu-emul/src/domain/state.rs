use pio_mmio_bus::pci::RequesterId;
use serde::{Deserialize, Serialize};

use super::{
    domains::{Domain, DomainError, Domains, Inner},
    mappings::Mapping,
};
use crate::dma::PhysicalMemory;

/// What a guest has set up of a paravirtual IOMMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainsState {
    /// Endpoints that are in no domain reach all of memory.
    pub bypass: bool,
    /// The domains, by identifier.
    pub domains: Vec<DomainState>,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainState {
    /// Its identifier.
    pub id: u32,
    /// It translates every address to itself.
    pub bypass: bool,
    /// Requester IDs of the endpoints in it, ascending.
    pub endpoints: Vec<u16>,
    /// Its mappings, ascending.
    pub mappings: Vec<Mapping>,
}

/// Why a [`DomainsState`] was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainStateError {
    /// There cannot be such a domain, or there are two.
    #[error("saved state: impossible domain {0}")]
    Domain(u32),
    /// An endpoint is in two domains.
    #[error("saved state: endpoint {0:#x} is in two domains")]
    Endpoint(u16),
    /// There cannot be such a mapping.
    #[error("saved state of domain {domain}: {source}")]
    Mapping {
        /// The domain.
        domain: u32,
        /// The rule that was broken.
        source: DomainError,
    },
}

impl<M: PhysicalMemory> Domains<M> {
    /// The state of all domains. What waits for guards counts as done: there are none after a restore.
    pub fn save(&self) -> DomainsState {
        let inner = self.read();
        let domains = inner.domains.iter().map(|(id, domain)| {
            let Domain {
                bypass,
                endpoints,
                mappings,
            } = domain;
            DomainState {
                id: *id,
                bypass: *bypass,
                endpoints: endpoints.iter().map(|endpoint| endpoint.0).collect(),
                mappings: mappings.iter().copied().collect(),
            }
        });
        DomainsState {
            bypass: inner.bypass,
            domains: domains.collect(),
        }
    }

    /// Takes over a saved state. Its endpoints may come to exist later.
    ///
    /// # Errors
    ///
    /// A state that no driver can bring about; nothing has changed then.
    pub fn restore(&self, state: DomainsState) -> Result<(), DomainStateError> {
        let DomainsState { bypass, domains } = state;
        let mut fresh = Inner {
            bypass,
            ..Inner::default()
        };
        for state in domains {
            self.restore_domain(&mut fresh, state)?;
        }
        self.reset();
        let mut inner = self.write();
        inner.bypass = fresh.bypass;
        inner.domains = fresh.domains;
        inner.attached = fresh.attached;
        inner.mapped = fresh.mapped;
        Ok(())
    }

    fn restore_domain(
        &self,
        fresh: &mut Inner,
        state: DomainState,
    ) -> Result<(), DomainStateError> {
        let DomainState {
            id,
            bypass,
            endpoints,
            mappings,
        } = state;
        if !self.config().domains.contains(&id)
            || fresh.domains.contains_key(&id)
            || endpoints.is_empty()
            || bypass && !mappings.is_empty()
        {
            return Err(DomainStateError::Domain(id));
        }
        let mut domain = Domain {
            bypass,
            ..Domain::default()
        };
        for endpoint in endpoints {
            let requester = RequesterId(endpoint);
            if fresh.attached.insert(requester, id).is_some() {
                return Err(DomainStateError::Endpoint(endpoint));
            }
            domain.endpoints.insert(requester);
        }
        for mapping in mappings {
            let impossible = |source| DomainStateError::Mapping { domain: id, source };
            self.check(&mapping).map_err(impossible)?;
            let range = mapping.first..=mapping.last;
            if domain.mappings.overlap(&range) {
                return Err(impossible(DomainError::Mapped(range)));
            }
            if fresh.mapped >= self.config().max_mappings {
                return Err(impossible(DomainError::Full(self.config().max_mappings)));
            }
            domain.mappings.insert(mapping);
            fresh.mapped += 1;
        }
        fresh.domains.insert(id, domain);
        Ok(())
    }
}
