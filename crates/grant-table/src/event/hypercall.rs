//! The hypercall: arguments in the guest's memory.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Channel, EventCaller};
use crate::frame::Frame;
use crate::hypervisor::Arguments;
use crate::spec::Errno;
use crate::spec::event::{
    AllocUnbound, BindInterdomain, BindIpi, BindPirq, BindVcpu, BindVirq, ExpandArray, GetStatus,
    InitControl, OnePort, Port, Reset, SetPriority, op,
};

fn vcpu(number: u32) -> Result<usize, Errno> {
    usize::try_from(number).map_err(|_| Errno::NoEnt)
}

impl EventCaller<'_> {
    /// `HYPERVISOR_event_channel_op(command, address)`: 0, or a negative [`Errno`]. `frame` finds the domain's own frames by number.
    pub fn event_channel_op(
        &self,
        guest: &dyn Arguments,
        frame: impl Fn(u64) -> Option<Frame>,
        command: u32,
        address: u64,
    ) -> i64 {
        match self.dispatch(guest, frame, command, address) {
            Ok(()) => 0,
            Err(errno) => errno.result(),
        }
    }

    fn dispatch(
        &self,
        guest: &dyn Arguments,
        frame: impl Fn(u64) -> Option<Frame>,
        command: u32,
        address: u64,
    ) -> Result<(), Errno> {
        let frame = |number| frame(number).ok_or(Errno::Inval);
        match command {
            op::BIND_INTERDOMAIN => with(guest, address, |op: &mut BindInterdomain| {
                op.port = self.bind_interdomain(op.remote, op.remote_port)?;
                Ok(())
            }),
            op::BIND_VIRQ => with(guest, address, |op: &mut BindVirq| {
                op.port = self.bind_virq(op.virq, vcpu(op.vcpu)?)?;
                Ok(())
            }),
            op::BIND_PIRQ => with(guest, address, |op: &mut BindPirq| {
                op.port = self.bind_pirq(op.pirq)?;
                Ok(())
            }),
            op::CLOSE => with(guest, address, |op: &mut OnePort| self.close(op.port)),
            op::SEND => with(guest, address, |op: &mut OnePort| self.send(op.port)),
            op::STATUS => with(guest, address, |op: &mut GetStatus| {
                let (channel, vcpu) = self.status(op.domain, op.port)?;
                op.vcpu = u32::try_from(vcpu).unwrap_or(u32::MAX);
                (op.status, op.peer, op.peer_port) = match channel {
                    Channel::Closed => (0, 0, Port(0)),
                    Channel::Unbound(domain) => (1, domain.0.into(), Port(0)),
                    Channel::Interdomain(domain, port) => (2, domain.0.into(), port),
                    Channel::Pirq(pirq) => (3, pirq, Port(0)),
                    Channel::Virq(virq) => (4, virq, Port(0)),
                    Channel::Ipi => (5, 0, Port(0)),
                };
                Ok(())
            }),
            op::ALLOC_UNBOUND => with(guest, address, |op: &mut AllocUnbound| {
                op.port = self.alloc_unbound(op.domain, op.remote)?;
                Ok(())
            }),
            op::BIND_IPI => with(guest, address, |op: &mut BindIpi| {
                op.port = self.bind_ipi(vcpu(op.vcpu)?)?;
                Ok(())
            }),
            op::BIND_VCPU => with(guest, address, |op: &mut BindVcpu| {
                self.bind_vcpu(op.port, vcpu(op.vcpu)?)
            }),
            op::UNMASK => with(guest, address, |op: &mut OnePort| self.unmask(op.port)),
            op::RESET | op::RESET_CONT => {
                with(guest, address, |op: &mut Reset| self.reset(op.domain))
            }
            op::INIT_CONTROL => with(guest, address, |op: &mut InitControl| {
                op.link_bits = 17;
                self.init_control(vcpu(op.vcpu)?, frame(op.frame)?, vcpu(op.offset)?)
            }),
            op::EXPAND_ARRAY => with(guest, address, |op: &mut ExpandArray| {
                self.expand_array(frame(op.frame)?)
            }),
            op::SET_PRIORITY => with(guest, address, |op: &mut SetPriority| {
                self.set_priority(op.port, op.priority)
            }),
            _ => Err(Errno::NoSys),
        }
    }
}

/// Runs an operation on its argument, which is written back if it succeeds.
fn with<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
    guest: &dyn Arguments,
    address: u64,
    run: impl FnOnce(&mut T) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let mut argument = T::new_zeroed();
    guest
        .read(address, argument.as_mut_bytes())
        .map_err(|_| Errno::Fault)?;
    run(&mut argument)?;
    guest
        .write(address, argument.as_bytes())
        .map_err(|_| Errno::Fault)
}
