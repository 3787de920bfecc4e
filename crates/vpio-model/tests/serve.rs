//! A device that guests share through sockets, over the fakes of the seam.
#![cfg(feature = "vfio")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod common;

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;

use common::parse;
use rustix::cmsg_space;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, send, sendmsg,
};
use sriov_vfio::vfio::fake::{FakeDevice, FakeDmaSpace};
use sriov_vfio::vfio::{Interrupt, Region, RegionIndex, VfioDevice};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vpio_model::arbiter::{InputPolicy, Sharing};
use vpio_model::models;
use vpio_model::serve::spec::{
    DONE, MEMORY, READ, READY, REFUSED, RESET, Request, VERSION, WRITE, Welcome,
};
use vpio_model::serve::{Connection, Event, Listener, Remote, RemoteError, Server, Shown};
use zerocopy::{FromZeros, IntoBytes};

const MIB: usize = 1 << 20;
/// What is between the memory of one guest and the next for the device.
const APART: u32 = 2 << 20;
const BAR: RegionIndex = RegionIndex::Bar(0);
const PIN: Interrupt = Interrupt::Intx;
/// Longer than a test takes.
const NEVER: u64 = 1 << 40;

/// Registers of an RTL8139.
const TSD: u64 = 0x10;
const TSAD: u64 = 0x20;
const RBSTART: u64 = 0x30;
const OWN: u32 = 0x2000;

/// An RTL8139 as far as its registers hold what they are given, and a reset ends that: all slots are the driver's then. A packet of no
/// bytes is sent at once.
struct Card(FakeDevice);

impl Card {
    fn new() -> Arc<Self> {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0xec, 0x10, 0x39, 0x81]);
        (config[6], config[0x10], config[0x34], config[0x3d]) = (0x10, 1, 0x50, 1);
        let card = FakeDevice::new(config).vectors(PIN, 1);
        Arc::new(Self(card.region(BAR, vec![0; 256], None)))
    }

    fn register(&self, offset: u64) -> u32 {
        let bytes = self.0.contents(BAR);
        let from = &bytes[usize::try_from(offset).unwrap()..];
        u32::from_le_bytes(*from.first_chunk().unwrap())
    }

    fn set(&self, offset: u64, value: u32) {
        self.0.write(BAR, offset, &value.to_le_bytes()).unwrap();
    }
}

impl VfioDevice for Card {
    fn region(&self, index: RegionIndex) -> Region {
        VfioDevice::region(&self.0, index)
    }
    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(index, offset, data)
    }
    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(index, offset, data)?;
        if index == BAR && (TSD..TSAD).contains(&offset) && data == [0; 4] {
            self.set(offset, OWN);
        }
        Ok(())
    }
    fn map(&self, index: RegionIndex, part: Range<u64>) -> io::Result<MmapRegion> {
        self.0.map(index, part)
    }
    fn vectors(&self, interrupt: Interrupt) -> u32 {
        VfioDevice::vectors(&self.0, interrupt)
    }
    fn grows(&self, interrupt: Interrupt) -> bool {
        self.0.grows(interrupt)
    }
    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        self.0.connect(interrupt, first, eventfds)
    }
    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        self.0.disconnect(interrupt)
    }
    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        self.0.resample(eventfd)
    }
    fn reset(&self) -> io::Result<()> {
        self.0.write(BAR, 0, &[0; 256])?;
        (0..4).for_each(|slot| self.set(TSD + 4 * slot, OWN));
        self.0.reset()
    }
}

struct House {
    card: Arc<Card>,
    space: Arc<FakeDmaSpace>,
    server: Server,
    log: Arc<Mutex<Vec<String>>>,
}

impl House {
    /// Times are in milliseconds.
    fn new(quantum: u64, patience: u64, input: InputPolicy) -> Self {
        let (card, space) = (Card::new(), Arc::new(FakeDmaSpace::default()));
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let lines = log.clone();
        let tell = move |event: &Event<'_>| {
            let line = match event {
                Event::Joined(_) => "joined".to_owned(),
                Event::Denied { denied, .. } => format!("denied: {denied}"),
                Event::Left { why: None, .. } => "left".to_owned(),
                Event::Left { why: Some(why), .. } => format!("sent away: {why}"),
                other => format!("{other:?}"),
            };
            lines.lock().unwrap().push(line);
        };
        let sharing = Sharing {
            quantum,
            patience,
            input,
        };
        let model = parse(models::RTL8139);
        let device: Arc<dyn VfioDevice> = card.clone();
        let shown = Shown {
            address: "00:05.0".to_owned(),
            revision: Some(0x10),
        };
        let server = Server::new(&shown, &device, space.clone(), &model, sharing, tell);
        Self {
            card,
            space,
            server: server.unwrap(),
            log,
        }
    }

    fn connection(&self) -> Connection {
        let (ours, theirs) = Connection::pair().unwrap();
        self.server.admit(theirs).unwrap();
        ours
    }

    fn guest(&self) -> Guest {
        let memory = shared_memory(SealFlags::SHRINK);
        let remote = Remote::new(self.connection(), &memory, Arc::new(())).unwrap();
        let remote = Arc::new(remote);
        Guest { remote, memory }
    }

    /// Waits until something was told so often.
    fn hears(&self, words: &str, often: usize) {
        until(|| {
            let log = self.log.lock().unwrap();
            let found = log.iter().filter(|line| line.contains(words)).count();
            found >= often
        });
    }
}

struct Guest {
    remote: Arc<Remote>,
    memory: GuestMemoryMmap,
}

impl Guest {
    fn write(&self, offset: u64, value: u32) -> io::Result<()> {
        self.remote.write(BAR, offset, &value.to_le_bytes())
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.remote.read(BAR, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    /// Writes, in a thread of its own, as a vCPU whose guest may not have the device.
    fn writes(&self, offset: u64, value: u32) -> thread::JoinHandle<()> {
        let remote = self.remote.clone();
        thread::spawn(move || remote.write(BAR, offset, &value.to_le_bytes()).unwrap())
    }
}

fn memfd(seals: SealFlags) -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("test", flags).unwrap());
    file.set_len(MIB as u64).unwrap();
    fcntl_add_seals(&file, seals).unwrap();
    file
}

fn shared_memory(seals: SealFlags) -> GuestMemoryMmap {
    let place = Some(FileOffset::new(memfd(seals), 0));
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), MIB, place)]).unwrap()
}

fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        thread::yield_now();
    }
}

#[test]
fn each_guest_finds_the_device_as_it_left_it_and_with_its_own_memory() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    assert_eq!(
        (one.remote.address(), one.remote.model()),
        ("00:05.0", "rtl8139")
    );
    one.write(RBSTART, 0x1000).unwrap();
    one.write(TSAD, 0x5000).unwrap();
    assert_eq!(house.card.register(TSAD), 0x5000);
    other.write(RBSTART, 0x3000).unwrap();
    other.write(TSAD + 4, 0x7000).unwrap();
    let card = |offset| house.card.register(offset);
    assert_eq!(
        (card(RBSTART), card(TSAD), card(TSAD + 4)),
        (APART + 0x3000, 0, APART + 0x7000),
        "nothing of the first guest"
    );
    assert_eq!((one.read(RBSTART), one.read(TSAD)), (0x1000, 0x5000));
    assert_eq!(
        (card(RBSTART), card(TSAD), card(TSAD + 4)),
        (0x1000, 0x5000, 0)
    );
    assert_eq!(house.server.counts().switches, 2);
    // The last byte of the other guest's memory, as it would be for the device, is none of the first's.
    one.write(TSAD + 8, APART).unwrap();
    let denied = one.write(TSD + 8, 60).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PermissionDenied);
    house.hears("denied: transfer `tx_dma[2]`", 1);
    assert_eq!(one.remote.counts().denied, 1);
}

#[test]
fn a_guest_has_a_pin_and_nothing_that_capabilities_control() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let guest = house.guest();
    let mut config = [0; 64];
    guest
        .remote
        .read(RegionIndex::Config, 0, &mut config)
        .unwrap();
    let seen = (config[4], config[6], config[8], config[0x34]);
    assert_eq!(seen, (7, 0, 0x10, 0));
    let vectors = |kind| guest.remote.vectors(kind);
    assert_eq!(
        (
            vectors(PIN),
            vectors(Interrupt::Msi),
            vectors(Interrupt::Msix)
        ),
        (1, 0, 0)
    );
    guest.remote.write(RegionIndex::Config, 4, &[0, 0]).unwrap();
    assert_eq!(house.card.0.contents(RegionIndex::Config)[4], 7);
    let past = guest.remote.read(RegionIndex::Config, 255, &mut [0; 2]);
    assert_eq!(past.unwrap_err().kind(), ErrorKind::InvalidInput);
}

/// THREATS.md, "switching a device that is not reusable".
#[test]
fn a_guest_waits_while_the_device_is_busy() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    one.write(TSAD, 0x1000).unwrap();
    one.write(TSD, 60).unwrap();
    let owner = house.server.owner();
    let waiting = other.writes(RBSTART, 0x3000);
    for _ in 0..100 {
        assert_eq!(one.read(TSAD), 0x1000);
    }
    assert_eq!(house.server.owner(), owner);
    assert!(!waiting.is_finished());
    // The packet is sent.
    house.card.set(TSD, OWN);
    waiting.join().unwrap();
    assert_eq!(house.card.register(RBSTART), APART + 0x3000);
    assert_eq!(house.server.counts().forced, 0);
}

#[test]
fn a_guest_that_dies_in_a_transfer_leaves_the_device_to_the_others() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    one.write(TSAD, 0x1000).unwrap();
    one.write(TSD, 60).unwrap();
    let waiting = other.writes(RBSTART, 0x3000);
    let resets = house.card.0.resets();
    drop(one);
    waiting.join().unwrap();
    house.hears("left", 1);
    assert!(house.card.0.resets() > resets);
    assert_eq!(house.card.register(TSAD), 0);
    let mappings = house.space.mappings();
    assert_eq!(mappings.len(), 2, "of the dead guest nothing is mapped");
    let apart = mappings.iter().all(|place| place.0 >= u64::from(APART));
    assert!(apart, "memory and copies are the other's");
    // Whoever comes next has its addresses.
    let third = house.guest();
    drop(other);
    third.write(TSAD, 0x1000).unwrap();
    assert_eq!(house.card.register(TSAD), 0x1000);
}

/// One that waits for its turn and dies is not waited for.
#[test]
fn a_guest_that_dies_while_it_waits_is_forgotten() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let one = house.guest();
    one.write(TSAD, 0x1000).unwrap();
    one.write(TSD, 60).unwrap();
    let connection = house.connection();
    let bell = joined(&connection);
    tell(&connection, &access(WRITE, RBSTART, 4, 1), None);
    drop((connection, bell));
    house.hears("left", 1);
    house.card.set(TSD, OWN);
    assert_eq!(one.read(TSAD), 0x1000);
    assert_eq!(house.server.counts().switches, 0);
}

#[test]
fn who_waits_too_long_gets_the_device_by_force() {
    let house = House::new(0, 30, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    one.write(TSAD, 0x1000).unwrap();
    one.write(TSD, 60).unwrap();
    let waiting = other.writes(RBSTART, 0x3000);
    while !waiting.is_finished() {
        let value = if house.server.counts().forced == 0 {
            0x1000
        } else {
            0
        };
        let read = one.read(TSAD);
        assert!(read == value || read == 0, "{read:#x}");
    }
    waiting.join().unwrap();
    assert_eq!(house.server.counts().forced, 1);
}

#[test]
fn a_flood_does_not_keep_the_device() {
    let house = House::new(1, NEVER, InputPolicy::Drop);
    let connection = house.connection();
    let _bell = joined(&connection);
    let other = house.guest();
    // As much as there is room for, of what nobody ever reads the answers.
    let request = access(WRITE, TSAD, 4, 0x1000);
    let mut sent = 0;
    while send(&connection, request.as_bytes(), SendFlags::DONTWAIT).is_ok() {
        sent += 1;
    }
    assert!(sent > 10);
    for value in 1..20 {
        other.write(RBSTART, value << 8).unwrap();
        assert_eq!(other.read(RBSTART), value << 8);
    }
    drop(connection);
    house.hears("sent away: the connection", 1);
}

#[test]
fn interrupts_are_the_owners() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    let pins = [&one, &other].map(|guest| {
        let (pin, resample) = (
            EventFd::new(0).unwrap(),
            EventFd::new(EFD_NONBLOCK).unwrap(),
        );
        guest.remote.connect(PIN, 0, &[Some(&pin)]).unwrap();
        guest.remote.resample(&resample).unwrap();
        (pin, resample)
    });
    let card = &house.card.0;
    for (guest, pin, others) in [(&one, 0, 1), (&other, 1, 0), (&one, 0, 1)] {
        guest.write(RBSTART, 0x1000).unwrap();
        // The kernel looks when the device changes hands, and when a guest asks for it.
        until(|| card.unmask_pin());
        card.set_pin(true);
        assert_eq!(pins[pin].0.read().unwrap(), 1);
        pins[pin].1.write(1).unwrap();
        card.set_pin(false);
        until(|| card.unmask_pin());
        // The other's end of an interrupt is not the owner's.
        pins[others].1.write(1).unwrap();
    }
    assert_eq!(one.remote.counts().interrupts, 2);
    assert_eq!(other.remote.counts().interrupts, 1);
}

/// Frames for the address of a guest that does not have the card are not seen by anybody.
#[test]
fn guests_that_only_listen_have_their_turns() {
    let house = House::new(1, NEVER, InputPolicy::Switch);
    let (one, other) = (house.guest(), house.guest());
    one.write(RBSTART, 0x1000).unwrap();
    let first = house.server.owner();
    other.write(RBSTART, 0x3000).unwrap();
    for _ in 0..3 {
        until(|| house.server.owner() == first);
        assert_eq!(house.card.register(TSAD), 0);
        until(|| house.server.owner() != first);
    }
    drop((one, other));
    house.hears("left", 2);
    assert_eq!(house.server.owner(), None);
}

#[test]
fn a_guests_reset_is_its_own() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let (one, other) = (house.guest(), house.guest());
    one.write(RBSTART, 0x1000).unwrap();
    other.write(RBSTART, 0x3000).unwrap();
    one.remote.reset().unwrap();
    assert_eq!(other.read(RBSTART), 0x3000);
    assert_eq!(one.read(RBSTART), 0, "it has the device as reset");
    one.write(RBSTART, 0x1000).unwrap();
    one.remote.reset().unwrap();
    assert_eq!(house.card.register(RBSTART), 0);
    assert_eq!(other.read(RBSTART), 0x3000);
}

/// A request, with a file.
fn tell(connection: &Connection, request: &Request, file: Option<BorrowedFd<'_>>) {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files: Vec<_> = file.into_iter().collect();
    if !files.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&files));
    }
    let bytes = [IoSlice::new(request.as_bytes())];
    sendmsg(connection, &bytes, &mut control, SendFlags::empty()).unwrap();
}

/// The length of the next message, and its first word.
fn hear(connection: &Connection) -> (usize, u32) {
    let mut bytes = [0; 1024];
    match recv(connection, &mut bytes, RecvFlags::empty()) {
        Ok((length, _)) => (length, u32::from_le_bytes(*bytes.first_chunk().unwrap())),
        // What was sent and not read when the other end closed.
        Err(_) => (0, 0),
    }
}

fn just(kind: u32) -> Request {
    Request {
        kind: kind.into(),
        ..Request::default()
    }
}

fn access(kind: u32, address: u64, width: u8, value: u64) -> Request {
    Request {
        width,
        address: address.into(),
        value: value.into(),
        ..just(kind)
    }
}

fn memory(address: u64, size: u64, offset: u64) -> Request {
    Request {
        offset: offset.into(),
        ..access(MEMORY, address, 0, size)
    }
}

/// A guest with a page of memory takes part.
fn joined(connection: &Connection) -> impl Sized + use<> {
    let mut bytes = [0; size_of::<Welcome>()];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(connection, &mut parts, &mut control, RecvFlags::empty()).unwrap();
    let bell: Vec<_> = control
        .drain()
        .filter_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(files) => Some(files.collect::<Vec<_>>()),
            _ => None,
        })
        .collect();
    let file = memfd(SealFlags::SHRINK);
    tell(connection, &memory(0, 4096, 0), Some(file.as_fd()));
    assert_eq!(hear(connection).1, DONE);
    tell(connection, &just(READY), None);
    assert_eq!(hear(connection).1, DONE);
    bell
}

/// THREATS.md, "an event the model does not know": what a guest's process says is not trusted either.
#[test]
fn a_guest_that_talks_nonsense_is_sent_away_alone() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let good = house.guest();
    good.write(RBSTART, 0x1000).unwrap();
    let file = memfd(SealFlags::SHRINK);
    let nonsense = [
        just(0),
        just(99),
        just(READY),
        memory(0, 4096, 0),
        access(READ, 0, 0, 0),
        access(READ, 0, 3, 0),
        access(READ, 0, 255, 0),
        access(READ, 0, 4, 1),
        access(WRITE, 0, 1, 0x100),
        access(RESET, 1, 0, 0),
        Request {
            reserved: [0, 1],
            ..access(READ, 0, 4, 0)
        },
        Request {
            offset: 1.into(),
            ..access(READ, 0, 4, 0)
        },
    ];
    let mut sent_away = 0;
    for request in &nonsense {
        let connection = house.connection();
        let _bell = joined(&connection);
        tell(&connection, request, None);
        assert_eq!(hear(&connection).0, 0, "{request:?}");
        sent_away += 1;
    }
    // A file where none belongs.
    let connection = house.connection();
    let _bell = joined(&connection);
    tell(&connection, &access(READ, 0, 4, 0), Some(file.as_fd()));
    assert_eq!(hear(&connection).0, 0);
    // Packets of other lengths.
    for length in [1, 31, 33, 4096] {
        let connection = house.connection();
        let _bell = joined(&connection);
        send(&connection, &vec![1; length], SendFlags::empty()).unwrap();
        assert_eq!(hear(&connection).0, 0, "{length}");
        sent_away += 1;
    }
    house.hears("sent away", sent_away + 1);
    assert_eq!(good.read(RBSTART), 0x1000);
    // Where the model knows nothing, there is nothing to be had.
    for (bar, offset) in [(0, 0xe8), (0, u64::MAX), (5, 0), (255, 0)] {
        let read = good.remote.read(RegionIndex::Bar(bar), offset, &mut [0; 4]);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}

#[test]
fn memory_that_is_none_is_refused() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let sealed = memfd(SealFlags::SHRINK);
    let refused = |request: &Request, file: BorrowedFd<'_>| {
        let connection = house.connection();
        hear(&connection);
        tell(&connection, request, Some(file));
        let (length, status) = hear(&connection);
        length != 0 && status == REFUSED
    };
    let size = MIB as u64;
    for request in [
        memory(0, 0, 0),
        memory(0, 4095, 0),
        memory(1, 4096, 0),
        memory(0, 4096, 1),
        memory(0xc000_0000, 4096, 0),
        memory(0xbfff_f000, 8192, 0),
        memory(u64::MAX - 4095, 4096, 0),
        memory(0, u64::MAX - 4095, 0),
        memory(0, 4096, u64::MAX - 4095),
    ] {
        assert!(refused(&request, sealed.as_fd()), "{request:?}");
    }
    // What could be taken away under the arbiter.
    assert!(refused(&memory(0, size, 0), memfd(SealFlags::GROW).as_fd()));
    let null = File::open("/dev/zero").unwrap();
    assert!(refused(&memory(0, size, 0), null.as_fd()));
    // More than the file has, twice the same, more pieces than there can be: that is found when it is mapped, or counted.
    let pieces = |pieces: &[Request]| {
        let connection = house.connection();
        hear(&connection);
        for piece in pieces {
            tell(&connection, piece, Some(sealed.as_fd()));
            if hear(&connection).1 == REFUSED {
                return REFUSED;
            }
        }
        tell(&connection, &just(READY), None);
        hear(&connection).1
    };
    assert_eq!(pieces(&[memory(0, 2 * size, 0)]), REFUSED);
    assert_eq!(pieces(&[memory(0, 4096, 0), memory(0, 4096, 0)]), REFUSED);
    let many: Vec<_> = (0..17).map(|n| memory(n * 4096, 4096, 0)).collect();
    assert_eq!(pieces(&many), REFUSED);
    assert_eq!(pieces(&many[..16]), DONE);
    until(|| house.space.mappings().is_empty());

    let unsealed = shared_memory(SealFlags::empty());
    let refused = Remote::new(house.connection(), &unsealed, Arc::new(())).err();
    assert!(matches!(refused, Some(RemoteError::Refused(_))));
    let private = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MIB)]).unwrap();
    let refused = Remote::new(house.connection(), &private, Arc::new(())).err();
    assert!(matches!(refused, Some(RemoteError::Private(0))));
}

#[test]
fn there_are_so_many_guests_and_no_more() {
    let house = House::new(0, NEVER, InputPolicy::Drop);
    let guests: Vec<_> = (0..16).map(|_| house.guest()).collect();
    let (_ours, theirs) = Connection::pair().unwrap();
    house.server.admit(theirs).unwrap_err();
    guests[15].memory.write_obj(1u32, GuestAddress(0)).unwrap();
    drop(guests);
    house.hears("left", 16);
    until(|| house.server.admit(Connection::pair().unwrap().1).is_ok());
}

#[test]
fn an_arbiter_is_found_by_its_path_and_missed_when_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("card");
    let memory = shared_memory(SealFlags::SHRINK);
    let connect = || Remote::connect(&path, &memory, Arc::new(()));
    assert!(matches!(connect(), Err(RemoteError::Connect { .. })));
    let listener = Listener::bind(&path).unwrap();
    Listener::bind(&path).unwrap_err();

    // One of another version.
    let server = thread::spawn(move || {
        let mut welcome = Welcome::new_zeroed();
        for version in [VERSION + 1, VERSION] {
            welcome.version = version.into();
            let connection = listener.accept().unwrap();
            let (bell, _ours) = UnixStream::pair().unwrap();
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let files = [bell.as_fd()];
            control.push(SendAncillaryMessage::ScmRights(&files));
            let bytes = [IoSlice::new(welcome.as_bytes())];
            sendmsg(&connection, &bytes, &mut control, SendFlags::empty()).unwrap();
            if version == VERSION {
                for _ in 0..2 {
                    hear(&connection);
                    send(&connection, &[0; 136], SendFlags::empty()).unwrap();
                }
            }
        }
    });
    assert!(matches!(connect(), Err(RemoteError::Version(2))));
    let remote = connect().unwrap();
    server.join().unwrap();
    let error = EventFd::new(0).unwrap();
    remote
        .connect(Interrupt::Error, 0, &[Some(&error)])
        .unwrap();
    assert_eq!(error.read().unwrap(), 1);
    remote.write(BAR, 0, &[0; 4]).unwrap_err();
}
