//! The device side of the split ring: what a driver makes available is what a device gets.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod ring;

use ring::{Desc, SplitRing};
use vring::{Features, QueueState, SplitState, View};

#[test]
fn chains_come_in_order_and_go_back_in_any() {
    let ring = SplitRing::new(8, Features::VERSION_1);
    let mut queue = ring.queue();
    assert!(queue.pop(&ring.view()).unwrap().is_none());
    for head in [3, 5, 0] {
        ring.write_desc(head, Desc::read(0x8000 + u64::from(head), 1));
        ring.offer(head);
    }
    let chains: Vec<_> = (0..3)
        .map(|_| queue.pop(&ring.view()).unwrap().unwrap())
        .collect();
    assert_eq!(
        chains.iter().map(|chain| chain.head()).collect::<Vec<_>>(),
        [3, 5, 0]
    );
    assert!(queue.pop(&ring.view()).unwrap().is_none());
    for (chain, head) in chains.into_iter().rev().zip([0, 5, 3]) {
        queue.push(chain, 0).unwrap();
        assert_eq!(ring.used().last(), Some(&(head, 0)));
    }
}

#[test]
fn chains_put_back_come_again_in_their_order() {
    let ring = SplitRing::new(8, Features::VERSION_1);
    let mut queue = ring.queue();
    let mut other = ring.queue();
    for head in [3, 5, 0] {
        ring.write_desc(head, Desc::read(0x8000, 1));
        ring.offer(head);
    }
    let first = queue.pop(&ring.view()).unwrap().unwrap();
    let second = queue.pop(&ring.view()).unwrap().unwrap();
    queue.put_back(second).unwrap();
    queue.put_back(first).unwrap();
    // Another chain is worth waking for, those put back are not.
    assert!(queue.enable_kicks().unwrap());
    let QueueState::Split(state) = queue.save() else {
        panic!()
    };
    assert_eq!(state.in_flight, [3, 5]);
    for head in [3, 5, 0] {
        let chain = queue.pop(&ring.view()).unwrap().unwrap();
        assert_eq!(chain.head(), head);
        queue.put_back(chain).unwrap();
        assert!(queue.enable_kicks().unwrap() == (head != 0));
        let chain = queue.pop(&ring.view()).unwrap().unwrap();
        queue.push(chain, 0).unwrap();
    }
    assert_eq!(ring.used(), [(3, 0), (5, 0), (0, 0)]);
    // A chain of another queue is refused.
    let stray = other.pop(&ring.view()).unwrap().unwrap();
    assert!(queue.put_back(stray).is_err());
}

#[test]
fn a_chain_is_read_and_written_across_descriptors() {
    let ring = SplitRing::new(8, Features::VERSION_1);
    let mut queue = ring.queue();
    ring.write(0x8000, b"abc");
    ring.write(0x9000, b"defgh");
    ring.write_chain(
        &[1, 4, 2, 7],
        &[
            Desc::read(0x8000, 3),
            Desc::read(0x9000, 5),
            Desc::write(0xa000, 2),
            Desc::write(0xb000, 6),
        ],
    );
    ring.offer(1);
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 8));
    let (mut reader, mut writer) = (chain.reader(), chain.writer());
    assert_eq!(
        reader.read_obj::<u32>().unwrap(),
        u32::from_ne_bytes(*b"abcd")
    );
    let rest = reader.split_off(3).unwrap();
    assert_eq!((reader.remaining(), rest.remaining()), (3, 1));
    assert!(reader.read_obj::<u32>().is_err());
    let mut bytes = [0; 8];
    assert_eq!((reader.read(&mut bytes), &bytes[..3]), (3, &b"efg"[..]));
    writer.write_all(b"12345").unwrap();
    assert_eq!(writer.written(), 5);
    queue.push(chain, 5).unwrap();
    assert_eq!(ring.used(), [(1, 5)]);
    assert_eq!(ring.read(0xa000, 2), b"12");
    assert_eq!(ring.read(0xb000, 3), b"345");
}

#[test]
fn an_indirect_table_ends_a_chain() {
    let ring = SplitRing::new(4, Features::VERSION_1 | Features::INDIRECT_DESC);
    let mut queue = ring.queue();
    ring.write_table(
        0x8000,
        &[0, 2, 1],
        &[
            Desc::read(0x9000, 4),
            Desc::write(0x9100, 8),
            Desc::write(0x9200, 8),
        ],
    );
    ring.write_chain(&[0, 1], &[Desc::read(0x9300, 4), Desc::table(0x8000, 3)]);
    ring.offer(0);
    let chain = queue.pop(&ring.view()).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (8, 16));
    queue.push(chain, 16).unwrap();
}

#[test]
fn chains_in_flight_move_between_threads_and_are_saved() {
    let ring = SplitRing::new(4, Features::VERSION_1);
    let mut queue = ring.queue();
    for head in [2, 0, 1] {
        ring.write_desc(head, Desc::write(0x8000, 8));
        ring.offer(head);
    }
    let view = View::new(&ring.memory);
    let first = queue.pop(&view).unwrap().unwrap();
    let second = queue.pop(&view).unwrap().unwrap();
    let first = std::thread::spawn(move || {
        first.writer().write_all(b"thread").unwrap();
        first
    })
    .join()
    .unwrap();
    let state = queue.save();
    assert_eq!(
        state,
        QueueState::Split(SplitState {
            next_avail: 2,
            next_used: 0,
            in_flight: vec![2, 0]
        })
    );
    queue.push(first, 6).unwrap();
    drop(second);
    let saved = serde_json::to_string(&queue.save()).unwrap();
    drop(queue);

    let mut queue = ring
        .restore(&serde_json::from_str(&saved).unwrap())
        .unwrap();
    for head in [0, 1] {
        let chain = queue.pop(&view).unwrap().unwrap();
        assert_eq!(chain.head(), head);
        queue.push(chain, 0).unwrap();
    }
    assert!(queue.pop(&view).unwrap().is_none());
    assert_eq!(ring.used(), [(2, 6), (0, 0), (1, 0)]);
}
