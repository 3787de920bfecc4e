//! Rings: what is put in comes out, notifications are neither lost nor superfluous, and the other end is not believed.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use grant_table::frame::Frame;
use grant_table::ring::{Back, Front, RingError};
use grant_table::spec::ring::{REQUESTS, RESPONSES};
use proptest::prelude::*;

type Request = [u64; 14];
type Response = [u64; 2];

fn pair(
    pages: usize,
) -> (
    Vec<Frame>,
    Front<Request, Response>,
    Back<Request, Response>,
) {
    let pages: Vec<_> = (0..pages).map(|_| Frame::allocate()).collect();
    let front = Front::new(pages.clone()).unwrap();
    let back = Back::new(pages.clone()).unwrap();
    (pages, front, back)
}

#[test]
fn sizes_are_powers_of_two_that_fit() {
    assert_eq!(
        [1, 2, 4, 16].map(|pages| pair(pages).2.size()),
        [32, 64, 128, 512]
    );
    assert!(matches!(
        Front::<Request, Response>::new(Vec::new()),
        Err(RingError::Pages(0))
    ));
    assert!(matches!(
        Back::<[u8; 4096], Response>::new(vec![Frame::allocate()]),
        Err(RingError::Pages(1))
    ));
}

#[test]
fn a_full_ring_takes_no_more() {
    let (_, mut front, mut back) = pair(1);
    for value in 0..32 {
        front.request(&[value; 14]).unwrap();
    }
    assert_eq!(front.request(&[0; 14]), Err(RingError::Full));
    assert_eq!(back.take(), Ok(None), "not published");
    assert!(front.publish());
    for value in 0..32 {
        assert_eq!(back.take(), Ok(Some([value; 14])));
    }
    assert_eq!(back.take(), Ok(None));
    back.respond(&[7; 2]).unwrap();
    assert_eq!(front.take(), Ok(None), "not published");
    assert!(back.publish());
    assert_eq!(front.take(), Ok(Some([7; 2])));
    front.request(&[1; 14]).unwrap();
}

/// XSA-155 and its like: a producer that jumps ahead, or back.
#[test]
fn producers_that_jump_are_refused() {
    for jump in [33, 34, 1 << 31, u32::MAX] {
        let (pages, mut front, mut back) = pair(1);
        front.request(&[1; 14]).unwrap();
        assert!(front.publish());
        assert!(back.take().unwrap().is_some());
        pages[0]
            .u32(REQUESTS)
            .unwrap()
            .store(jump, Ordering::SeqCst);
        assert_eq!(
            back.take(),
            Err(RingError::Overflow {
                index: jump,
                limit: 32
            })
        );
    }
    let (pages, _, mut back) = pair(1);
    pages[0].u32(REQUESTS).unwrap().store(2, Ordering::SeqCst);
    assert!(back.take().unwrap().is_some() && back.take().unwrap().is_some());
    pages[0].u32(REQUESTS).unwrap().store(1, Ordering::SeqCst);
    assert!(back.take().is_err(), "it goes back");
}

/// Responses before requests, which front ends used to believe.
#[test]
fn responses_without_requests_are_refused() {
    let (pages, mut front, mut back) = pair(1);
    assert_eq!(back.respond(&[0; 2]), Err(RingError::NoRequest));
    pages[0].u32(RESPONSES).unwrap().store(1, Ordering::SeqCst);
    assert_eq!(
        front.take(),
        Err(RingError::Overflow { index: 1, limit: 0 })
    );
    pages[0]
        .u32(RESPONSES)
        .unwrap()
        .store(u32::MAX, Ordering::SeqCst);
    assert!(front.take().is_err());
}

/// XSA-155: what was taken does not change when the other end goes on writing.
#[test]
fn requests_are_copies() {
    let (pages, mut front, mut back) = pair(1);
    let stop = AtomicBool::new(false);
    front.request(&[5; 14]).unwrap();
    assert!(front.publish());
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut value = 0u64;
            while !stop.load(Ordering::Relaxed) {
                value = value.wrapping_add(1);
                for word in 0..14 {
                    pages[0]
                        .u64(64 + 8 * word)
                        .unwrap()
                        .store(value, Ordering::Relaxed);
                }
            }
        });
        let request = back.take().unwrap().unwrap();
        let before = request;
        for _ in 0..1000 {
            assert_eq!(std::hint::black_box(&request), &before);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Both ends on threads, each sleeping when it is told that it will be notified: nobody sleeps for ever.
#[test]
fn nobody_waits_for_ever() {
    const COUNT: u64 = 4_000;
    let (_, mut front, mut back) = pair(1);
    let (kick, kicked) = std::sync::mpsc::channel();
    let (call, called) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut expected = 0;
            while expected < COUNT {
                while let Some(request) = back.take().unwrap() {
                    assert_eq!(request[0], expected);
                    back.respond(&[expected, 0]).unwrap();
                    expected += 1;
                }
                if back.publish() {
                    call.send(()).unwrap();
                }
                if expected < COUNT && !back.finish() {
                    kicked.recv().unwrap();
                }
            }
        });
        let (mut made, mut taken) = (0, 0);
        while taken < COUNT {
            while made < COUNT && front.request(&[made; 14]).is_ok() {
                made += 1;
            }
            if front.publish() {
                kick.send(()).unwrap();
            }
            while let Some(response) = front.take().unwrap() {
                assert_eq!(response[0], taken);
                taken += 1;
            }
            if taken < made && !front.finish() {
                called.recv().unwrap();
            }
        }
    });
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Request,
    Publish,
    Take,
    Respond,
    PublishBack,
    TakeBack,
    Finish,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Against two queues. A notification comes if the other end asked for one since it last looked.
    #[test]
    fn rings_are_queues(pages in 1usize..3, steps in prop::collection::vec(prop_oneof![
        Just(Step::Request), Just(Step::Publish), Just(Step::Take), Just(Step::Respond),
        Just(Step::PublishBack), Just(Step::TakeBack), Just(Step::Finish),
    ], 0..400)) {
        let (_memory, mut front, mut back) = pair(pages);
        let (mut made, mut sent) = (VecDeque::new(), VecDeque::new());
        let (mut taken, mut answered, mut returned) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let (mut next, mut outstanding, mut asked) = (0u64, 0u32, true);
        for step in steps {
            match step {
                Step::Request => {
                    let fits = outstanding < front.size();
                    prop_assert_eq!(front.request(&[next; 14]).is_ok(), fits);
                    if fits {
                        made.push_back(next);
                        outstanding += 1;
                        next += 1;
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(front.publish(), asked && !made.is_empty());
                    asked &= made.is_empty();
                    sent.append(&mut made);
                }
                Step::Take => {
                    let request = back.take().unwrap();
                    prop_assert_eq!(request, sent.pop_front().map(|value| [value; 14]));
                    taken.extend(request.map(|request| request[0]));
                }
                Step::Respond => {
                    let value = taken.pop_front();
                    prop_assert_eq!(back.respond(&[value.unwrap_or(0), 1]).is_ok(), value.is_some());
                    answered.extend(value);
                }
                Step::PublishBack => {
                    let _notify = back.publish();
                    returned.append(&mut answered);
                }
                Step::TakeBack => {
                    let response = front.take().unwrap();
                    prop_assert_eq!(response, returned.pop_front().map(|value| [value, 1]));
                    outstanding -= u32::from(response.is_some());
                }
                Step::Finish => {
                    let more = back.finish();
                    prop_assert_eq!(more, !sent.is_empty());
                    asked |= !more;
                }
            }
        }
    }
}
