use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_EXIT_XEN, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::VcpuExit;
use pio_mmio_bus::bus::{BusReader, Outcome, StringOutcome};
use pio_mmio_bus::interrupt::Ioapic;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::{ExitCounts, ExitKind};
use crate::devices::panic::{self, PanicPort};
use crate::kvm::Vcpu;
use crate::machine::Xen;
use crate::machine::stop::{Crash, CrashCause, Stop, StopSwitch, wait_readable};

/// How long to wait between attempts to get a vCPU out of the guest: a signal that arrives just before the guest is entered is
/// lost.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

/// Where a processor is after a reset (Intel SDM vol. 3A, §10.1.4).
const RESET_CODE_BASE: u64 = 0xffff_0000;
const RESET_RIP: u64 = 0xfff0;

/// Where the accesses of a vCPU go.
pub struct Buses {
    /// The ports.
    pub pio: BusReader,
    /// The addresses that are not RAM.
    pub mmio: BusReader,
}

/// One vCPU about to run.
pub struct Runner {
    /// Its number.
    pub index: u8,
    /// The KVM object.
    pub vcpu: Vcpu,
    /// Where its accesses go.
    pub buses: Buses,
    /// Tells when to end, and why.
    pub stop: Arc<StopSwitch>,
    /// Where the guest reports a panic.
    pub panic: Arc<PanicPort>,
    /// The I/O APIC, if it is not in the kernel.
    pub ioapic: Option<Arc<Ioapic>>,
    /// What serves hypercalls, if the guest sees Xen.
    pub(crate) xen: Option<Arc<Xen>>,
    /// Whether the handling of exits is timed.
    pub timed: bool,
}

/// A vCPU on its thread.
pub struct VcpuThread {
    handle: JoinHandle<Finished>,
}

/// A vCPU whose thread has ended.
pub struct Finished {
    /// The KVM object, with its statistics.
    pub vcpu: Vcpu,
    /// Its exits to user space.
    pub exits: ExitCounts,
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A vCPU whose thread panics stops the machine, or nobody would.
struct StopOnPanic(Arc<StopSwitch>);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0
                .throw(Stop::Host("a vCPU\'s thread panicked".to_owned()));
        }
    }
}

impl VcpuThread {
    /// Starts a thread that runs a vCPU until the machine stops.
    pub fn spawn(runner: Runner) -> io::Result<Self> {
        // A handler that does nothing: the signal only makes `KVM_RUN` return.
        register_signal_handler(SIGRTMIN(), ignore).map_err(io::Error::from)?;
        let handle = thread::Builder::new()
            .name(format!("vcpu{}", runner.index))
            .spawn(move || {
                let _guard = StopOnPanic(runner.stop.clone());
                runner.run()
            })?;
        Ok(Self { handle })
    }

    /// Waits for the end of the thread, once the machine's switch is thrown. `None` if it panicked.
    pub fn join(self) -> Option<Finished> {
        while !self.handle.is_finished() {
            // It may end in between, in which case there is nobody to signal.
            let _ = self.handle.kill(SIGRTMIN());
            thread::sleep(KICK_INTERVAL);
        }
        self.handle.join().ok()
    }
}

impl Runner {
    fn run(mut self) -> Finished {
        let mut exits = ExitCounts::default();
        if let Some(xen) = &self.xen {
            xen.begin(self.index);
        }
        while self.stop.reason().is_none() {
            if let Some(xen) = &self.xen {
                xen.before_entry(self.index, &self.vcpu);
            }
            let result = self.vcpu.run();
            let left = self.timed.then(Instant::now);
            let kind = match result {
                Ok(VcpuExit::MmioRead(address, data)) => {
                    complete(&self.stop, || self.buses.mmio.read(address, data));
                    ExitKind::MemoryRead
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    complete(&self.stop, || self.buses.mmio.write(address, data));
                    ExitKind::MemoryWrite
                }
                Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => self.port_access(),
                Ok(VcpuExit::Hlt) => ExitKind::Halt,
                Ok(VcpuExit::Hypercall(_)) => ExitKind::Hypercall,
                Ok(VcpuExit::Unsupported(KVM_EXIT_XEN)) => self.xen_hypercall(),
                Ok(VcpuExit::X86Rdmsr(_) | VcpuExit::X86Wrmsr(_)) => ExitKind::Msr,
                Ok(VcpuExit::IoapicEoi(vector)) => {
                    if let Some(ioapic) = &self.ioapic {
                        ioapic.eoi(vector);
                    }
                    ExitKind::EndOfInterrupt
                }
                Ok(VcpuExit::Shutdown) => {
                    self.crash(CrashCause::TripleFault, "KVM_EXIT_SHUTDOWN".to_owned());
                    ExitKind::Shutdown
                }
                Ok(VcpuExit::SystemEvent(event, _)) => {
                    match event {
                        KVM_SYSTEM_EVENT_SHUTDOWN => self.stop.throw(Stop::PowerOff),
                        KVM_SYSTEM_EVENT_RESET => self.stop.throw(Stop::Reset),
                        KVM_SYSTEM_EVENT_CRASH => {
                            self.crash(CrashCause::Panic, "KVM_SYSTEM_EVENT_CRASH".to_owned());
                        }
                        _ => {}
                    }
                    ExitKind::SystemEvent
                }
                Ok(VcpuExit::Intr) => ExitKind::Interrupted,
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    self.crash(CrashCause::Unrunnable, exit);
                    ExitKind::Other
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    ExitKind::Interrupted
                }
                Err(error) => {
                    self.stop.throw(Stop::Host(error.to_string()));
                    ExitKind::Other
                }
            };
            let time = left.map_or(Duration::ZERO, |left| left.elapsed());
            exits.record(kind, time);
        }
        Finished {
            vcpu: self.vcpu,
            exits,
        }
    }

    fn xen_hypercall(&mut self) -> ExitKind {
        let (Some(xen), Some(call)) = (&self.xen, self.vcpu.xen_hypercall()) else {
            return ExitKind::Other;
        };
        let result = xen.hypercall(self.index, &self.vcpu, &call);
        self.vcpu.answer_xen_hypercall(result);
        ExitKind::Hypercall
    }

    fn port_access(&mut self) -> ExitKind {
        let Some(access) = self.vcpu.port_access() else {
            return ExitKind::Other;
        };
        let pio = &mut self.buses.pio;
        let (port, width) = (access.port.into(), access.width);
        let mut made = 0;
        complete(&self.stop, || {
            let rest = access.data.get_mut(made..).unwrap_or_default();
            let StringOutcome { elements, outcome } = match access.write {
                true => pio.write_string(port, width, rest),
                false => pio.read_string(port, width, rest),
            };
            made = made.saturating_add(elements.saturating_mul(width));
            outcome
        });
        match access.write {
            true if access.port == panic::PORT && self.panic.take() => {
                self.crash(
                    CrashCause::Panic,
                    format!("write to port {:#x}", panic::PORT),
                );
                ExitKind::PortWrite
            }
            true => ExitKind::PortWrite,
            false => ExitKind::PortRead,
        }
    }

    fn crash(&self, cause: CrashCause, exit: String) {
        // After a shutdown KVM on AMD has reset the vCPU, so where it was is lost.
        let reset = self
            .vcpu
            .get_sregs()
            .is_ok_and(|sregs| sregs.cs.base == RESET_CODE_BASE);
        let rip = self.vcpu.get_regs().ok().map(|regs| regs.rip);
        self.stop.throw(Stop::Crash(Crash {
            vcpu: self.index,
            rip: rip.filter(|rip| !(reset && *rip == RESET_RIP)),
            exit,
            cause,
        }));
    }
}

/// Makes an access, again after each suspension, until it is done or the machine stops. What the guest sees of an access that
/// fails is the bus's decision.
fn complete(stop: &StopSwitch, mut access: impl FnMut() -> Outcome) {
    while let Outcome::Suspended(suspension) = access() {
        if let Err(error) = wait_readable(&[suspension.eventfd(), stop.event()]) {
            stop.throw(Stop::Host(error.to_string()));
        }
        if stop.reason().is_some() {
            return;
        }
    }
}
