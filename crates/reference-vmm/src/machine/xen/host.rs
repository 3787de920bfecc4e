//! Domain 0: what back ends need of the hypervisor.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use grant_table::event::{Channel, EventChannels, EventConfig};
use grant_table::foreign::InProcess;
use grant_table::frame::Frame;
use grant_table::hypervisor::{DomainConfig, Hypervisor, Pages};
use grant_table::spec::DomId;
use grant_table::spec::event::{Port, TWO_LEVEL_PORTS};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

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

/// Wakes a thread: by the events of an eventfd, and when it is to end.
pub(super) struct Wake {
    /// Reading it waits.
    kick: File,
    /// The thread is to end.
    stopped: AtomicBool,
}

impl Wake {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let kick = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self::of(File::from(kick)))
    }

    /// By the events of `kick`, an eventfd.
    pub(super) fn of(kick: File) -> Arc<Self> {
        Arc::new(Self {
            kick,
            stopped: AtomicBool::new(false),
        })
    }

    /// Its eventfd.
    pub(super) fn kick(&self) -> &File {
        &self.kick
    }

    /// Whether the thread is to end.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits for an event; false if the thread is to end.
    pub(super) fn wait(&self) -> bool {
        // A signal may end it early, which does no harm.
        let _count = (&self.kick).read(&mut [0; 8]);
        !self.is_stopped()
    }

    /// Waits until `other` can be read; false if the thread is to end before.
    pub(super) fn wait_or(&self, other: &impl AsFd) -> io::Result<bool> {
        loop {
            if self.is_stopped() {
                return Ok(false);
            }
            let mut both = [
                PollFd::new(&self.kick, PollFlags::IN),
                PollFd::new(other, PollFlags::IN),
            ];
            match poll(&mut both, None) {
                Err(Errno::INTR) => continue,
                waited => waited?,
            };
            let [kick, other] = both.map(|one| !one.revents().is_empty());
            if kick {
                self.wait();
            } else if other {
                return Ok(true);
            }
        }
    }

    /// An event, as its eventfd has them.
    fn signal(&self) -> io::Result<()> {
        (&self.kick).write_all(&1u64.to_ne_bytes())
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }
}

/// An event channel between the guest and a domain that is not.
pub(super) struct GuestChannel {
    host: Arc<Host>,
    domain: DomId,
    local: Port,
    remote: Port,
}

impl GuestChannel {
    /// Connects `domain` to the guest's `remote`, or to a new port of the guest's, whose events go to `wake`.
    pub(super) fn connect(
        host: Arc<Host>,
        domain: DomId,
        remote: Option<Port>,
        wake: &Wake,
    ) -> io::Result<Self> {
        let refused = |errno| io::Error::other(format!("the event channel: {errno}"));
        let caller = host.events.caller(domain).ok_or(io::ErrorKind::NotFound)?;
        let remote = match remote {
            Some(remote) => remote,
            None => caller.alloc_unbound(GUEST, domain).map_err(refused)?,
        };
        let local = caller.bind_interdomain(GUEST, remote).map_err(refused)?;
        Self::of(host, domain, (local, remote), wake)
    }

    /// The channel of two ports that are connected: `domain`'s, and the guest's, whose events go to `wake`. They are closed if that fails.
    pub(super) fn of(
        host: Arc<Host>,
        domain: DomId,
        (local, remote): (Port, Port),
        wake: &Wake,
    ) -> io::Result<Self> {
        let channel = Self {
            host,
            domain,
            local,
            remote,
        };
        let events = Some(XenSend::Event(wake.kick.as_fd()));
        let told = channel.host.vm.set_xen_send(remote.0, events);
        told.map_err(io::Error::other)?;
        // What the guest sent before is not lost.
        wake.signal()?;
        Ok(channel)
    }

    /// The domain's port.
    pub(super) fn local(&self) -> Port {
        self.local
    }

    /// The guest's port.
    pub(super) fn remote(&self) -> Port {
        self.remote
    }

    /// Tells the guest.
    pub(super) fn notify(&self) {
        if let Some(caller) = self.host.events.caller(self.domain) {
            // The guest may have closed its end.
            let _sent = caller.send(self.local);
        }
    }
}

impl Drop for GuestChannel {
    fn drop(&mut self) {
        let Some(caller) = self.host.events.caller(self.domain) else {
            return;
        };
        let connected = Channel::Interdomain(self.domain, self.local);
        if caller
            .status(GUEST, self.remote)
            .is_ok_and(|(channel, _)| channel == connected)
        {
            // KVM knows it, if it could be told.
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
        let _ = self.wake.signal();
        // A thread that panicked has ended too.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}
