//! THREATS: snapshot bytes (CVE-2023-50711, openvmm InvalidSavedState). Any state at all is accepted or refused, never a panic; what is accepted
//! satisfies the invariants, and is what is saved again.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod ring;

use proptest::collection::vec;
use proptest::prelude::*;
use ring::SplitRing;
use vring::{Features, PackedChain, PackedPosition, PackedState, Queue, QueueState, SplitState};

fn index() -> impl Strategy<Value = u16> {
    prop_oneof![0u16..8, any::<u16>()]
}

fn split() -> impl Strategy<Value = SplitState> {
    let heads = prop_oneof![
        Just(vec![0, 1]),
        vec(0u16..5, 0..5),
        vec(any::<u16>(), 0..5)
    ];
    (index(), index(), heads, any::<bool>()).prop_map(|(next_avail, next_used, in_flight, fits)| {
        let count = u16::try_from(in_flight.len()).unwrap();
        let next_used = if fits {
            next_avail.wrapping_sub(count)
        } else {
            next_used
        };
        SplitState {
            next_avail,
            next_used,
            in_flight,
        }
    })
}

fn packed() -> impl Strategy<Value = PackedState> {
    let position =
        || (index(), any::<bool>()).prop_map(|(slot, wrap)| PackedPosition { slot, wrap });
    let descriptor = (any::<u64>(), any::<u32>(), any::<u16>());
    let chain = (index(), vec(descriptor, 0..4))
        .prop_map(|(id, descriptors)| PackedChain { id, descriptors });
    (position(), position(), vec(chain, 0..4)).prop_map(|(next_avail, next_used, in_flight)| {
        PackedState {
            next_avail,
            next_used,
            in_flight,
        }
    })
}

/// Serves a queue to its end, whatever it holds.
fn serve(queue: &mut Queue<ring::Memory>, ring: &SplitRing) {
    for _ in 0..16 {
        match queue.pop(&ring.view()) {
            Ok(Some(chain)) => queue.push(chain, 0).unwrap(),
            Ok(None) | Err(_) => break,
        }
    }
    let _ = queue.needs_interrupt();
    let _ = queue.enable_kicks();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn split_states(state in split(), in_order: bool) {
        let features = if in_order { Features::VERSION_1 | Features::IN_ORDER } else { Features::VERSION_1 };
        let ring = SplitRing::new(4, features);
        let saved = QueueState::Split(state.clone());
        if let Ok(mut queue) = ring.restore(&saved) {
            let mut heads = state.in_flight.clone();
            heads.sort_unstable();
            heads.dedup();
            prop_assert_eq!(heads.len(), state.in_flight.len());
            prop_assert!(heads.iter().all(|head| *head < 4));
            prop_assert_eq!(usize::from(state.next_avail.wrapping_sub(state.next_used)), heads.len());
            prop_assert_eq!(queue.save(), saved);
            serve(&mut queue, &ring);
        }
    }

    #[test]
    fn packed_states(state in packed(), size in 1u16..8) {
        let ring = SplitRing::new(size, Features::VERSION_1 | Features::RING_PACKED | Features::INDIRECT_DESC);
        if let Ok(mut queue) = ring.restore(&QueueState::Packed(state.clone())) {
            let descriptors: usize = state.in_flight.iter().map(|chain| chain.descriptors.len()).sum();
            prop_assert!(descriptors <= usize::from(size));
            prop_assert!(state.next_avail.slot < size && state.next_used.slot < size);
            prop_assert!(state.in_flight.iter().all(|chain| chain.id < size && !chain.descriptors.is_empty()));
            let QueueState::Packed(saved) = queue.save() else { panic!() };
            prop_assert_eq!(saved.in_flight.len(), state.in_flight.len());
            serve(&mut queue, &ring);
        }
    }
}

#[test]
fn the_state_of_another_format_is_refused() {
    let split = QueueState::Split(SplitState::default());
    let packed = QueueState::Packed(PackedState {
        next_avail: PackedPosition::default(),
        next_used: PackedPosition::default(),
        in_flight: Vec::new(),
    });
    for (features, state) in [
        (Features::RING_PACKED, split),
        (Features::VERSION_1, packed),
    ] {
        assert!(SplitRing::new(4, features).restore(&state).is_err());
    }
}
