//! The guest's hypercalls.

use grant_table::hypervisor::{Arguments as _, Outcome};
use grant_table::spec::grant::{MapGrantRef, UnmapGrantRef, op};
use grant_table::spec::{DomId, Errno};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::arguments::Virtual;
use super::spec::{
    AddToPhysmap, FeatureInfo, HvmParam, RegisterVcpuInfo, RemoveFromPhysmap, UpcallVector,
    VERSION, call, hvm, memory, sched, vcpu, version,
};
use super::{GUEST, PEER, Xen};
use crate::kvm::{Hypercall, Vcpu, XenVcpu, ram_frame};
use crate::machine::layout::XEN_STORE;
use crate::machine::stop::{Crash, CrashCause, Stop};

const PAGE: u64 = 4096;

/// Where a hypercall comes from: the vCPU, and the memory that it sees.
#[derive(Clone, Copy)]
pub(super) struct From<'a> {
    pub(super) index: u8,
    pub(super) vcpu: &'a Vcpu,
    pub(super) guest: &'a Virtual<'a>,
}

/// Whether a domain's number means the guest, which may ask about no other.
fn check_self(domain: u16) -> Result<(), Errno> {
    match DomId(domain) {
        DomId::SELF | GUEST => Ok(()),
        _ => Err(Errno::Perm),
    }
}

/// The number of a vCPU in an argument.
fn number(argument: u64) -> Result<usize, Errno> {
    usize::try_from(argument).map_err(|_| Errno::NoEnt)
}

/// The 32 bits of an argument that is a C `int` or `unsigned`.
fn low(argument: u64) -> u32 {
    let [a, b, c, d, ..] = argument.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Carries out operations whose arguments lie one after the other.
fn each<T: FromBytes + IntoBytes + Immutable>(
    from: From<'_>,
    address: u64,
    count: u32,
    mut carry_out: impl FnMut(&mut T),
) -> Result<i64, Errno> {
    // Negative as `int`.
    let count = i32::try_from(count).map_err(|_| Errno::Inval)?;
    let mut at = address;
    for _ in 0..count {
        // Only because the machine stops: nobody sees the answer.
        if from.guest.preempted() {
            break;
        }
        let mut operation: T = from.guest.get(at)?;
        carry_out(&mut operation);
        from.guest.put(at, &operation)?;
        at = at.checked_add(size_of::<T>() as u64).ok_or(Errno::Fault)?;
    }
    Ok(0)
}

impl Xen {
    /// Serves a hypercall that was made on vCPU `index`, whose thread this is: the result, or a negative [`Errno`].
    pub(crate) fn hypercall(&self, index: u8, vcpu: &Vcpu, call: &Hypercall) -> i64 {
        let guest = Virtual {
            vcpu,
            memory: &self.memory,
            stop: &self.stop,
        };
        let from = From {
            index,
            vcpu,
            guest: &guest,
        };
        match self.dispatch(from, call) {
            Ok(result) => result,
            Err(errno) => errno.result(),
        }
    }

    fn dispatch(&self, from: From<'_>, call: &Hypercall) -> Result<i64, Errno> {
        if call.privilege_level != 0 {
            return Err(Errno::Perm);
        }
        // The layout of arguments in 32-bit mode is another, which nobody has needed.
        if !call.long_mode {
            return Err(Errno::NoSys);
        }
        let [first, second, third, ..] = call.arguments;
        let done = |()| 0;
        match call.number {
            call::VERSION => self.version(from, first, second),
            call::MEMORY => self.memory_op(from, first, second).map(done),
            call::HVM => self.hvm_op(from, first, second).map(done),
            call::VCPU => self.vcpu_op(from, first, second, third).map(done),
            call::SCHED => self.sched_op(from, first, second).map(done),
            call::EVENT_CHANNEL => self.event_channel_op(from, low(first), second),
            call::GRANT_TABLE => self.grant_table_op(from, low(first), second, low(third)),
            _ => Err(Errno::NoSys),
        }
    }

    fn version(&self, from: From<'_>, command: u64, argument: u64) -> Result<i64, Errno> {
        match command {
            version::VERSION => return Ok(VERSION.into()),
            version::PAGE_SIZE => return Ok(PAGE.cast_signed()),
            version::EXTRA => from.guest.put(argument, &[0u8; version::EXTRA_SIZE])?,
            version::FEATURES => {
                let mut info: FeatureInfo = from.guest.get(argument)?;
                info.features = match info.word {
                    0 => version::FEATURE_BITS,
                    _ => 0,
                };
                from.guest.put(argument, &info)?;
            }
            _ => return Err(Errno::NoSys),
        }
        Ok(0)
    }

    fn memory_op(&self, from: From<'_>, command: u64, argument: u64) -> Result<(), Errno> {
        match command {
            memory::ADD_TO_PHYSMAP => {
                let place: AddToPhysmap = from.guest.get(argument)?;
                check_self(place.domain)?;
                match (place.space, place.index) {
                    (memory::SPACE_SHARED_INFO, 0) => {
                        self.place_shared_info(place.frame, (from.index, from.vcpu))
                    }
                    (memory::SPACE_GRANT_TABLE, index) => self.show_grants(index, place.frame),
                    _ => Err(Errno::Inval),
                }
            }
            memory::REMOVE_FROM_PHYSMAP => {
                let place: RemoveFromPhysmap = from.guest.get(argument)?;
                check_self(place.domain)?;
                self.hide_grants(place.frame)
            }
            _ => Err(Errno::NoSys),
        }
    }

    fn hvm_op(&self, from: From<'_>, command: u64, argument: u64) -> Result<(), Errno> {
        match command {
            hvm::GET_PARAM => {
                let mut param: HvmParam = from.guest.get(argument)?;
                check_self(param.domain)?;
                param.value = match param.index {
                    hvm::PARAM_STORE_FRAME => XEN_STORE / PAGE,
                    hvm::PARAM_STORE_PORT => self.store.guest_port().into(),
                    index if index < hvm::PARAMS => 0,
                    _ => return Err(Errno::Inval),
                };
                from.guest.put(argument, &param)
            }
            hvm::SET_PARAM => {
                let param: HvmParam = from.guest.get(argument)?;
                check_self(param.domain)?;
                let [.., kind] = param.value.to_le_bytes();
                match (param.index, kind) {
                    // Each vCPU has its vector; a common one is not offered.
                    (hvm::PARAM_CALLBACK, hvm::CALLBACK_VECTOR) => Err(Errno::OpNotSupp),
                    // Guests that use vectors set any other to say so.
                    (hvm::PARAM_CALLBACK, _) => Ok(()),
                    (index, _) if index < hvm::PARAMS => Err(Errno::Perm),
                    _ => Err(Errno::Inval),
                }
            }
            hvm::SET_UPCALL_VECTOR => {
                let choice: UpcallVector = from.guest.get(argument)?;
                let vcpu = number(choice.vcpu.into())?;
                // The first 16 are no interrupts' (Intel SDM vol. 3A, §11.5.2).
                if choice.vector < 16 {
                    return Err(Errno::Inval);
                }
                self.set(from, vcpu, XenVcpu::Upcall(choice.vector))?;
                self.upcalls.set_vector(vcpu, choice.vector);
                Ok(())
            }
            _ => Err(Errno::NoSys),
        }
    }

    fn vcpu_op(&self, from: From<'_>, command: u64, vcpu: u64, argument: u64) -> Result<(), Errno> {
        let vcpu = number(vcpu)?;
        if vcpu >= self.vcpus.count() {
            return Err(Errno::NoEnt);
        }
        match command {
            vcpu::STOP_PERIODIC_TIMER | vcpu::STOP_SINGLE_TIMER => Ok(()),
            vcpu::REGISTER_RUNSTATE => {
                let address = from.guest.physical(from.guest.get(argument)?)?;
                self.set(from, vcpu, XenVcpu::Runstate(address))
            }
            vcpu::REGISTER_TIME => {
                let address = match from.guest.get::<u64>(argument)? {
                    // KVM's word for nowhere.
                    0 => u64::MAX,
                    address => from.guest.physical(address)?,
                };
                self.set(from, vcpu, XenVcpu::Time(address))
            }
            vcpu::REGISTER_INFO => {
                let place: RegisterVcpuInfo = from.guest.get(argument)?;
                let page = ram_frame(&self.memory, place.frame).ok_or(Errno::Inval)?;
                let offset = usize::try_from(place.offset).map_err(|_| Errno::Inval)?;
                let address = place.frame.saturating_mul(PAGE) + u64::from(place.offset);
                let caller = self.events.caller(GUEST).ok_or(Errno::Inval)?;
                caller.place_vcpu_info(vcpu, page, offset)?;
                self.set(from, vcpu, XenVcpu::Info(address))
            }
            _ => Err(Errno::NoSys),
        }
    }

    fn sched_op(&self, from: From<'_>, command: u64, argument: u64) -> Result<(), Errno> {
        match command {
            sched::YIELD => Ok(()),
            sched::SHUTDOWN => {
                let reason: u32 = from.guest.get(argument)?;
                self.stop.throw(match reason {
                    sched::POWER_OFF => Stop::PowerOff,
                    sched::REBOOT => Stop::Reset,
                    sched::CRASH => Stop::Crash(Crash {
                        vcpu: from.index,
                        rip: from.vcpu.get_regs().ok().map(|regs| regs.rip),
                        exit: "SCHEDOP_shutdown".to_owned(),
                        cause: CrashCause::Panic,
                    }),
                    _ => return Err(Errno::Inval),
                });
                Ok(())
            }
            _ => Err(Errno::NoSys),
        }
    }

    fn grant_table_op(
        &self,
        from: From<'_>,
        command: u32,
        address: u64,
        count: u32,
    ) -> Result<i64, Errno> {
        let caller = self.grants.caller(GUEST, from.index.into());
        let caller = caller.ok_or(Errno::Srch)?;
        if let Some(peer) = &self.peer {
            // Most are of the other guest's pages, and each asks its VMM.
            match command {
                op::MAP => {
                    return each(from, address, count, |op: &mut MapGrantRef| {
                        match op.domain {
                            PEER => peer.map(op),
                            _ => caller.map(std::slice::from_mut(op)),
                        }
                    });
                }
                op::UNMAP => {
                    return each(from, address, count, |op: &mut UnmapGrantRef| {
                        match peer.has_mapped(op.handle) {
                            true => peer.unmap(op),
                            false => caller.unmap(std::slice::from_mut(op)),
                        }
                    });
                }
                _ => {}
            }
        }
        match caller.grant_table_op(from.guest, command, address, count) {
            Outcome::Done(result) => Ok(result),
            // Only because the machine stops: nobody sees the answer.
            Outcome::Continue { .. } => Ok(0),
        }
    }

    /// Sets what a vCPU has of Xen.
    pub(super) fn set(&self, from: From<'_>, vcpu: usize, value: XenVcpu) -> Result<(), Errno> {
        self.vcpus
            .set((from.index, from.vcpu), vcpu, value, &self.stop)
    }
}
