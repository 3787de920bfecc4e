//! Domain 0: what back ends need of the hypervisor.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use grant_table::event::{Channel, EventChannels, EventConfig};
use grant_table::foreign::InProcess;
use grant_table::frame::Frame;
use grant_table::hypervisor::{DomainConfig, Hypervisor, Pages};
use grant_table::spec::event::{Port, TWO_LEVEL_PORTS};
use vmm_sys_util::eventfd::EventFd;

use super::events::Dropped;
use super::{GUEST, HOST, XenError};
use crate::kvm::{Vm, XenSend};

/// Pages that a back end can have mapped at a time: a ring, those that stay mapped, and those of a request.
pub(super) const SPAN: u64 = 2048;

/// Domain 0.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) vm: Vm,
    pub(super) events: Arc<EventChannels>,
    pub(super) grants: Arc<Hypervisor>,
    /// Its memory: a page for copies for each back end, then [`SPAN`] numbers for each.
    pub(super) pages: Arc<Pages>,
    /// How many back ends there are.
    pub(super) back_ends: u64,
}

impl Host {
    /// A domain for `back_ends` back ends.
    pub(super) fn new(
        vm: Vm,
        events: Arc<EventChannels>,
        grants: Arc<Hypervisor>,
        back_ends: usize,
    ) -> Result<Arc<Self>, XenError> {
        let span = usize::try_from(SPAN).unwrap_or(0);
        let size = span.saturating_add(1).saturating_mul(back_ends);
        let pages = Arc::new(Pages::new(size, back_ends, back_ends));
        grants.create(HOST, DomainConfig::default(), pages.clone())?;
        let config = EventConfig {
            vcpus: 1,
            shared_info: Frame::allocate(),
            upcall: Box::new(Dropped),
            privileged: true,
            pirqs: Vec::new(),
            max_ports: TWO_LEVEL_PORTS,
        };
        events.create(HOST, config)?;
        Ok(Arc::new(Self {
            vm,
            events,
            grants,
            pages,
            back_ends: back_ends as u64,
        }))
    }

    /// The guest's pages, for back end `number` and each of the two ways in which it uses them: its rings, or its requests.
    pub(super) fn foreign(&self, number: u64, rings: bool) -> InProcess {
        let start = self.back_ends.saturating_add(number.saturating_mul(SPAN));
        let middle = start.saturating_add(SPAN / 16);
        let range = match rings {
            true => start..middle,
            false => middle..start.saturating_add(SPAN),
        };
        let (grants, pages) = (self.grants.clone(), self.pages.clone());
        InProcess::new(grants, HOST, pages, number, range)
    }
}

/// Wakes the thread of a back end: when the guest sends an event to it, and when it is to end.
pub(super) struct Wake {
    kick: EventFd,
    /// The thread is to end.
    stopped: AtomicBool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            // Reading it waits.
            kick: EventFd::new(0)?,
            stopped: AtomicBool::new(false),
        }))
    }

    /// Whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits for the guest; false if the thread is to end.
    pub(super) fn wait(&self) -> bool {
        // A signal may end it early, which does no harm.
        let _count = self.kick.read();
        !self.is_stopped()
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}

/// An event channel to the guest.
pub(super) struct GuestChannel {
    host: Arc<Host>,
    local: Port,
    remote: Port,
}

impl GuestChannel {
    /// Connects to the guest's `remote`, or to a new port of the guest's, whose events go to `wake`.
    pub(super) fn connect(host: Arc<Host>, remote: Option<Port>, wake: &Wake) -> io::Result<Self> {
        let refused = |errno| io::Error::other(format!("the event channel: {errno}"));
        let caller = host.events.caller(HOST).ok_or(io::ErrorKind::NotFound)?;
        let remote = match remote {
            Some(remote) => remote,
            None => caller.alloc_unbound(GUEST, HOST).map_err(refused)?,
        };
        let local = caller.bind_interdomain(GUEST, remote).map_err(refused)?;
        let told = host
            .vm
            .set_xen_send(remote.0, Some(XenSend::Event(&wake.kick)));
        if let Err(error) = told {
            // The port was just bound.
            let _closed = caller.close(local);
            return Err(io::Error::other(error));
        }
        // What the guest sent before is not lost.
        wake.kick.write(1)?;
        Ok(Self {
            host,
            local,
            remote,
        })
    }

    /// The guest's port.
    pub(super) fn remote(&self) -> Port {
        self.remote
    }

    /// Tells the guest.
    pub(super) fn notify(&self) {
        if let Some(caller) = self.host.events.caller(HOST) {
            // The guest may have closed its end.
            let _sent = caller.send(self.local);
        }
    }
}

impl Drop for GuestChannel {
    fn drop(&mut self) {
        let Some(caller) = self.host.events.caller(HOST) else {
            return;
        };
        let connected = Channel::Interdomain(HOST, self.local);
        if caller
            .status(GUEST, self.remote)
            .is_ok_and(|(channel, _)| channel == connected)
        {
            // KVM knows it, as it was told.
            let _told = self.host.vm.set_xen_send(self.remote.0, None);
        }
        // It was bound.
        let _closed = caller.close(self.local);
    }
}

/// A thread that serves the guest until it is dropped.
pub(super) struct Server {
    wake: Arc<Wake>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Runs `serve` on a thread, which waits for `wake` and returns when that tells so.
    pub(super) fn spawn(
        name: String,
        wake: Arc<Wake>,
        serve: impl FnOnce(&Wake) + Send + 'static,
    ) -> io::Result<Self> {
        let own = wake.clone();
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || serve(&own))?;
        Ok(Self {
            wake,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.wake.stopped.store(true, Ordering::Release);
        // The thread reads it, so that it does not overflow.
        let _ = self.wake.kick.write(1);
        // A thread that panicked has ended too.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}
