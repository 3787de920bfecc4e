//! The status machine against a model: any walk of register writes, device events and resets.
#![expect(
    clippy::unwrap_used,
    clippy::unreachable,
    clippy::indexing_slicing,
    reason = "test code"
)]

mod support;

use std::sync::Arc;

use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::interrupt::RecordingLine;
use proptest::prelude::*;
use support::pci::Rig;
use support::{Memory, Recorder, memory};
use virtio_devices::transport::MmioTransport;
use virtio_devices::transport::spec::{mmio, pci::common};

#[derive(Clone, Copy, Debug)]
enum Op {
    Status(u8),
    /// The next step of a driver that knows what it does, to get walks deep enough; with RING_RESET or without.
    Proceed(bool),
    /// Sets status bits as a driver does: what it reads and more.
    AddStatus(u8),
    DeviceFeatureSelect(u32),
    DriverFeatureSelect(u32),
    DriverFeatures(u32),
    QueueSelect(u32),
    Size(u32),
    DescLow(u32),
    DescHigh(u32),
    Ready(u32),
    QueueReset(u32),
    DeviceFails,
    ConfigChanges,
    Used(u16),
    Acknowledge(u32),
}

impl Op {
    /// What is left of it in PCI, where some registers have 16 bits.
    fn narrow(self) -> Self {
        match self {
            Op::QueueSelect(index) => Op::QueueSelect(index & 0xffff),
            Op::Size(size) => Op::Size(size & 0xffff),
            Op::Ready(value) => Op::Ready(value & 0xffff),
            Op::QueueReset(value) => Op::QueueReset(value & 0xffff),
            op => op,
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let select = || prop_oneof![6 => 0u32..4, 1 => any::<u32>(), 1 => Just(0x1_0000)];
    // VERSION_1 is bit 0 of the second word, RING_PACKED bit 2, RING_RESET bit 8.
    let features = prop_oneof![
        4 => Just(0), 4 => Just(1), 2 => Just(0x101), 2 => Just(5), 1 => Just(2), 1 => Just(3), 1 => any::<u32>()
    ];
    let size = prop_oneof![
        4 => Just(1u32), 4 => Just(8), 2 => Just(16), 1 => Just(256), 1 => Just(0), 1 => Just(7),
        1 => Just(0x1_0008), 1 => any::<u32>()
    ];
    let bit = || prop_oneof![Just(1u8), Just(2), Just(4), Just(8), Just(15)];
    prop_oneof![
        1 => any::<u8>().prop_map(Op::Status),
        1 => Just(Op::Status(0)),
        8 => any::<bool>().prop_map(Op::Proceed),
        3 => bit().prop_map(Op::AddStatus),
        1 => Just(Op::AddStatus(128)),
        2 => select().prop_map(Op::DeviceFeatureSelect),
        4 => select().prop_map(Op::DriverFeatureSelect),
        6 => features.prop_map(Op::DriverFeatures),
        6 => select().prop_map(Op::QueueSelect),
        4 => size.prop_map(Op::Size),
        3 => any::<u32>().prop_map(Op::DescLow),
        1 => Just(Op::DescLow(u32::MAX)),
        2 => Just(Op::DescHigh(u32::MAX)),
        6 => Just(Op::Ready(1)),
        1 => Just(Op::Ready(0)),
        1 => any::<u32>().prop_map(Op::Ready),
        2 => Just(Op::QueueReset(1)),
        1 => any::<u32>().prop_map(Op::QueueReset),
        1 => Just(Op::DeviceFails),
        1 => Just(Op::ConfigChanges),
        2 => (0u16..3).prop_map(Op::Used),
        3 => any::<u32>().prop_map(Op::Acknowledge),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct QueueModel {
    size: u16,
    desc: u64,
    ready: bool,
    running: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Model {
    pci: bool,
    status: u8,
    generation: u32,
    isr: u8,
    device_select: u32,
    driver_select: u32,
    features: [u32; 2],
    queue_select: u32,
    queues: [QueueModel; 3],
}

const OFFERED: [u32; 2] = [0x3000_0003, 0x0000_0105];

impl Model {
    fn new(pci: bool, generation: u32) -> Self {
        Self {
            pci,
            status: 0,
            generation,
            isr: 0,
            device_select: 0,
            driver_select: 0,
            features: [0; 2],
            queue_select: 0,
            queues: Recorder::SIZES.map(|size| QueueModel {
                size,
                desc: 0,
                ready: false,
                running: false,
            }),
        }
    }

    fn has(&self, bits: u8) -> bool {
        self.status & bits == bits
    }

    fn queue(&mut self) -> Option<&mut QueueModel> {
        self.queues
            .get_mut(usize::try_from(self.queue_select).unwrap())
    }

    fn fail(&mut self) {
        if self.status != 0 {
            self.status |= 64;
        }
        if self.has(4) {
            self.isr |= 2;
        }
    }

    fn run(&mut self, index: usize) {
        let queue = &mut self.queues[index];
        if queue.ready {
            if queue.desc == u64::MAX {
                self.fail();
            } else {
                queue.running = true;
            }
        }
    }

    fn ring_reset(&self) -> bool {
        self.has(8) && self.features[1] & 0x100 != 0
    }

    fn setup(&mut self) -> Option<&mut QueueModel> {
        let open = self.has(8) && self.status & 0xc0 == 0 && (!self.has(4) || self.ring_reset());
        self.queue().filter(|queue| open && !queue.ready)
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            *self = Self::new(self.pci, self.generation);
            return;
        }
        let mine = self.status & !64;
        if self.has(128) || value & mine != mine {
            return;
        }
        if value & 128 != 0 {
            self.status |= 128;
            return;
        }
        for step in [1, 2, 8, 4] {
            if self.has(step) {
                continue;
            }
            let features_good = self.features[0] & !OFFERED[0] == 0
                && self.features[1] & !OFFERED[1] == 0
                && self.features[1] & 1 == 1
                && self.features[0] & 3 != 2;
            if value & step == 0 || step == 8 && !features_good || step == 4 && self.has(64) {
                return;
            }
            self.status |= step;
            if step == 4 {
                (0..3).for_each(|index| self.run(index));
            }
        }
    }

    /// What `op` is in terms of single writes.
    fn expand(&self, op: Op) -> Vec<Op> {
        match op {
            Op::Proceed(_) if !self.has(1) => vec![Op::AddStatus(1)],
            Op::Proceed(_) if !self.has(2) => vec![Op::AddStatus(2)],
            Op::Proceed(ring_reset) if !self.has(8) => vec![
                Op::DriverFeatureSelect(0),
                Op::DriverFeatures(0x3000_0001),
                Op::DriverFeatureSelect(1),
                Op::DriverFeatures(if ring_reset { 0x101 } else { 1 }),
                Op::AddStatus(8),
            ],
            Op::Proceed(_) => vec![Op::AddStatus(4)],
            op => vec![op],
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Proceed(_) => unreachable!("expanded"),
            Op::Status(value) => self.write_status(value),
            Op::AddStatus(bits) => self.write_status(self.status | bits),
            Op::DeviceFeatureSelect(word) => self.device_select = word,
            Op::DriverFeatureSelect(word) => self.driver_select = word,
            Op::DriverFeatures(value) => {
                if self.has(2) && self.status & 0x88 == 0 && self.driver_select < 2 {
                    self.features[self.driver_select as usize] = value;
                }
            }
            Op::QueueSelect(index) => self.queue_select = index,
            Op::Size(size) => {
                let max = match self.queue_select {
                    0 => 256,
                    1 => 8,
                    _ => 1,
                };
                // Any number will do for a packed ring.
                let packed = self.features[1] & 4 != 0;
                if let Some(queue) = self.setup()
                    && (1..=max).contains(&size)
                    && (packed || [1, 2, 4, 8, 16, 32, 64, 128, 256].contains(&size))
                {
                    queue.size = u16::try_from(size).unwrap();
                }
            }
            Op::DescLow(value) => {
                if let Some(queue) = self.setup() {
                    queue.desc = queue.desc >> 32 << 32 | u64::from(value);
                }
            }
            Op::DescHigh(value) => {
                if let Some(queue) = self.setup() {
                    queue.desc = queue.desc & 0xffff_ffff | u64::from(value) << 32;
                }
            }
            Op::Ready(1) => {
                if let Some(queue) = self.setup() {
                    queue.ready = true;
                    if self.has(4) {
                        self.run(self.queue_select as usize);
                    }
                }
            }
            // In PCI the driver must not write 0.
            Op::Ready(0) if !self.pci => {
                if let Some(queue) = self.queue() {
                    queue.ready = false;
                    queue.running = false;
                }
            }
            Op::QueueReset(1) if self.ring_reset() => {
                if let Some(queue) = self.queue() {
                    queue.ready = false;
                    queue.running = false;
                }
                let fresh = Self::new(self.pci, 0).queues;
                let index = self.queue_select as usize;
                if let Some(queue) = self.setup() {
                    *queue = fresh[index].clone();
                }
            }
            Op::Ready(_) | Op::QueueReset(_) => {}
            Op::DeviceFails => self.fail(),
            Op::ConfigChanges => {
                self.generation += 1;
                if self.has(4) {
                    self.isr |= 2;
                }
            }
            Op::Used(index) => {
                if self.queues[usize::from(index)].running {
                    self.isr |= 1;
                }
            }
            Op::Acknowledge(_) if self.pci => self.isr = 0,
            Op::Acknowledge(bits) => self.isr &= !u8::try_from(bits & 0xff).unwrap(),
        }
    }
}

/// The two transports by what they have in common.
struct Subject {
    registers: Registers,
    device: Arc<Recorder>,
    line: Arc<RecordingLine>,
}

enum Registers {
    Mmio(MmioTransport<Memory>),
    Pci(Rig),
}

impl Subject {
    fn new(pci: bool) -> Self {
        let device = Recorder::new();
        let line = Arc::new(RecordingLine::default());
        let registers = if pci {
            Registers::Pci(Rig::new(
                Arc::clone(&device) as Arc<_>,
                memory(),
                Arc::clone(&line),
            ))
        } else {
            let transport = MmioTransport::new(
                Arc::clone(&device) as Arc<_>,
                memory(),
                Arc::clone(&line) as Arc<_>,
            );
            Registers::Mmio(transport.unwrap())
        };
        Self {
            registers,
            device,
            line,
        }
    }

    /// Writes a register of the MMIO transport, or of the PCI transport with its width.
    fn write(&self, mmio: u64, pci: (u64, usize), value: u32) {
        match &self.registers {
            Registers::Mmio(transport) => transport.write(mmio, &value.to_le_bytes()).unwrap(),
            Registers::Pci(rig) => rig.write(pci.0, &value.to_le_bytes()[..pci.1]),
        }
    }

    fn read(&self, mmio: u64, pci: (u64, usize)) -> u32 {
        let mut data = [0; 4];
        match &self.registers {
            Registers::Mmio(transport) => transport.read(mmio, &mut data).unwrap(),
            Registers::Pci(rig) => rig.read(pci.0, &mut data[..pci.1]),
        }
        u32::from_le_bytes(data)
    }

    fn status(&self) -> u32 {
        self.read(mmio::STATUS, (common::DEVICE_STATUS, 1))
    }

    fn apply(&self, op: Op) {
        match op {
            Op::Proceed(_) => unreachable!("expanded"),
            Op::Status(value) => self.write(mmio::STATUS, (common::DEVICE_STATUS, 1), value.into()),
            Op::AddStatus(bits) => {
                let status = self.status() | u32::from(bits);
                self.write(mmio::STATUS, (common::DEVICE_STATUS, 1), status);
            }
            Op::DeviceFeatureSelect(word) => self.write(
                mmio::DEVICE_FEATURES_SEL,
                (common::DEVICE_FEATURE_SELECT, 4),
                word,
            ),
            Op::DriverFeatureSelect(word) => self.write(
                mmio::DRIVER_FEATURES_SEL,
                (common::DRIVER_FEATURE_SELECT, 4),
                word,
            ),
            Op::DriverFeatures(value) => {
                self.write(mmio::DRIVER_FEATURES, (common::DRIVER_FEATURE, 4), value);
            }
            Op::QueueSelect(index) => self.write(mmio::QUEUE_SEL, (common::QUEUE_SELECT, 2), index),
            Op::Size(size) => self.write(mmio::QUEUE_SIZE, (common::QUEUE_SIZE, 2), size),
            Op::DescLow(value) => self.write(mmio::QUEUE_DESC_LOW, (common::QUEUE_DESC, 4), value),
            Op::DescHigh(value) => {
                self.write(mmio::QUEUE_DESC_HIGH, (common::QUEUE_DESC + 4, 4), value);
            }
            Op::Ready(value) => self.write(mmio::QUEUE_READY, (common::QUEUE_ENABLE, 2), value),
            Op::QueueReset(value) => {
                self.write(mmio::QUEUE_RESET, (common::QUEUE_RESET, 2), value);
            }
            Op::DeviceFails => self.device.events().needs_reset(),
            Op::ConfigChanges => self.device.events().config_changed(),
            Op::Used(index) => {
                if let Some(queue) = self.device.running.lock().unwrap().get(&index) {
                    queue.interrupt.trigger();
                }
            }
            Op::Acknowledge(bits) => match &self.registers {
                Registers::Mmio(_) => self.write(mmio::INTERRUPT_ACK, (0, 0), bits),
                Registers::Pci(rig) => rig.read(Rig::ISR, &mut [0]),
            },
        }
    }

    fn check(&self, model: &mut Model) {
        assert_eq!(self.status(), u32::from(model.status));
        let generation = self.read(mmio::CONFIG_GENERATION, (common::CONFIG_GENERATION, 1));
        assert_eq!(generation, model.generation);
        assert_eq!(self.line.asserted(), model.isr != 0);
        let word = usize::try_from(model.device_select).unwrap();
        let offered = OFFERED.get(word).copied().unwrap_or(0);
        let features = self.read(mmio::DEVICE_FEATURES, (common::DEVICE_FEATURE, 4));
        assert_eq!(features, offered);
        let select = usize::try_from(model.queue_select).unwrap();
        let ready = model.queue().is_some_and(|queue| queue.ready);
        let enabled = self.read(mmio::QUEUE_READY, (common::QUEUE_ENABLE, 2));
        assert_eq!(enabled, u32::from(ready));
        assert_eq!(self.read(mmio::QUEUE_RESET, (common::QUEUE_RESET, 2)), 0);
        match &self.registers {
            Registers::Mmio(_) => {
                let max = Recorder::SIZES.get(select).copied().unwrap_or(0);
                assert_eq!(self.read(mmio::QUEUE_SIZE_MAX, (0, 0)), u32::from(max));
                let isr = self.read(mmio::INTERRUPT_STATUS, (0, 0));
                assert_eq!(isr, u32::from(model.isr));
            }
            Registers::Pci(_) => {
                let queue = model.queue().cloned();
                let size = queue.as_ref().map_or(0, |queue| queue.size);
                assert_eq!(self.read(0, (common::QUEUE_SIZE, 2)), u32::from(size));
                let desc = queue.as_ref().map_or(0, |queue| queue.desc);
                let low = u64::from(self.read(0, (common::QUEUE_DESC, 4)));
                let high = u64::from(self.read(0, (common::QUEUE_DESC + 4, 4)));
                assert_eq!(high << 32 | low, desc);
                let word = usize::try_from(model.driver_select).unwrap();
                let accepted = model.features.get(word).copied().unwrap_or(0);
                assert_eq!(self.read(0, (common::DRIVER_FEATURE, 4)), accepted);
                assert_eq!(self.read(0, (common::NUM_QUEUES, 2)), 3);
                let notify = if queue.is_some() {
                    model.queue_select
                } else {
                    0
                };
                assert_eq!(self.read(0, (common::QUEUE_NOTIFY_OFF, 2)), notify);
            }
        }

        let running = self.device.running.lock().unwrap();
        for (index, queue) in (0..).zip(&model.queues) {
            let actual = running.get(&index);
            assert_eq!(actual.is_some(), queue.running, "queue {index}");
            if let Some(actual) = actual {
                assert_eq!(actual.config.size, u32::from(queue.size));
                assert_eq!(actual.config.desc.0, queue.desc);
                let [low, high] = model.features.map(u64::from);
                assert_eq!(actual.features, high << 32 | low);
            }
        }
    }

    /// Saves here and restores in a fresh device.
    fn migrate(&self) -> Self {
        let other = Self::new(matches!(self.registers, Registers::Pci(_)));
        match (&self.registers, &other.registers) {
            (Registers::Mmio(from), Registers::Mmio(to)) => {
                let state = from.save();
                to.restore(state.clone()).unwrap();
                assert_eq!(to.save(), state);
                to.resume();
            }
            (Registers::Pci(from), Registers::Pci(to)) => {
                let state = from.transport.save();
                to.transport.restore(&state).unwrap();
                assert_eq!(to.transport.save(), state);
                to.transport.resume();
            }
            _ => unreachable!("of one kind"),
        }
        other
    }
}

fn walk(pci: bool, ops: Vec<Op>, mut check: impl FnMut(&Subject, &mut Model)) -> (Subject, Model) {
    let subject = Subject::new(pci);
    let mut model = Model::new(pci, 0);
    for op in ops {
        let op = if pci { op.narrow() } else { op };
        for op in model.expand(op) {
            subject.apply(op);
            model.apply(op);
            check(&subject, &mut model);
        }
    }
    (subject, model)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// THREATS: status walks, activation twice (openvmm #3221); queue registers changed after activation (CVE-2026-5747); selectors out of
    /// range (Cloud Hypervisor #7917, Firecracker #5353); queue sizes (mvm #1860). Every write in every state has exactly the effect
    /// that the model gives it.
    #[test]
    fn any_walk_does_what_the_model_does(
        pci: bool,
        ops in proptest::collection::vec(op(), 1..100),
    ) {
        walk(pci, ops, Subject::check);
    }

    /// THREATS: status walks. What is saved anywhere on a walk is accepted by a fresh device and looks the same there.
    #[test]
    fn a_saved_state_is_restored(pci: bool, ops in proptest::collection::vec(op(), 1..60)) {
        let (subject, mut model) = walk(pci, ops, |_, _| ());
        let other = subject.migrate();
        if !model.has(64) {
            other.check(&mut model);
        }
    }
}
