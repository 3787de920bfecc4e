//! The store through its pages: values, permissions, watches, transactions, and domains that do not keep to the rules.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use grant_table::frame::Frame;
use grant_table::spec::DomId;
use grant_table::spec::xenbus::XenbusState;
use grant_table::spec::xenstore::{kind, page};
use grant_table::xenbus::{Action, Role, closed, react};
use grant_table::xenstore::{Connection, Message, PageError, Quota, StoreClient, XenStore};
use proptest::prelude::*;

struct Client {
    client: StoreClient,
    connection: Connection,
    events: Vec<String>,
}

impl Client {
    fn new(store: &mut XenStore, domain: u16) -> Self {
        store.introduce(DomId(domain));
        let page = Frame::allocate();
        Self {
            client: StoreClient::new(page.clone()),
            connection: Connection::new(DomId(domain), page),
            events: Vec::new(),
        }
    }

    /// Takes what has come, also events; the answer if there is one.
    fn poll(&mut self, store: &mut XenStore) -> Option<Message> {
        let mut answer = None;
        loop {
            let served = self.connection.serve(store).unwrap();
            let (message, _) = self.client.take().unwrap();
            match message {
                Some(message) if message.kind == kind::WATCH_EVENT => {
                    self.events.push(
                        String::from_utf8(message.payload)
                            .unwrap()
                            .replace('\0', " "),
                    );
                }
                Some(message) => answer = Some(message),
                None if !served => return answer,
                None => {}
            }
        }
    }

    fn ask(
        &mut self,
        store: &mut XenStore,
        kind: u32,
        transaction: u32,
        text: &str,
    ) -> Result<String, String> {
        let payload = text.as_bytes().to_vec();
        self.client
            .send(&Message {
                kind,
                request: 7,
                transaction,
                payload,
            })
            .unwrap();
        let answer = self.poll(store).unwrap();
        assert_eq!((answer.request, answer.transaction), (7, transaction));
        let text = String::from_utf8(answer.payload).unwrap();
        if answer.kind == kind::ERROR {
            Err(text.trim_end_matches('\0').to_owned())
        } else {
            Ok(text)
        }
    }

    fn events(&mut self, store: &mut XenStore) -> Vec<String> {
        assert_eq!(self.poll(store), None);
        std::mem::take(&mut self.events)
    }
}

/// A store in which domain 1 has a node of its own.
fn world() -> (XenStore, Client, Client) {
    let mut store = XenStore::new(Quota::default());
    let mut zero = Client::new(&mut store, 0);
    let one = Client::new(&mut store, 1);
    zero.ask(&mut store, kind::MKDIR, 0, "/local/domain/1\0")
        .unwrap();
    zero.ask(&mut store, kind::SET_PERMS, 0, "/local/domain/1\0n1\0")
        .unwrap();
    (store, zero, one)
}

#[test]
fn values_are_written_listed_and_removed() {
    let (mut store, mut zero, mut one) = world();
    one.ask(&mut store, kind::WRITE, 0, "device/vbd/51712/state\x001")
        .unwrap();
    assert_eq!(
        zero.ask(
            &mut store,
            kind::READ,
            0,
            "/local/domain/1/device/vbd/51712/state\0"
        )
        .unwrap(),
        "1"
    );
    one.ask(&mut store, kind::WRITE, 0, "device/vif\0").unwrap();
    assert_eq!(
        one.ask(&mut store, kind::DIRECTORY, 0, "device\0").unwrap(),
        "vbd\0vif\0"
    );
    assert_eq!(
        one.ask(&mut store, kind::READ, 0, "device/vif\0").unwrap(),
        ""
    );
    assert_eq!(
        one.ask(&mut store, kind::READ, 0, "nothing\0"),
        Err("ENOENT".into())
    );
    one.ask(&mut store, kind::RM, 0, "device\0").unwrap();
    one.ask(&mut store, kind::RM, 0, "device\0").unwrap();
    assert_eq!(
        one.ask(&mut store, kind::DIRECTORY, 0, "device/vbd\0"),
        Err("ENOENT".into())
    );
    assert_eq!(
        zero.ask(&mut store, kind::RM, 0, "/\0"),
        Err("EINVAL".into())
    );
    assert_eq!(
        one.ask(&mut store, kind::GET_DOMAIN_PATH, 0, "1\0")
            .unwrap(),
        "/local/domain/1\0"
    );
    assert_eq!(
        one.ask(&mut store, kind::IS_DOMAIN_INTRODUCED, 0, "1\0")
            .unwrap(),
        "T\0"
    );
    assert_eq!(
        one.ask(&mut store, kind::IS_DOMAIN_INTRODUCED, 0, "2\0")
            .unwrap(),
        "F\0"
    );
    assert_eq!(one.ask(&mut store, 99, 0, "\0"), Err("ENOSYS".into()));
}

#[test]
fn long_lists_come_in_parts() {
    let (mut store, mut zero, _) = world();
    for index in 0..500 {
        zero.ask(
            &mut store,
            kind::MKDIR,
            0,
            &format!("/many/child-number-{index:04}\0"),
        )
        .unwrap();
    }
    assert_eq!(
        zero.ask(&mut store, kind::DIRECTORY, 0, "/many\0"),
        Err("E2BIG".into())
    );
    let (mut names, mut generation) = (String::new(), None);
    loop {
        let part = zero
            .ask(
                &mut store,
                kind::DIRECTORY_PART,
                0,
                &format!("/many\0{}\0", names.len()),
            )
            .unwrap();
        let (now, list) = part.split_once('\0').unwrap();
        assert_eq!(*generation.get_or_insert_with(|| now.to_owned()), now);
        if let Some(last) = list.strip_suffix("\0\0") {
            names += last;
            break;
        }
        names += list;
    }
    assert_eq!(names.split('\0').count(), 500);
}

#[test]
fn permissions_are_kept() {
    let (mut store, mut zero, mut one) = world();
    let mut two = Client::new(&mut store, 2);
    one.ask(&mut store, kind::WRITE, 0, "secret\0value")
        .unwrap();
    let secret = "/local/domain/1/secret\0";
    assert_eq!(
        two.ask(&mut store, kind::READ, 0, secret),
        Err("EACCES".into())
    );
    assert_eq!(
        two.ask(&mut store, kind::READ, 0, "/local/domain/1/other\0"),
        Err("EACCES".into()),
        "nor whether it is there"
    );
    assert_eq!(
        two.ask(&mut store, kind::WRITE, 0, "/local/domain/1/new\0x"),
        Err("EACCES".into())
    );
    assert_eq!(
        two.ask(&mut store, kind::SET_PERMS, 0, &format!("{secret}b2\0")),
        Err("EACCES".into())
    );
    assert_eq!(
        one.ask(&mut store, kind::SET_PERMS, 0, "secret\0n2\0"),
        Err("EACCES".into()),
        "not even its owner"
    );
    assert_eq!(
        one.ask(&mut store, kind::SET_PERMS, 0, "secret\0"),
        Err("EINVAL".into())
    );
    assert_eq!(
        one.ask(&mut store, kind::SET_PERMS, 0, "secret\0x1\0"),
        Err("EINVAL".into())
    );
    one.ask(&mut store, kind::SET_PERMS, 0, "secret\0n1\0r2\0")
        .unwrap();
    assert_eq!(two.ask(&mut store, kind::READ, 0, secret).unwrap(), "value");
    assert_eq!(
        two.ask(&mut store, kind::WRITE, 0, "/local/domain/1/secret\0x"),
        Err("EACCES".into())
    );
    assert_eq!(
        one.ask(&mut store, kind::GET_PERMS, 0, "secret\0").unwrap(),
        "n1\0r2\0"
    );
    assert_eq!(
        two.ask(&mut store, kind::INTRODUCE, 0, "5\x001\x001\0"),
        Err("EACCES".into())
    );
    zero.ask(&mut store, kind::SET_PERMS, 0, &format!("{secret}n2\0"))
        .unwrap();
    assert_eq!(
        one.ask(&mut store, kind::READ, 0, "secret\0"),
        Err("EACCES".into())
    );
}

#[test]
fn watches_tell_of_what_may_be_read() {
    let (mut store, mut zero, mut one) = world();
    zero.ask(&mut store, kind::WATCH, 0, "/local\0t\0").unwrap();
    assert_eq!(zero.events(&mut store), ["/local t "], "at once");
    assert_eq!(
        zero.ask(&mut store, kind::WATCH, 0, "/local\0t\0"),
        Err("EEXIST".into())
    );
    one.ask(&mut store, kind::WATCH, 0, "device\0d\0").unwrap();
    one.ask(&mut store, kind::WATCH, 0, "/\0all\0").unwrap();
    one.events(&mut store);
    one.ask(&mut store, kind::WRITE, 0, "device/state\x001")
        .unwrap();
    assert_eq!(zero.events(&mut store), ["/local/domain/1/device/state t "]);
    assert_eq!(
        one.events(&mut store),
        ["device/state d ", "/local/domain/1/device/state all "]
    );
    zero.ask(&mut store, kind::WRITE, 0, "/tool\0x").unwrap();
    zero.ask(&mut store, kind::SET_PERMS, 0, "/tool\0n0\0")
        .unwrap();
    one.events(&mut store);
    zero.ask(&mut store, kind::WRITE, 0, "/tool\0y").unwrap();
    assert!(one.events(&mut store).is_empty(), "it cannot read that");
    zero.ask(&mut store, kind::RM, 0, "/local/domain/1\0")
        .unwrap();
    assert_eq!(
        one.events(&mut store)[0],
        "device d ",
        "it went with its parent"
    );
    one.ask(&mut store, kind::UNWATCH, 0, "device\0d\0")
        .unwrap();
    assert_eq!(
        one.ask(&mut store, kind::UNWATCH, 0, "device\0d\0"),
        Err("ENOENT".into())
    );
    zero.ask(&mut store, kind::WATCH, 0, "@introduceDomain\0i\0")
        .unwrap();
    zero.events(&mut store);
    zero.ask(&mut store, kind::INTRODUCE, 0, "9\x001\x001\0")
        .unwrap();
    assert_eq!(zero.events(&mut store), ["@introduceDomain i "]);
    assert!(store.release(DomId(9)) && !store.release(DomId(9)));
}

#[test]
fn transactions_are_whole_or_not_at_all() {
    let (mut store, mut zero, mut one) = world();
    zero.ask(&mut store, kind::WATCH, 0, "/local/domain/1\0w\0")
        .unwrap();
    zero.events(&mut store);
    let start = |client: &mut Client, store: &mut XenStore| -> u32 {
        client
            .ask(store, kind::TRANSACTION_START, 0, "\0")
            .unwrap()
            .trim_end_matches('\0')
            .parse()
            .unwrap()
    };
    let id = start(&mut one, &mut store);
    one.ask(&mut store, kind::WRITE, id, "a\x001").unwrap();
    one.ask(&mut store, kind::WRITE, id, "b\x002").unwrap();
    assert_eq!(one.ask(&mut store, kind::READ, id, "a\0").unwrap(), "1");
    assert_eq!(
        one.ask(&mut store, kind::READ, 0, "a\0"),
        Err("ENOENT".into())
    );
    assert!(zero.events(&mut store).is_empty());
    one.ask(&mut store, kind::TRANSACTION_END, id, "T\0")
        .unwrap();
    assert_eq!(
        zero.events(&mut store),
        ["/local/domain/1/a w ", "/local/domain/1/b w "]
    );
    assert_eq!(
        one.ask(&mut store, kind::READ, id, "a\0"),
        Err("ENOENT".into()),
        "it is over"
    );

    // What was read has changed meanwhile; what was not does not matter.
    for (changed, answer) in [
        ("a", Err("EAGAIN".to_owned())),
        ("c", Ok("OK\0".to_owned())),
    ] {
        let id = start(&mut one, &mut store);
        one.ask(&mut store, kind::READ, id, "a\0").unwrap();
        one.ask(&mut store, kind::WRITE, id, "b\x003").unwrap();
        zero.ask(
            &mut store,
            kind::WRITE,
            0,
            &format!("/local/domain/1/{changed}\0x"),
        )
        .unwrap();
        assert_eq!(
            one.ask(&mut store, kind::TRANSACTION_END, id, "T\0"),
            answer
        );
    }
    assert_eq!(one.ask(&mut store, kind::READ, 0, "b\0").unwrap(), "3");
    let id = start(&mut one, &mut store);
    one.ask(&mut store, kind::RM, id, "b\0").unwrap();
    one.ask(&mut store, kind::TRANSACTION_END, id, "F\0")
        .unwrap();
    assert_eq!(one.ask(&mut store, kind::READ, 0, "b\0").unwrap(), "3");
    assert_eq!(
        one.ask(&mut store, kind::WRITE, 77, "b\0x"),
        Err("ENOENT".into())
    );
}

#[test]
fn quotas_hold() {
    let quota = Quota {
        nodes: 8,
        value: 16,
        watches: 2,
        transactions: 1,
        changes: 2,
        outstanding: 4,
    };
    let mut store = XenStore::new(quota);
    let (mut zero, mut one) = (Client::new(&mut store, 0), Client::new(&mut store, 1));
    zero.ask(&mut store, kind::WRITE, 0, "/local/domain/1\0")
        .unwrap();
    zero.ask(&mut store, kind::SET_PERMS, 0, "/local/domain/1\0n1\0")
        .unwrap();
    let full = Err("ENOSPC".to_owned());
    assert_eq!(
        one.ask(&mut store, kind::WRITE, 0, "v\x000123456789abcdefg"),
        full
    );
    one.ask(&mut store, kind::MKDIR, 0, "a/b/c/d/e/f/g\0")
        .unwrap();
    assert_eq!(one.ask(&mut store, kind::MKDIR, 0, "h\0"), full);
    one.ask(&mut store, kind::WATCH, 0, "a\x001\0").unwrap();
    one.ask(&mut store, kind::WATCH, 0, "a\x002\0").unwrap();
    assert_eq!(one.ask(&mut store, kind::WATCH, 0, "a\x003\0"), full);
    one.ask(&mut store, kind::TRANSACTION_START, 0, "\0")
        .unwrap();
    assert_eq!(one.ask(&mut store, kind::TRANSACTION_START, 0, "\0"), full);
    one.ask(&mut store, kind::WRITE, 1, "a\x001").unwrap();
    one.ask(&mut store, kind::WRITE, 1, "a\x002").unwrap();
    assert_eq!(one.ask(&mut store, kind::WRITE, 1, "a\x003"), full);
    one.ask(&mut store, kind::RESET_WATCHES, 0, "\0").unwrap();
    one.ask(&mut store, kind::WATCH, 0, "a\x003\0").unwrap();
    one.events(&mut store);
    // Who does not take its events loses some, and nothing grows.
    for _ in 0..100 {
        zero.ask(&mut store, kind::WRITE, 0, "/local/domain/1/a\0x")
            .unwrap();
    }
    assert_eq!(one.events(&mut store).len(), 4);
}

#[test]
fn events_beyond_a_full_ring_wake_the_domain() {
    let (mut store, mut watcher, mut writer) = world();
    watcher
        .ask(&mut store, kind::WATCH, 0, "/local/domain/1\0token\0")
        .unwrap();
    let permissions = "/local/domain/1\0n1\0b2\0";
    watcher
        .ask(&mut store, kind::SET_PERMS, 0, permissions)
        .unwrap();
    watcher.poll(&mut store);
    watcher.events.clear();
    // Each event takes some 50 bytes of the 1,024.
    for number in 0..60 {
        let node = format!("/local/domain/1/node{number:02}\0value");
        writer.ask(&mut store, kind::WRITE, 0, &node).unwrap();
    }
    assert_eq!(watcher.connection.serve(&mut store), Ok(true));
    assert_eq!(
        watcher.connection.serve(&mut store),
        Ok(false),
        "the ring is full"
    );
    // What one look takes makes room for more, of which the domain has to be told.
    let mut seen = 0;
    while seen < 60 {
        let mut taken = 0;
        while let (Some(message), _) = watcher.client.take().unwrap() {
            assert_eq!(message.kind, kind::WATCH_EVENT);
            taken += 1;
        }
        seen += taken;
        assert!(taken > 0, "{seen} of 60 events");
        assert_eq!(watcher.connection.serve(&mut store), Ok(seen < 60));
    }
}

#[test]
fn a_domain_that_notifies_as_linux_does_is_always_served() {
    const REQUESTS: u32 = 5000;
    let (mut store, ..) = world();
    let page = Frame::allocate();
    let mut client = StoreClient::new(page.clone());
    let mut connection = Connection::new(DomId(1), page.clone());
    let (to_store, store_event) = mpsc::channel();
    let (to_domain, domain_event) = mpsc::channel();
    let ended = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            while store_event.recv().is_ok() {
                while connection.serve(&mut store).unwrap() && !ended.load(Ordering::Relaxed) {
                    let _gone = to_domain.send(());
                }
            }
        });
        let word = |at| page.u32(at).unwrap().load(Ordering::SeqCst);
        let (mut sent, mut answered) = (0, 0);
        while answered < REQUESTS {
            // Some requests are under way at once.
            while sent < REQUESTS && sent - answered < 8 {
                let written = word(page::REQUEST_PRODUCER);
                client
                    .send(&Message {
                        kind: kind::READ,
                        request: sent,
                        transaction: 0,
                        payload: b"/local/domain/1\0".to_vec(),
                    })
                    .unwrap();
                sent += 1;
                // `xb_write` in Linux.
                if word(page::REQUEST_CONSUMER) >= written {
                    to_store.send(()).unwrap();
                }
            }
            let before = answered;
            loop {
                let taken = word(page::RESPONSE_CONSUMER);
                let (message, _) = client.take().unwrap();
                // `xb_read`.
                if word(page::RESPONSE_PRODUCER) - taken >= page::RING {
                    to_store.send(()).unwrap();
                }
                match message {
                    Some(message) => assert_eq!(message.request, answered),
                    None => break,
                }
                answered += 1;
            }
            if answered == before {
                let event = domain_event.recv_timeout(Duration::from_secs(60));
                assert!(event.is_ok(), "{answered} answers to {sent} requests");
            }
        }
        ended.store(true, Ordering::Relaxed);
        drop(to_store);
    });
}

#[test]
fn a_broken_page_is_reported() {
    let mut store = XenStore::new(Quota::default());
    store.introduce(DomId(1));
    let frame = Frame::allocate();
    let mut connection = Connection::new(DomId(1), frame.clone());
    frame
        .u32(page::REQUEST_PRODUCER)
        .unwrap()
        .store(1025, Ordering::SeqCst);
    assert_eq!(
        connection.serve(&mut store),
        Err(PageError::Indices {
            consumer: 0,
            producer: 1025
        })
    );
    frame
        .u32(page::REQUEST_PRODUCER)
        .unwrap()
        .store(16, Ordering::SeqCst);
    assert!(frame.write(12, &4097u32.to_le_bytes()));
    assert_eq!(connection.serve(&mut store), Err(PageError::Length(4097)));
}

/// XSA-233: a connection is let go of once, with its watches and transactions.
#[test]
fn xsa_233_a_domain_that_goes_has_no_connection_left() {
    let (mut store, _, mut one) = world();
    one.ask(&mut store, kind::WATCH, 0, "a\0t\0").unwrap();
    one.ask(&mut store, kind::TRANSACTION_START, 0, "\0")
        .unwrap();
    assert!(store.release(DomId(1)));
    assert!(!store.release(DomId(1)));
    one.client
        .send(&Message {
            kind: kind::READ,
            request: 1,
            transaction: 1,
            payload: b"a\0".to_vec(),
        })
        .unwrap();
    assert_eq!(one.poll(&mut store), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_message_is_answered(messages in prop::collection::vec(
        (0u32..24, 0u32..3, prop::collection::vec(prop_oneof![Just(0u8), Just(b'/'), Just(b'a'), Just(b'@'), any::<u8>()], 0..40)),
        1..30,
    )) {
        let (mut store, mut zero, mut one) = world();
        for (kind, transaction, payload) in messages {
            one.client.send(&Message { kind, request: 3, transaction, payload }).unwrap();
            prop_assert_eq!(one.poll(&mut store).unwrap().request, 3);
        }
        prop_assert!(zero.ask(&mut store, kind::DIRECTORY, 0, "/\0").is_ok());
    }

    /// Bytes that are no messages end the connection or wait for more.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..1024), produced: u32) {
        let mut store = XenStore::new(Quota::default());
        store.introduce(DomId(1));
        let frame = Frame::allocate();
        prop_assert!(frame.write(0, &bytes));
        frame.u32(page::REQUEST_PRODUCER).unwrap().store(produced % 1100, Ordering::SeqCst);
        let mut connection = Connection::new(DomId(1), frame);
        for _ in 0..4 {
            let _result = connection.serve(&mut store);
        }
    }
}

#[test]
fn two_ends_connect_and_close_from_any_state() {
    use XenbusState::{Closed, Connected, Initialising, Unknown};
    for state in XenbusState::ALL {
        assert_eq!(XenbusState::parse(state.value().as_bytes()), state);
    }
    assert_eq!(XenbusState::parse(b"9"), Unknown);
    // The front end begins; both react in turn until neither moves.
    let settle = |mut front, mut back| {
        let mut actions = Vec::new();
        for _ in 0..16 {
            for role in [Role::Back, Role::Front] {
                let (own, peer) = match role {
                    Role::Back => (&mut back, front),
                    Role::Front => (&mut front, back),
                };
                if let Some((action, next)) = react(role, *own, peer) {
                    actions.push((role, action));
                    *own = closed(next).unwrap_or(next);
                }
            }
        }
        (front, back, actions)
    };
    let (front, back, actions) = settle(Initialising, Unknown);
    assert_eq!((front, back), (Connected, Connected));
    let expected = [
        (Role::Back, Action::Publish),
        (Role::Front, Action::Publish),
        (Role::Back, Action::Connect),
        (Role::Front, Action::Connect),
    ];
    assert_eq!(actions, expected);
    assert_eq!(settle(Initialising, Closed).1, Connected, "again");
    for back in XenbusState::ALL {
        let (front, back, actions) = settle(Closed, back);
        assert_eq!(front, Closed);
        assert!(
            !matches!(back, Connected | XenbusState::InitWait),
            "{back:?}"
        );
        assert!(
            actions
                .iter()
                .all(|(_, action)| *action == Action::Disconnect)
        );
    }
}
