use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use pio_mmio_bus::{
    interrupt::{MsiMessage, MsiSink},
    pci::RequesterId,
};

use super::{
    Capabilities, Invalidation, InvalidationObserver,
    drain::Waiter,
    interrupt::{InterruptTable, Routes},
    registers::Registers,
    source::Source,
    walk::{Context, RootTable},
};
use crate::{
    dma::{Access, DmaView, Leaf, PhysicalMemory, Translator},
    spec::{fault::FaultRecord, register::Global},
};

/// A remapping unit: its registers are a [`BusDevice`](pio_mmio_bus::bus::BusDevice), devices see memory through the views it
/// hands out, and their interrupts go through its [`Remapper`](super::Remapper).
///
/// Register accesses and the invalidation queue take one lock, translations none, misses one for each requester.
pub struct Unit<M: PhysicalMemory> {
    capabilities: Capabilities,
    memory: M,
    sink: Arc<dyn MsiSink>,
    pub(super) registers: Mutex<Registers>,
    /// Translation is on. Only changed with the registers locked.
    pub(super) enabled: AtomicBool,
    /// The root table address as the last command latched it. Only changed with the registers locked.
    pub(super) root: AtomicU64,
    pub(super) interrupts: Mutex<InterruptTable>,
    pub(super) routes: Routes,
    sources: Mutex<Vec<Weak<Source>>>,
    observers: Mutex<Vec<Weak<dyn InvalidationObserver>>>,
    /// Counts the times that registers may have changed.
    version: AtomicU64,
    /// Messages wait in the outbox until somebody [takes](Self::take_events) them.
    events_held: AtomicBool,
    /// An invalidation waits for guards: whoever drops the last of a generation looks after it.
    draining: AtomicBool,
}

impl<M: PhysicalMemory> Unit<M> {
    /// A unit after reset. `memory` is the guest's, `sink` takes the unit's own interrupts and those that it lets through.
    pub fn new(capabilities: Capabilities, memory: M, sink: Arc<dyn MsiSink>) -> Arc<Self> {
        let registers = Registers::new(&capabilities);
        Self::assemble(
            capabilities,
            memory,
            sink,
            registers,
            false,
            0,
            InterruptTable::default(),
        )
    }

    pub(super) fn assemble(
        capabilities: Capabilities,
        memory: M,
        sink: Arc<dyn MsiSink>,
        registers: Registers,
        enabled: bool,
        root: u64,
        interrupts: InterruptTable,
    ) -> Arc<Self> {
        Arc::new(Self {
            capabilities,
            memory,
            sink,
            registers: Mutex::new(registers),
            enabled: AtomicBool::new(enabled),
            root: AtomicU64::new(root),
            interrupts: Mutex::new(interrupts),
            routes: Routes::default(),
            sources: Mutex::default(),
            observers: Mutex::default(),
            version: AtomicU64::new(0),
            events_held: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// What the unit can do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Memory as `requester` sees it, for its requests without PASID.
    pub fn view(self: &Arc<Self>, requester: RequesterId) -> DmaView<M> {
        self.source_view(requester, None)
    }

    /// Memory as `requester` sees it in its requests with `pasid`.
    pub fn view_with_pasid(self: &Arc<Self>, requester: RequesterId, pasid: u32) -> DmaView<M> {
        self.source_view(requester, Some(pasid))
    }

    fn source_view(self: &Arc<Self>, requester: RequesterId, pasid: Option<u32>) -> DmaView<M> {
        let source = Arc::new(Source::new(requester, pasid));
        let mut sources = lock(&self.sources);
        sources.retain(|source| source.strong_count() > 0);
        sources.push(Arc::downgrade(&source));
        let cache = Arc::clone(source.cache());
        let unit = Arc::clone(self);
        DmaView::new(self.memory.clone(), Arc::new(Port { unit, source }), cache)
    }

    /// Lets `observer` know of each invalidation, as long as it lives.
    pub fn observe(&self, observer: Weak<dyn InvalidationObserver>) {
        lock(&self.observers).push(observer);
    }

    pub(super) fn root_table(&self) -> Option<RootTable> {
        self.enabled
            .load(Ordering::Acquire)
            .then(|| RootTable(self.root.load(Ordering::Acquire)))
    }

    pub(super) fn report(&self, fault: FaultRecord) {
        let mut registers = self.lock_registers();
        let message = registers.faults.record(fault);
        registers.outbox.extend(message);
        self.unlock_registers(registers);
    }

    pub(super) fn lock_registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Unlocks, then sends what accumulated: the sink may well come back.
    pub(super) fn unlock_registers(&self, mut registers: MutexGuard<'_, Registers>) {
        let outbox = if self.events_held.load(Ordering::Relaxed) {
            Vec::new()
        } else {
            std::mem::take(&mut registers.outbox)
        };
        self.version.fetch_add(1, Ordering::Release);
        drop(registers);
        self.send_all(outbox);
    }

    /// Whether the unit's own messages wait to be [taken](Self::take_events). Those that wait are sent when they need not any more.
    pub(crate) fn hold_events(&self, held: bool) {
        let registers = self.lock_registers();
        self.events_held.store(held, Ordering::Relaxed);
        self.unlock_registers(registers);
    }

    /// The messages that wait. The registers that are read from now on show what they tell of.
    pub(crate) fn take_events(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.lock_registers().outbox)
    }

    pub(crate) fn send_all(&self, messages: Vec<MsiMessage>) {
        for message in messages {
            self.send(message);
        }
    }

    /// Hands a message to the interrupt controller. An event that it refuses is lost, as on hardware.
    fn send(&self, message: MsiMessage) {
        let _lost = self.sink.send(message);
    }

    /// A number that changes whenever a register may have.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// What a device in `requester`'s place goes through, and nothing is reported: its context, or `None` if it is blocked. The
    /// outer `None` is translation that is off.
    pub(crate) fn context(&self, requester: RequesterId) -> Option<Option<Context>> {
        let memory = self.memory.memory();
        let root = self.root_table()?;
        Some(
            root.context(&*memory, &self.capabilities, requester.0, None)
                .ok(),
        )
    }

    pub(super) fn sink(&self) -> &Arc<dyn MsiSink> {
        &self.sink
    }

    /// Drops what `invalidation` covers from every cache. Its effect on guards that are older is waited for by
    /// [`Self::wait`].
    pub(super) fn invalidate(&self, invalidation: &Invalidation) {
        for source in lock(&self.sources).iter().filter_map(Weak::upgrade) {
            source.invalidate(invalidation);
        }
        lock(&self.observers).retain(|observer| {
            observer
                .upgrade()
                .inspect(|observer| observer.invalidated(invalidation))
                .is_some()
        });
    }

    /// Completes `waiter` when the guards are gone that may have used what was invalidated so far.
    pub(super) fn wait(&self, registers: &mut Registers, waiter: Waiter) {
        if registers.drain.running() {
            registers.drain.queue(waiter);
        } else {
            self.start_drain(registers, vec![waiter]);
        }
    }

    fn start_drain(&self, registers: &mut Registers, waiters: Vec<Waiter>) {
        // First this, then the count: a guard that goes meanwhile is either seen gone or looks here.
        self.draining.store(true, Ordering::SeqCst);
        let generations: Vec<_> = lock(&self.sources)
            .iter()
            .filter_map(Weak::upgrade)
            .flat_map(|source| source.cache().lanes())
            .filter_map(|lane| lane.turn())
            .collect();
        registers.drain.start(generations, waiters);
        self.settle(registers);
    }

    /// Completes what has drained.
    fn settle(&self, registers: &mut Registers) {
        while let Some((waiters, next)) = registers.drain.finish() {
            self.draining.store(false, Ordering::SeqCst);
            for waiter in waiters {
                self.complete(registers, waiter);
            }
            if !next.is_empty() {
                self.start_drain(registers, next);
            }
        }
    }

    fn complete(&self, registers: &mut Registers, waiter: Waiter) {
        match waiter {
            Waiter::Translation(on) => registers.status.set(Global::TRANSLATION, on),
            Waiter::Context => registers.complete_context(),
            Waiter::Iotlb => registers.complete_iotlb(),
            Waiter::Queue(wait) => self.complete_wait(registers, wait),
        }
    }
}

/// A source at its unit.
struct Port<M: PhysicalMemory> {
    unit: Arc<Unit<M>>,
    source: Arc<Source>,
}

impl<M: PhysicalMemory> Translator<M> for Port<M> {
    fn walk(&self, physical: &M::T, address: u64, access: Access) -> Option<Leaf> {
        let Self { unit, source } = self;
        match source.walk(
            &**physical,
            &unit.capabilities,
            || unit.root_table(),
            address,
            access,
        ) {
            Ok(leaf) => Some(leaf),
            Err(blocked) => {
                if let Some(blocked) = blocked.filter(|blocked| !blocked.quiet) {
                    unit.report(FaultRecord::dma(
                        blocked.reason,
                        blocked.requester.0,
                        blocked.pasid,
                        address,
                        access == Access::Write,
                    ));
                }
                None
            }
        }
    }

    fn drained(&self) {
        let unit = &self.unit;
        if unit.draining.load(Ordering::SeqCst) {
            let mut registers = unit.lock_registers();
            unit.settle(&mut registers);
            unit.run_queue(&mut registers);
            unit.unlock_registers(registers);
        }
    }

    fn set_requester(&self, requester: RequesterId) {
        self.source.set_requester(requester);
    }
}

impl<M: PhysicalMemory> fmt::Debug for Unit<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("capabilities", &self.capabilities)
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

/// Locks whatever a panicking thread left: every state between two statements here is a valid one.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
