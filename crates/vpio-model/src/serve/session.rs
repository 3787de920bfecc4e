use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use super::memory::{MemoryError, Pieces, Place};
use super::server::{Event, House, lock};
use super::socket::Connection;
use super::spec::{
    Answer, DENIED, DENIED_STOP, DONE, MEMORY, READ, READY, REFUSED, RESET, Request, TEXT_BYTES,
    WRITE, text,
};
use super::turn::Turn;
use crate::arbiter::{GuestId, Handover};
use crate::engine::{At, Denied, Engine};
use crate::language::{Access, Policy};
use crate::vfio::{Counts, GuestDma, GuestDmaError};

/// Why a guest's connection was ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// It failed, or something came that is no packet of the protocol.
    #[error("the connection: {0}")]
    Connection(#[from] io::Error),
    /// A message that means nothing, or nothing at this point.
    #[error("an unexpected message: {0:?}")]
    Message(Request),
    /// Its memory is none.
    #[error("the guest's memory: {0}")]
    Memory(#[from] MemoryError),
    /// Its memory cannot be mapped for the device.
    #[error("the guest's memory: {0}")]
    Dma(#[from] GuestDmaError),
}

/// A guest that takes part.
pub(super) struct Session<'a> {
    house: &'a Arc<House>,
    connection: &'a Connection,
    guest: GuestId,
    turn: Arc<Turn>,
    counts: Counts,
}

/// What an access is.
struct Wanted {
    at: At,
    /// None: a read.
    value: Option<u64>,
}

fn answer(status: u32, value: u64, reason: &str) -> Answer {
    Answer {
        status: status.into(),
        reserved: 0.into(),
        value: value.into(),
        reason: text::<TEXT_BYTES>(reason),
    }
}

impl Session<'_> {
    /// Serves a guest until it goes away, or says what it must not.
    pub fn run(house: &Arc<House>, connection: &Connection) {
        let (mut guest, mut counts) = (None, Counts::default());
        let result = Self::host(house, connection, &mut guest, &mut counts);
        let why = result.as_ref().err();
        let turns = lock(&house.arbiter).counts();
        house.tell(&Event::Left {
            guest,
            counts,
            turns,
            why,
        });
    }

    fn host(
        house: &Arc<House>,
        connection: &Connection,
        joined: &mut Option<GuestId>,
        counts: &mut Counts,
    ) -> Result<(), SessionError> {
        let (bell, theirs) = UnixStream::pair()?;
        connection.send(&house.welcome, Some(theirs.as_fd()))?;
        drop(theirs);
        let unmask = house.unmask.try_clone()?;
        let Some(pieces) = hear_of_memory(connection)? else {
            return Ok(());
        };
        let (dma, place) = match map(house, pieces) {
            Ok(mapped) => mapped,
            Err(error) => {
                connection.send(&answer(REFUSED, 0, &error.to_string()), None)?;
                return Err(error);
            }
        };
        let (turn, bell) = (Arc::new(Turn::default()), Arc::new(bell));
        let engine = Engine::new(Arc::clone(&house.model), Arc::clone(&dma));
        let (mine, told) = (Arc::clone(&turn), Arc::clone(house));
        let wake = move |handover: &Handover| {
            told.tell(&Event::Turn(handover));
            mine.come();
            // The pin may be masked for the last owner's interrupt. A counter that is full is readable too.
            let _full = unmask.write(1);
        };
        let guest = lock(&house.arbiter).add(engine, Box::new(wake));
        lock(&house.bells).insert(guest, Arc::clone(&bell));
        *joined = Some(guest);
        house.tell(&Event::Joined(guest));
        let mut session = Session {
            house,
            connection,
            guest,
            turn: Arc::clone(&turn),
            counts: Counts::default(),
        };
        let (shared, ours) = (Arc::clone(house), Arc::clone(&bell));
        let listener = thread::Builder::new()
            .name("vpio bell".to_owned())
            .spawn(move || listen(&shared, guest, &ours, &turn));
        let result = match &listener {
            Ok(_) => session.serve(),
            Err(error) => Err(io::Error::from(error.kind()).into()),
        };
        *counts = session.counts;
        lock(&house.arbiter).remove(guest);
        lock(&house.bells).remove(&guest);
        // It may be closed already, and a thread that panicked has ended.
        let _closed = bell.shutdown(Shutdown::Both);
        let _panicked = listener.map(thread::JoinHandle::join);
        // The device moves none of it any more. What stays mapped keeps its addresses.
        dma.unmap(&*house.space)?;
        lock(&house.places).give_back(place);
        result
    }

    fn serve(&mut self) -> Result<(), SessionError> {
        self.connection.send(&answer(DONE, 0, ""), None)?;
        loop {
            let Some((request, file)) = self.connection.receive::<Request>()? else {
                return Ok(());
            };
            let answer = match self.answer(&request, file.as_ref()) {
                Some(Some(answer)) => answer,
                Some(None) => return Ok(()),
                None => return Err(SessionError::Message(request)),
            };
            self.connection.send(&answer, None)?;
        }
    }

    /// None: the request means nothing. None in it: the guest went away.
    fn answer(&mut self, request: &Request, file: Option<&OwnedFd>) -> Option<Option<Answer>> {
        if file.is_some() {
            return None;
        }
        if *request == just(RESET) {
            lock(&self.house.arbiter).reset(self.guest);
            return Some(Some(answer(DONE, 0, "")));
        }
        let wanted = self.wanted(request)?;
        let Some(result) = self.access(&wanted) else {
            return Some(None);
        };
        self.counts.accesses += 1;
        self.counts.hooked += 1;
        let denied = match result {
            Ok(value) => return Some(Some(answer(DONE, value, ""))),
            Err(denied) => denied,
        };
        self.counts.denied += 1;
        let access = if wanted.value.is_some() {
            Access::Write
        } else {
            Access::Read
        };
        self.house.tell(&Event::Denied {
            guest: self.guest,
            at: wanted.at,
            access,
            denied: &denied,
        });
        let status = match denied.policy {
            Policy::MachineCheck => DENIED_STOP,
            _ => DENIED,
        };
        Some(Some(answer(status, 0, &denied.reason)))
    }

    fn wanted(&self, request: &Request) -> Option<Wanted> {
        let value = request.value.get();
        let plain = Request {
            bar: request.bar,
            width: request.width,
            address: request.address,
            ..just(request.kind.get())
        };
        let value = match request.kind.get() {
            READ if *request == plain => None,
            WRITE => {
                let plain = Request {
                    value: request.value,
                    ..plain
                };
                let bits = u32::from(request.width).checked_mul(8)?;
                let fits = value.checked_shr(bits).unwrap_or(0) == 0;
                (*request == plain && fits).then_some(Some(value))?
            }
            _ => return None,
        };
        if !matches!(request.width, 1 | 2 | 4 | 8) {
            return None;
        }
        let mut bars = self.house.physical.bars();
        let space = bars.find(|(bar, _)| *bar == request.bar);
        Some(Wanted {
            at: At {
                // What the model knows nothing of is denied, whatever it is.
                space: space.map_or(u8::MAX, |(_, space)| space),
                offset: request.address.get(),
                width: request.width,
            },
            value,
        })
    }

    /// None: the guest went away before its turn.
    fn access(&self, wanted: &Wanted) -> Option<Result<u64, Denied>> {
        loop {
            let mut arbiter = lock(&self.house.arbiter);
            if self.house.physical.is_lost() {
                return Some(Err(Denied {
                    policy: Policy::Ignore,
                    reason: "the device was not reset".into(),
                }));
            }
            if arbiter.enter(self.guest) {
                let result = match wanted.value {
                    Some(value) => arbiter.write(self.guest, wanted.at, value).map(|()| 0),
                    None => arbiter.read(self.guest, wanted.at),
                };
                arbiter.leave(self.guest);
                return Some(result);
            }
            self.turn.refused();
            drop(arbiter);
            if !self.turn.wait() {
                return None;
            }
        }
    }
}

/// A request that says no more.
fn just(kind: u32) -> Request {
    Request {
        kind: kind.into(),
        ..Request::default()
    }
}

/// None: the process went away.
fn hear_of_memory(connection: &Connection) -> Result<Option<Pieces>, SessionError> {
    let mut pieces = Pieces::default();
    loop {
        let Some((request, file)) = connection.receive::<Request>()? else {
            return Ok(None);
        };
        let memory = Request {
            address: request.address,
            value: request.value,
            offset: request.offset,
            ..just(MEMORY)
        };
        match file {
            None if request == just(READY) => return Ok(Some(pieces)),
            Some(file) if request == memory => {
                let range = (request.address.get(), request.value.get());
                if let Err(error) = pieces.add(range, (file, request.offset.get())) {
                    connection.send(&answer(REFUSED, 0, &error.to_string()), None)?;
                    return Err(error.into());
                }
                connection.send(&answer(DONE, 0, ""), None)?;
            }
            _ => return Err(SessionError::Message(request)),
        }
    }
}

/// Lets the device reach a guest's memory.
fn map(house: &House, pieces: Pieces) -> Result<(Arc<GuestDma>, Place), SessionError> {
    let copies = house.model.shadow_bytes();
    let place = lock(&house.places).take(pieces.extent(), copies)?;
    let mapped = pieces
        .map(place.base)
        .map_err(SessionError::from)
        .and_then(|memory| {
            let space = &*house.space;
            let dma = GuestDma::map_from(space, memory, place.base, place.copies, copies);
            Ok(Arc::new(dma?))
        });
    match mapped {
        Ok(dma) => Ok((dma, place)),
        Err(error) => {
            lock(&house.places).give_back(place);
            Err(error)
        }
    }
}

/// Hears of ends of interrupts, until the guest goes away.
fn listen(house: &House, guest: GuestId, mut bell: &UnixStream, turn: &Turn) {
    let mut rings = [0; 64];
    while bell.read(&mut rings).is_ok_and(|count| count > 0) {
        house.unmask(guest);
    }
    turn.leave();
}
