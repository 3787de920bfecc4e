//! What each vCPU has of Xen. Only its own thread can tell KVM, as KVM waits for a vCPU that is in the guest: others ask that thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grant_table::spec::Errno;

use crate::kvm::{Thread, Vcpu, XenVcpu};
use crate::machine::stop::StopSwitch;

/// How long to wait between attempts to get a vCPU out of the guest, as one that is just about to enter misses a kick.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// A value to set, and whom to tell whether KVM took it.
type Request = (XenVcpu, SyncSender<bool>);

#[derive(Debug, Default)]
struct Slot {
    thread: Mutex<Option<Thread>>,
    /// Whether there are requests.
    asked: AtomicBool,
    requests: Mutex<Vec<Request>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The vCPUs of a machine.
#[derive(Debug)]
pub(super) struct Vcpus(Vec<Slot>);

impl Vcpus {
    pub(super) fn new(count: u8) -> Self {
        Self((0..count).map(|_| Slot::default()).collect())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The calling thread runs vCPU `index`.
    pub(super) fn begin(&self, index: u8) {
        if let Some(slot) = self.0.get(usize::from(index)) {
            *lock(&slot.thread) = Some(Thread::current());
        }
    }

    /// Sets what others asked for; called by the thread of vCPU `index` before it enters the guest.
    pub(super) fn apply(&self, index: u8, vcpu: &Vcpu) {
        let slot = self.0.get(usize::from(index));
        let Some(slot) = slot.filter(|slot| slot.asked.swap(false, Ordering::Acquire)) else {
            return;
        };
        let requests = std::mem::take(&mut *lock(&slot.requests));
        for (value, answer) in requests {
            // Whoever asked may have given up, as the machine stops.
            let _gone = answer.try_send(vcpu.set_xen(value).is_ok());
        }
    }

    /// Sets a value of vCPU `target`, on behalf of the guest's code on vCPU `index`, whose thread this is.
    pub(super) fn set(
        &self,
        (index, vcpu): (u8, &Vcpu),
        target: usize,
        value: XenVcpu,
        stop: &StopSwitch,
    ) -> Result<(), Errno> {
        let slot = self.0.get(target).ok_or(Errno::NoEnt)?;
        if target == usize::from(index) {
            return vcpu.set_xen(value).map_err(|_| Errno::Inval);
        }
        let (sender, receiver) = mpsc::sync_channel(1);
        lock(&slot.requests).push((value, sender));
        slot.asked.store(true, Ordering::Release);
        loop {
            if let Some(thread) = *lock(&slot.thread) {
                thread.kick();
            }
            // That one may be waiting for this one.
            self.apply(index, vcpu);
            match receiver.recv_timeout(KICK_INTERVAL) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(RecvTimeoutError::Disconnected) => return Err(Errno::Inval),
                Err(RecvTimeoutError::Timeout) if stop.reason().is_some() => {
                    return Err(Errno::Inval);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
