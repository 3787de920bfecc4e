//! Event channels: what KVM has to know of them, and how vCPUs are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use grant_table::event::{Channel, Upcall};
use grant_table::spec::event::{BindInterdomain, BindIpi, BindVirq, OnePort, Port, VCPU_VIRQS, op};
use grant_table::spec::{DomId, Errno};
use kvm_bindings::kvm_msi;

use super::hypercall::From;
use super::{GUEST, PEER, Xen};
use crate::kvm::{Vm, XenSend, XenVcpu, ram_frame};
use crate::machine::layout::LOCAL_APIC;

/// The virtual interrupt of a vCPU's timer (`VIRQ_TIMER`).
const TIMER: u32 = VCPU_VIRQS[0];

/// Raises the vectors that vCPUs have for events, as KVM does for those that it delivers itself.
#[derive(Clone, Debug)]
pub(super) struct Upcalls {
    vm: Vm,
    /// 0 for a vCPU that has chosen none.
    vectors: Arc<[AtomicU8]>,
}

impl Upcalls {
    pub(super) fn new(vm: Vm, vcpus: u8) -> Self {
        let vectors = (0..vcpus).map(|_| AtomicU8::new(0)).collect();
        Self { vm, vectors }
    }

    pub(super) fn set_vector(&self, vcpu: usize, vector: u8) {
        if let Some(chosen) = self.vectors.get(vcpu) {
            chosen.store(vector, Ordering::Release);
        }
    }
}

impl Upcall for Upcalls {
    fn raise(&self, vcpu: usize) {
        let vector = self
            .vectors
            .get(vcpu)
            .map(|vector| vector.load(Ordering::Acquire));
        let (Some(vector @ 1..), Ok(vcpu)) = (vector, u32::try_from(vcpu)) else {
            return;
        };
        let message = kvm_msi {
            address_lo: LOCAL_APIC | vcpu << 12,
            data: vector.into(),
            ..Default::default()
        };
        // A local APIC that does not take it is the guest's own doing.
        let _taken = self.vm.signal_msi(message);
    }
}

/// The upcalls of domain 0, whose events come as eventfds.
pub(super) struct Dropped;

impl Upcall for Dropped {
    fn raise(&self, _vcpu: usize) {}
}

impl Xen {
    /// `HYPERVISOR_event_channel_op(command, address)`.
    pub(super) fn event_channel_op(
        &self,
        from: From<'_>,
        command: u32,
        address: u64,
    ) -> Result<i64, Errno> {
        let caller = self.events.caller(GUEST).ok_or(Errno::Inval)?;
        let vcpu = |number| usize::try_from(number).map_err(|_| Errno::NoEnt);
        match command {
            op::BIND_IPI => {
                let mut bind: BindIpi = from.guest.get(address)?;
                bind.port = caller.bind_ipi(vcpu(bind.vcpu)?)?;
                from.guest.put(address, &bind)?;
                self.tell(bind.port, Some(XenSend::Ipi(bind.vcpu)))?;
            }
            op::BIND_INTERDOMAIN => {
                let mut bind: BindInterdomain = from.guest.get(address)?;
                bind.port = match (&self.peer, bind.remote) {
                    (Some(peer), PEER) => peer.bind(&caller, bind.remote_port)?,
                    (_, remote) => caller.bind_interdomain(remote, bind.remote_port)?,
                };
                from.guest.put(address, &bind)?;
            }
            op::BIND_VIRQ => {
                let mut bind: BindVirq = from.guest.get(address)?;
                let vcpu = vcpu(bind.vcpu)?;
                bind.port = caller.bind_virq(bind.virq, vcpu)?;
                from.guest.put(address, &bind)?;
                if bind.virq == TIMER {
                    self.set(from, vcpu, XenVcpu::Timer(bind.port.0))?;
                }
            }
            op::CLOSE => {
                let close: OnePort = from.guest.get(address)?;
                let (channel, vcpu) = caller.status(DomId::SELF, close.port)?;
                if channel == Channel::Virq(TIMER) {
                    self.set(from, vcpu, XenVcpu::Timer(0))?;
                }
                caller.close(close.port)?;
                if let Some(peer) = &self.peer {
                    peer.closed(close.port);
                }
                // KVM knows of some ports only.
                let _known = self.tell(close.port, None);
            }
            // KVM delivers in the two-level ABI only; a guest that asks for another goes on with that.
            op::INIT_CONTROL | op::EXPAND_ARRAY | op::SET_PRIORITY => return Err(Errno::NoSys),
            // Would have to be told to KVM port by port.
            op::RESET | op::RESET_CONT => return Err(Errno::NoSys),
            _ => {
                let frame = |number| ram_frame(&self.memory, number);
                return Ok(caller.event_channel_op(from.guest, frame, command, address));
            }
        }
        Ok(0)
    }

    /// Tells KVM what happens when the guest sends to a port.
    fn tell(&self, Port(port): Port, send: Option<XenSend<'_>>) -> Result<(), Errno> {
        let told = self.vm.set_xen_send(port, send);
        told.map_err(|_| Errno::Inval)
    }
}
