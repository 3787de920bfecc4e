//! Event channels: who may bind what, and that events arrive, in either ABI.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use grant_table::event::{
    Channel, EventCaller, EventChannels, EventConfig, FifoEvents, TwoLevelEvents, Upcall,
};
use grant_table::frame::Frame;
use grant_table::spec::event::Port;
use grant_table::spec::{DomId, Errno};
use proptest::prelude::*;

#[derive(Clone, Default)]
struct Count(Arc<[AtomicUsize; 2]>);

impl Upcall for Count {
    fn raise(&self, vcpu: usize) {
        self.0[vcpu].fetch_add(1, Ordering::SeqCst);
    }
}

impl Count {
    fn now(&self) -> [usize; 2] {
        [0, 1].map(|vcpu| self.0[vcpu].load(Ordering::SeqCst))
    }
}

struct World {
    channels: EventChannels,
    shared: Vec<Frame>,
    upcalls: Vec<Count>,
}

impl World {
    fn new() -> Self {
        let (channels, mut shared, mut upcalls) = (EventChannels::new(), Vec::new(), Vec::new());
        for id in 0..3 {
            let (frame, count) = (Frame::allocate(), Count::default());
            let config = EventConfig {
                vcpus: 2,
                shared_info: frame.clone(),
                upcall: Box::new(count.clone()),
                privileged: id == 0,
                pirqs: vec![9],
                max_ports: 1 << 17,
            };
            channels.create(DomId(id), config).unwrap();
            shared.push(frame);
            upcalls.push(count);
        }
        Self {
            channels,
            shared,
            upcalls,
        }
    }

    fn caller(&self, id: u16) -> EventCaller<'_> {
        self.channels.caller(DomId(id)).unwrap()
    }

    fn events(&self, id: usize, vcpu: usize) -> TwoLevelEvents {
        TwoLevelEvents::new(self.shared[id].clone(), vcpu).unwrap()
    }

    /// Ports of domains 1 and 2 that are connected.
    fn connect(&self) -> (Port, Port) {
        let there = self.caller(2).alloc_unbound(DomId::SELF, DomId(1)).unwrap();
        let here = self.caller(1).bind_interdomain(DomId(2), there).unwrap();
        assert_eq!(
            self.events(1, 0).take(),
            [here],
            "a new connection has an event"
        );
        (here, there)
    }

    /// Gives domain 2 the FIFO ABI with one page of words.
    fn fifo(&self) -> [FifoEvents; 2] {
        let (control, words) = (Frame::allocate(), Frame::allocate());
        for vcpu in 0..2 {
            self.caller(2)
                .init_control(vcpu, control.clone(), 128 * vcpu)
                .unwrap();
        }
        self.caller(2).expand_array(words.clone()).unwrap();
        [0, 128].map(|offset| FifoEvents::new(control.clone(), offset, vec![words.clone()]))
    }
}

#[test]
fn events_cross_both_ways() {
    let world = World::new();
    let (here, there) = world.connect();
    world.caller(1).send(here).unwrap();
    world.caller(1).send(here).unwrap();
    assert_eq!(world.upcalls[2].now(), [1, 0]);
    assert_eq!(world.events(2, 0).take(), [there]);
    assert!(world.events(2, 0).take().is_empty());
    world.caller(2).bind_vcpu(there, 1).unwrap();
    world.caller(1).send(here).unwrap();
    assert_eq!(world.upcalls[2].now(), [1, 1]);
    assert_eq!(world.events(2, 1).take(), [there]);
    world.caller(2).send(there).unwrap();
    assert_eq!(world.events(1, 0).take(), [here]);
}

#[test]
fn a_masked_event_waits() {
    let world = World::new();
    let (here, there) = world.connect();
    world.events(2, 0).mask(there);
    world.caller(1).send(here).unwrap();
    assert_eq!(world.upcalls[2].now(), [0, 0]);
    world.caller(2).unmask(there).unwrap();
    assert_eq!(world.upcalls[2].now(), [1, 0]);
    assert_eq!(world.events(2, 0).take(), [there]);
    world.caller(2).unmask(there).unwrap();
    assert_eq!(world.upcalls[2].now(), [1, 0]);
}

#[test]
fn binding_is_checked() {
    let world = World::new();
    let (one, two) = (world.caller(1), world.caller(2));
    let port = two.alloc_unbound(DomId::SELF, DomId(1)).unwrap();
    assert_eq!(
        world.caller(0).bind_interdomain(DomId(2), port),
        Err(Errno::Inval)
    );
    assert_eq!(one.bind_interdomain(DomId(2), Port(0)), Err(Errno::Inval));
    assert_eq!(
        one.bind_interdomain(DomId(2), Port(u32::MAX)),
        Err(Errno::Inval)
    );
    assert_eq!(one.bind_interdomain(DomId(9), port), Err(Errno::Srch));
    assert_eq!(one.alloc_unbound(DomId(2), DomId(1)), Err(Errno::Perm));
    let for_two = world.caller(0).alloc_unbound(DomId(2), DomId(1)).unwrap();
    assert_eq!(
        world.caller(0).status(DomId(2), for_two),
        Ok((Channel::Unbound(DomId(1)), 0))
    );
    assert_eq!(one.status(DomId(2), for_two), Err(Errno::Perm));

    assert_eq!(one.bind_virq(24, 0), Err(Errno::Inval));
    assert_eq!(
        one.bind_virq(3, 1),
        Err(Errno::Inval),
        "not a virtual CPU's own"
    );
    assert_eq!(one.bind_virq(0, 2), Err(Errno::NoEnt));
    let timer = one.bind_virq(0, 1).unwrap();
    assert_eq!(one.bind_virq(0, 1), Err(Errno::Exist));
    assert_eq!(one.bind_vcpu(timer, 0), Err(Errno::Inval));
    let other_timer = one.bind_virq(0, 0).unwrap();
    assert!(one.raise_virq(0, 0) && !one.raise_virq(5, 0));
    assert_eq!(world.events(1, 0).take(), [other_timer]);

    assert_eq!(one.bind_pirq(8), Err(Errno::Perm));
    let pirq = one.bind_pirq(9).unwrap();
    assert_eq!(one.bind_pirq(9), Err(Errno::Exist));
    assert!(one.raise_pirq(9));
    assert_eq!(one.send(pirq), Err(Errno::Inval));
    assert_eq!(world.events(1, 0).take(), [pirq]);

    let ipi = one.bind_ipi(1).unwrap();
    one.send(ipi).unwrap();
    assert_eq!(world.events(1, 1).take(), [ipi]);
    assert_eq!(one.bind_vcpu(ipi, 0), Err(Errno::Inval));
    assert_eq!(one.close(Port(77)), Err(Errno::Inval));
}

#[test]
fn a_closed_end_waits_for_the_other() {
    let world = World::new();
    let (here, there) = world.connect();
    world.caller(1).close(here).unwrap();
    assert_eq!(
        world.caller(2).status(DomId::SELF, there),
        Ok((Channel::Unbound(DomId(1)), 0))
    );
    world.caller(2).send(there).unwrap();
    assert_eq!(
        world.caller(1).bind_interdomain(DomId(2), there),
        Ok(here),
        "the port is free again"
    );
    assert!(world.channels.destroy(DomId(2)));
    assert_eq!(
        world.caller(1).status(DomId::SELF, here),
        Ok((Channel::Unbound(DomId(2)), 0))
    );
    world.caller(1).close(here).unwrap();

    // A connection of a domain with itself.
    let one = world.caller(1);
    let a = one.alloc_unbound(DomId::SELF, DomId::SELF).unwrap();
    let b = one.bind_interdomain(DomId::SELF, a).unwrap();
    world.events(1, 0).take();
    one.send(b).unwrap();
    assert_eq!(world.events(1, 0).take(), [a]);
    one.close(a).unwrap();
    assert_eq!(
        one.status(DomId::SELF, b),
        Ok((Channel::Unbound(DomId(1)), 0))
    );
}

#[test]
fn ports_run_out() {
    let world = World::new();
    let one = world.caller(1);
    for port in 1..4096 {
        assert_eq!(one.bind_ipi(0), Ok(Port(port)));
    }
    assert_eq!(one.bind_ipi(0), Err(Errno::NoSpc));
    one.reset(DomId::SELF).unwrap();
    assert_eq!(one.bind_ipi(0), Ok(Port(1)));
}

#[test]
fn queues_are_set_up_once() {
    let world = World::new();
    let two = world.caller(2);
    assert_eq!(two.expand_array(Frame::allocate()), Err(Errno::OpNotSupp));
    assert_eq!(two.init_control(0, Frame::allocate(), 4), Err(Errno::Inval));
    assert_eq!(
        two.init_control(0, Frame::allocate(), 4032),
        Err(Errno::Inval)
    );
    assert_eq!(two.init_control(2, Frame::allocate(), 0), Err(Errno::NoEnt));
    assert_eq!(two.set_priority(Port(1), 3), Err(Errno::NoSys));
    world.fifo();
    assert_eq!(two.init_control(0, Frame::allocate(), 0), Err(Errno::Inval));
    for _ in 1..128 {
        two.expand_array(Frame::allocate()).unwrap();
    }
    assert_eq!(two.expand_array(Frame::allocate()), Err(Errno::NoSpc));
}

#[test]
fn higher_priorities_come_first() {
    let world = World::new();
    let two = world.caller(2);
    let ports: Vec<_> = (0..4).map(|_| two.bind_ipi(0).unwrap()).collect();
    two.send(ports[3]).unwrap();
    let [mut events, _] = world.fifo();
    for (port, priority) in ports.iter().zip([15, 7, 0, 7]) {
        two.set_priority(*port, priority).unwrap();
    }
    assert_eq!(two.set_priority(ports[0], 16), Err(Errno::Inval));
    assert_eq!(events.take(), Some(ports[3]), "it was pending before");
    for port in &ports {
        two.send(*port).unwrap();
    }
    assert_eq!(world.upcalls[2].now(), [1, 0], "one is due already");
    let taken: Vec<_> = std::iter::from_fn(|| events.take()).collect();
    assert_eq!(taken, [2, 1, 3, 0].map(|index| ports[index]));
}

#[test]
fn events_move_with_their_virtual_cpu() {
    let world = World::new();
    let [mut zero, mut one] = world.fifo();
    let (here, there) = world.connect();
    let send = || world.caller(1).send(here).unwrap();
    send();
    world.caller(2).bind_vcpu(there, 1).unwrap();
    send();
    assert_eq!(
        (zero.take(), one.take()),
        (Some(there), None),
        "it was in a queue"
    );
    send();
    assert_eq!((zero.take(), one.take()), (None, Some(there)));
}

/// A guest that scribbles over its event words harms itself only: the hypervisor's loops end.
#[test]
fn scribbled_words_do_not_hold_anyone_up() {
    let world = World::new();
    let (control, words) = (Frame::allocate(), Frame::allocate());
    let two = world.caller(2);
    two.init_control(0, control, 0).unwrap();
    two.expand_array(words.clone()).unwrap();
    let ports: Vec<_> = (0..8).map(|_| two.bind_ipi(0).unwrap()).collect();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..200_000u32 {
                let word = words.u32((round as usize % 9) * 4).unwrap();
                word.store(round.wrapping_mul(0x9e37_79b9), Ordering::Relaxed);
            }
        });
        while !writer.is_finished() {
            for port in &ports {
                two.send(*port).unwrap();
                two.unmask(*port).unwrap();
            }
        }
    });
}

/// Nothing is lost when the sender and the receiver race.
#[test]
fn every_event_arrives() {
    for with_fifo in [false, true] {
        let world = World::new();
        let queues = with_fifo.then(|| world.fifo());
        let two = world.caller(2);
        let ports: Vec<_> = (0..64)
            .map(|_| two.alloc_unbound(DomId::SELF, DomId(1)).unwrap())
            .collect();
        let far: Vec<_> = ports
            .iter()
            .map(|&port| world.caller(1).bind_interdomain(DomId(2), port).unwrap())
            .collect();
        let mut left: BTreeSet<_> = ports.iter().copied().collect();
        thread::scope(|scope| {
            scope.spawn(|| {
                far.iter()
                    .for_each(|&port| world.caller(1).send(port).unwrap())
            });
            let mut queues = queues;
            while !left.is_empty() {
                let taken = match &mut queues {
                    Some([zero, _]) => std::iter::from_fn(|| zero.take()).collect(),
                    None => world.events(2, 0).take(),
                };
                for port in taken {
                    assert!(left.remove(&port), "{port:?} came twice");
                }
                thread::yield_now();
            }
        });
    }
}

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Mask(usize),
    Unmask(usize),
    Take,
    Move(usize, usize),
    Priority(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let port = || 0usize..6;
    prop_oneof![
        4 => port().prop_map(Step::Send),
        1 => port().prop_map(Step::Mask),
        2 => port().prop_map(Step::Unmask),
        2 => Just(Step::Take),
        1 => (port(), 0usize..2).prop_map(|(port, vcpu)| Step::Move(port, vcpu)),
        1 => (port(), 0u32..16).prop_map(|(port, priority)| Step::Priority(port, priority)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// An event that was sent is taken once, when it is not masked. The model is a set of pending ports.
    #[test]
    fn events_are_a_set(steps in prop::collection::vec(step(), 1..80), with_fifo: bool) {
        let world = World::new();
        let mut queues = with_fifo.then(|| world.fifo());
        let (one, two) = (world.caller(1), world.caller(2));
        let ports: Vec<_> = (0..6).map(|_| two.alloc_unbound(DomId::SELF, DomId(1)).unwrap()).collect();
        let far: Vec<_> = ports.iter().map(|&port| one.bind_interdomain(DomId(2), port).unwrap()).collect();
        let (mut pending, mut masked) = (BTreeSet::new(), BTreeSet::new());
        let mut take = |pending: &mut BTreeSet<Port>, masked: &BTreeSet<Port>| {
            let taken: BTreeSet<_> = match &mut queues {
                Some(queues) => queues.iter_mut().flat_map(|queue| std::iter::from_fn(|| queue.take())).collect(),
                None => (0..2).flat_map(|vcpu| world.events(2, vcpu).take()).collect(),
            };
            let expected: BTreeSet<_> = pending.difference(masked).copied().collect();
            pending.retain(|port| masked.contains(port));
            (taken, expected)
        };
        for step in steps {
            match step {
                Step::Send(index) => {
                    one.send(far[index]).unwrap();
                    pending.insert(ports[index]);
                }
                // With queues see `masked_events_leave_their_queue`.
                Step::Mask(_) if with_fifo => {}
                Step::Mask(index) => {
                    world.events(2, 0).mask(ports[index]);
                    masked.insert(ports[index]);
                }
                Step::Unmask(index) => {
                    two.unmask(ports[index]).unwrap();
                    masked.remove(&ports[index]);
                }
                Step::Take => {
                    let (taken, expected) = take(&mut pending, &masked);
                    prop_assert_eq!(taken, expected);
                }
                Step::Move(index, vcpu) => two.bind_vcpu(ports[index], vcpu).unwrap(),
                Step::Priority(index, priority) => {
                    prop_assert_eq!(two.set_priority(ports[index], priority).is_ok(), with_fifo);
                }
            }
        }
        for port in &ports {
            two.unmask(*port).unwrap();
        }
        let (taken, expected) = take(&mut pending, &BTreeSet::new());
        prop_assert_eq!(taken, expected);
    }
}

#[test]
fn masked_events_leave_their_queue() {
    let world = World::new();
    let [mut events, _] = world.fifo();
    let (here, there) = world.connect();
    events.mask(there);
    world.caller(1).send(here).unwrap();
    assert_eq!(events.take(), None);
    world.caller(2).unmask(there).unwrap();
    assert_eq!(events.take(), Some(there));
    // Masked when it is in the queue.
    world.caller(1).send(here).unwrap();
    events.mask(there);
    assert_eq!(events.take(), None);
    world.caller(2).unmask(there).unwrap();
    assert_eq!(events.take(), Some(there));
}
