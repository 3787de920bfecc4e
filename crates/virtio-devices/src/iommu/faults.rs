use std::sync::Arc;

use iommu_emul::dma::{Access, PhysicalMemory};
use iommu_emul::domain::{Fault, FaultKind};
use vring::Queue;
use zerocopy::IntoBytes;

use super::device::Shared;
use super::spec::{FaultFlags, FaultReport};
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Faults reported before other queues have their turn.
const BURST: usize = 64;

/// The event queue (§5.13.6.7): tells the driver what was blocked.
pub(super) struct Faults<M: PhysicalMemory> {
    pub shared: Arc<Shared<M>>,
}

fn report(fault: Fault) -> FaultReport {
    let access = match fault.access {
        Access::Read => FaultFlags::READ,
        Access::Write => FaultFlags::WRITE,
    };
    FaultReport {
        reason: match fault.kind {
            FaultKind::Domain => FaultReport::DOMAIN,
            FaultKind::Mapping => FaultReport::MAPPING,
        },
        reserved: [0; 3],
        flags: (access | FaultFlags::ADDRESS).bits().into(),
        endpoint: u32::from(fault.endpoint.0).into(),
        reserved1: 0.into(),
        address: fault.address.into(),
    }
}

impl<V: DmaView, M: PhysicalMemory> Service<V> for Faults<M> {
    fn serve(
        &mut self,
        queue: &mut Queue<V>,
        memory: &V::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        for _ in 0..BURST {
            if !self.shared.has_faults() {
                return Ok(Wait::Nudge);
            }
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let mut writer = chain.writer();
            if let Some(fault) = self.shared.take_fault() {
                // A report that does not fit is lost: the driver offered a buffer that is too small.
                let _ = writer.write_all(report(fault).as_bytes());
            }
            let written = writer.written();
            queue.push(chain, written)?;
        }
        Ok(Wait::Turn)
    }
}
