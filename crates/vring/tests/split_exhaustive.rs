//! Every small split ring, against a model written from the text of the specification.
//!
//! THREATS: descriptor loop, `next` out of range, nested indirect, indirect length 0 or not a multiple of 16, chain longer than the
//! queue, INDIRECT with NEXT (vm-virtio #95 #220, openvmm #2986 #3137). A bad chain is an error that names its head.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod ring;

use ring::{Desc, SplitRing};
use vring::{Error, Features, Rule};

const TABLE: u64 = 0x8000;
const BUFFER: u64 = 0x9000;

/// What a chain should be: lengths of its readable and writable bytes, or the rule it breaks.
type Outcome = Result<(u64, u64), Rule>;

struct Walk {
    size: usize,
    count: usize,
    readable: u64,
    writable: u64,
    seen_writable: bool,
}

impl Walk {
    fn buffer(&mut self, desc: &Desc) -> Result<(), Rule> {
        self.count += 1;
        if self.count > self.size {
            return Err(Rule::TooLong);
        }
        if desc.flags & Desc::WRITE != 0 {
            self.seen_writable = true;
            self.writable += u64::from(desc.len);
        } else {
            if self.seen_writable {
                return Err(Rule::Order);
            }
            self.readable += u64::from(desc.len);
        }
        Ok(())
    }
}

/// The chain at `head` of `ring`, whose indirect descriptors all point to `table`.
fn model(ring: &[Desc], table: &[Desc], head: u16, indirect: bool) -> Outcome {
    if usize::from(head) >= ring.len() {
        return Err(Rule::Head);
    }
    let mut walk = Walk {
        size: ring.len(),
        count: 0,
        readable: 0,
        writable: 0,
        seen_writable: false,
    };
    let mut desc = ring[usize::from(head)];
    loop {
        if desc.flags & Desc::INDIRECT != 0 {
            if !indirect {
                return Err(Rule::IndirectFeature);
            }
            if desc.flags & Desc::NEXT != 0 {
                return Err(Rule::IndirectNext);
            }
            if desc.len == 0 || !desc.len.is_multiple_of(16) {
                return Err(Rule::IndirectLength(desc.len));
            }
            let table = &table[..desc.len as usize / 16];
            let mut entry = table[0];
            loop {
                if entry.flags & Desc::INDIRECT != 0 {
                    return Err(Rule::IndirectNested);
                }
                walk.buffer(&entry)?;
                if entry.flags & Desc::NEXT == 0 {
                    return Ok((walk.readable, walk.writable));
                }
                entry = *table
                    .get(usize::from(entry.next))
                    .ok_or(Rule::Next(entry.next))?;
            }
        }
        walk.buffer(&desc)?;
        if desc.flags & Desc::NEXT == 0 {
            return Ok((walk.readable, walk.writable));
        }
        desc = *ring
            .get(usize::from(desc.next))
            .ok_or(Rule::Next(desc.next))?;
    }
}

/// Every sequence of `n` of these.
fn sequences<T: Copy>(items: &[T], n: usize) -> Vec<Vec<T>> {
    (0..n).fold(vec![Vec::new()], |sequences, _| {
        sequences
            .iter()
            .flat_map(|sequence| {
                items
                    .iter()
                    .map(|item| [sequence.as_slice(), &[*item]].concat())
            })
            .collect()
    })
}

fn check(ring: &SplitRing, descs: &[Desc], table: &[Desc], head: u16) {
    for (index, desc) in (0..).zip(descs) {
        ring.write_desc(index, *desc);
    }
    let mut queue = ring.queue();
    let expected = model(
        descs,
        table,
        head,
        ring.config.features.contains(Features::INDIRECT_DESC),
    );
    let got = queue.pop(&&*ring.memory);
    match expected {
        Ok(lengths) => {
            let chain = got.unwrap().unwrap();
            assert_eq!(
                (chain.readable_len(), chain.writable_len()),
                lengths,
                "{descs:x?} {table:x?} {head}"
            );
            let bytes = |slices: &mut dyn Iterator<Item = usize>| slices.sum::<usize>() as u64;
            assert_eq!(
                bytes(&mut chain.reader().slices().map(|slice| slice.len())),
                lengths.0
            );
            assert_eq!(
                bytes(&mut chain.writer().slices().map(|slice| slice.len())),
                lengths.1
            );
            assert_eq!(chain.head(), head);
        }
        Err(rule) => {
            assert_eq!(
                got.err(),
                Some(Error::Chain { head, rule }),
                "{descs:x?} {table:x?} {head}"
            );
            assert_eq!(queue.pop(&&*ring.memory).err(), Some(Error::Broken));
        }
    }
}

fn descs(flags: &[u16], nexts: &[u16], lens: &[u32]) -> Vec<Desc> {
    let mut descs = Vec::new();
    for &flags in flags {
        for &len in lens {
            for &next in nexts {
                let addr = if flags & Desc::INDIRECT != 0 {
                    TABLE
                } else {
                    BUFFER
                };
                // `next` without NEXT is read by nobody.
                if flags & Desc::NEXT != 0 || next == nexts[0] {
                    descs.push(Desc {
                        addr,
                        len,
                        flags,
                        next,
                    });
                }
            }
        }
    }
    descs
}

fn with_head(size: u16, features: Features, head: u16) -> SplitRing {
    let ring = SplitRing::new(size, Features::VERSION_1 | features);
    ring.offer(head);
    ring
}

#[test]
fn direct_chains() {
    let flags = [0, Desc::NEXT, Desc::WRITE, Desc::NEXT | Desc::WRITE];
    for (size, nexts) in [
        (1, &[0, 1, 0xffff][..]),
        (2, &[0, 1, 2]),
        (4, &[1, 2, 3, 4]),
    ] {
        let lens: &[u32] = if size == 4 { &[8] } else { &[0, 8] };
        for head in [0, size - 1, size] {
            let ring = with_head(size, Features::empty(), head);
            for descs in sequences(&descs(&flags, nexts, lens), size.into()) {
                check(&ring, &descs, &[], head);
            }
        }
    }
}

#[test]
fn indirect_flags_in_the_ring() {
    let flags: Vec<u16> = (0..8).collect();
    for features in [Features::empty(), Features::INDIRECT_DESC] {
        let ring = with_head(2, features, 0);
        let table = [Desc::read(BUFFER, 4), Desc::write(BUFFER, 4)];
        ring.write_table(TABLE, &[0], &table[..1]);
        ring.write_table(TABLE, &[1], &table[1..]);
        for descs in sequences(&descs(&flags, &[0, 1, 2], &[0, 8, 15, 16, 32]), 2) {
            check(&ring, &descs, &table, 0);
        }
    }
}

#[test]
fn indirect_tables() {
    let flags: Vec<u16> = (0..8).collect();
    let entries = descs(&flags, &[0, 1, 2], &[8]);
    for (size, before) in [(1u16, 0), (2, 0), (2, 1), (4, 1)] {
        let ring = with_head(size, Features::INDIRECT_DESC, 0);
        for entries in sequences(&entries, 2) {
            for (index, entry) in (0..).zip(&entries) {
                ring.write_desc_at(TABLE, index, *entry);
            }
            for len in [1, 2] {
                let mut descs = vec![Desc::table(TABLE, len); usize::from(size)];
                if before == 1 {
                    descs[0] = Desc {
                        addr: BUFFER,
                        len: 8,
                        flags: Desc::NEXT,
                        next: size - 1,
                    };
                }
                check(&ring, &descs, &entries, 0);
            }
        }
    }
}
