//! Shares pages and an event channel with a program of another domain, which is 2 to this one, as this one is to it.
//!
//! `peer grant` grants two pages and prints `peer: granted REFERENCE REFERENCE PORT`; `peer map REFERENCE REFERENCE PORT`, in the other domain,
//! maps them, reads what the first says, answers in the second, and is told that this has arrived.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an example of few words"
)]

#[cfg(target_os = "linux")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["grant"] => guest::grant(),
        ["map", first, second, port] => {
            guest::map([first, second, port].map(|number| number.parse().unwrap()));
        }
        _ => panic!("usage: peer grant | peer map REFERENCE REFERENCE PORT"),
    }
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod guest {
    use std::time::Duration;

    use grant_table::frame::Frame;
    use grant_table::guest::Access;
    use grant_table::linux::{EventDevice, GrantAllocator, GrantDevice};
    use grant_table::spec::event::Port;
    use grant_table::spec::grant::GrantRef;
    use grant_table::spec::{DomId, PAGE_SIZE};

    const OTHER: DomId = DomId(2);
    /// How long the other program may take to do its part.
    const PATIENCE: Duration = Duration::from_secs(100);

    /// What one side writes, so that the other sees all bytes of a page.
    fn text(seed: u8) -> [u8; PAGE_SIZE] {
        let mut byte = seed;
        [0; PAGE_SIZE].map(|_| {
            byte = byte.wrapping_mul(5).wrapping_add(17);
            byte
        })
    }

    fn read(frame: &Frame) -> [u8; PAGE_SIZE] {
        let mut bytes = [0; PAGE_SIZE];
        assert!(frame.read(0, &mut bytes));
        bytes
    }

    fn say(what: &str, right: bool) {
        println!("peer: {what}: {}", if right { "ok" } else { "FAILED" });
    }

    /// Waits for events of the port until a page holds what is expected.
    fn wait_for(events: &EventDevice, port: Port, frame: &Frame, expected: u8) -> bool {
        while read(frame) != text(expected) {
            if !events.wait(PATIENCE).unwrap() {
                return false;
            }
            let taken = events.take().unwrap();
            assert!(taken.iter().all(|taken| *taken == port));
            events.unmask(&taken).unwrap();
        }
        true
    }

    pub fn grant() {
        let grants = GrantAllocator::open().unwrap();
        let events = EventDevice::open().unwrap();
        let pages = grants.allocate(OTHER, 2, Access::ReadWrite).unwrap();
        let [own, answer] = [0, 1].map(|page| pages.frame(page).unwrap());
        assert!(own.write(0, &text(1)));
        let port = events.bind_unbound(OTHER).unwrap();
        let references = pages.references();
        println!(
            "peer: granted {} {} {}",
            references[0].0, references[1].0, port.0
        );
        say("the answer", wait_for(&events, port, &answer, 2));
        assert!(own.write(0, &text(3)));
        events.notify(port).unwrap();
        // The other one has let go of all.
        say("the end", wait_for(&events, port, &answer, 4));
        drop(pages);
        events.unbind(port).unwrap();
    }

    pub fn map([first, second, port]: [u32; 3]) {
        let device = GrantDevice::open().unwrap();
        let events = EventDevice::open().unwrap();
        let never_granted = GrantRef(first + 100);
        let denied = device.map(OTHER, &[never_granted], Access::ReadWrite);
        say("what is not granted cannot be mapped", denied.is_err());
        let references = [GrantRef(first), GrantRef(second)];
        let pages = device.map(OTHER, &references, Access::ReadWrite).unwrap();
        let [theirs, answer] = [0, 1].map(|page| pages.frame(page).unwrap());
        say("the page", read(&theirs) == text(1));
        let seen = device.map(OTHER, &references[..1], Access::ReadOnly);
        let same = seen.is_ok_and(|seen| read(&seen.frame(0).unwrap()) == text(1));
        say("the page, to be read only", same);
        assert!(answer.write(0, &text(2)));
        let port = events.bind_interdomain(OTHER, Port(port)).unwrap();
        events.notify(port).unwrap();
        say("the event", wait_for(&events, port, &theirs, 3));
        assert!(answer.write(0, &text(4)));
        drop((theirs, answer, pages));
        events.notify(port).unwrap();
        let wrong = events.bind_interdomain(OTHER, Port(4000));
        say("a port that does not wait cannot be had", wrong.is_err());
        events.unbind(port).unwrap();
    }
}
