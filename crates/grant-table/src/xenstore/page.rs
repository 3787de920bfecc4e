//! The page through which a domain talks to the store: two rings of bytes.

use std::sync::atomic::Ordering;

use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Message, XenStore};
use crate::frame::Frame;
use crate::spec::DomId;
use crate::spec::xenstore::{Header, PAYLOAD, page};

/// What the other end did that it must not. The connection is not to be used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Its index is further than a ring is long.
    #[error("indices {consumer} and {producer} are too far apart")]
    Indices {
        /// Bytes that are consumed.
        consumer: u32,
        /// Bytes that are produced.
        producer: u32,
    },
    /// A message is longer than messages are.
    #[error("a payload of {0} bytes")]
    Length(u32),
}

/// One direction.
#[derive(Clone, Copy, Debug)]
struct Direction {
    data: usize,
    consumer: usize,
    producer: usize,
}

const REQUESTS: Direction = Direction {
    data: page::REQUESTS,
    consumer: page::REQUEST_CONSUMER,
    producer: page::REQUEST_PRODUCER,
};
const RESPONSES: Direction = Direction {
    data: page::RESPONSES,
    consumer: page::RESPONSE_CONSUMER,
    producer: page::RESPONSE_PRODUCER,
};

/// Reads messages from one direction and writes them to the other.
#[derive(Debug)]
struct Stream {
    page: Frame,
    reads: Direction,
    writes: Direction,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Stream {
    fn indices(&self, direction: Direction) -> Result<(u32, u32), PageError> {
        let load = |at| {
            self.page
                .u32(at)
                .map_or(0, |index| index.load(Ordering::SeqCst))
        };
        let (consumer, producer) = (load(direction.consumer), load(direction.producer));
        if producer.wrapping_sub(consumer) > page::RING {
            return Err(PageError::Indices { consumer, producer });
        }
        Ok((consumer, producer))
    }

    /// The bytes from an index to the end of the ring or `length`: where, and how many.
    fn run(direction: Direction, index: u32, length: u32) -> (usize, u32) {
        let at = index % page::RING;
        let offset = usize::try_from(at).unwrap_or(0);
        (direction.data + offset, length.min(page::RING - at))
    }

    fn store(&self, at: usize, index: u32) {
        if let Some(word) = self.page.u32(at) {
            word.store(index, Ordering::SeqCst);
        }
    }

    /// Takes what has come; whether that was something.
    fn fill(&mut self) -> Result<bool, PageError> {
        let (mut consumer, producer) = self.indices(self.reads)?;
        let any = consumer != producer;
        while consumer != producer {
            let (at, length) = Self::run(self.reads, consumer, producer.wrapping_sub(consumer));
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            // Within the page, as rings are.
            let _read = self.page.read(at, &mut bytes);
            self.incoming.extend(bytes);
            consumer = consumer.wrapping_add(length);
        }
        self.store(self.reads.consumer, consumer);
        Ok(any)
    }

    /// A message that has come wholly.
    fn message(&mut self) -> Result<Option<Message>, PageError> {
        let Ok((header, rest)) = Header::read_from_prefix(&self.incoming) else {
            return Ok(None);
        };
        let length = usize::try_from(header.length)
            .ok()
            .filter(|&length| length <= PAYLOAD);
        let length = length.ok_or(PageError::Length(header.length))?;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let message = Message {
            kind: header.kind,
            request: header.request,
            transaction: header.transaction,
            payload: payload.to_vec(),
        };
        self.incoming.drain(..size_of::<Header>() + length);
        Ok(Some(message))
    }

    fn queue(&mut self, message: &Message) {
        self.outgoing.extend_from_slice(message.header().as_bytes());
        self.outgoing.extend_from_slice(&message.payload);
    }

    /// Writes what there is room for; whether that was something.
    fn drain(&mut self) -> Result<bool, PageError> {
        let mut any = false;
        while !self.outgoing.is_empty() {
            let (consumer, producer) = self.indices(self.writes)?;
            let room = page::RING - producer.wrapping_sub(consumer);
            let left = u32::try_from(self.outgoing.len()).unwrap_or(u32::MAX);
            let (at, length) = Self::run(self.writes, producer, room.min(left));
            if length == 0 {
                break;
            }
            let count = usize::try_from(length)
                .unwrap_or(0)
                .min(self.outgoing.len());
            let bytes: Vec<_> = self.outgoing.drain(..count).collect();
            // Within the page, as rings are.
            let _written = self.page.write(at, &bytes);
            self.store(self.writes.producer, producer.wrapping_add(length));
            any = true;
        }
        Ok(any)
    }
}

/// The store's end of a domain's page.
#[derive(Debug)]
pub struct Connection {
    domain: DomId,
    stream: Stream,
}

impl Connection {
    /// The connection of a domain that was introduced.
    pub fn new(domain: DomId, page: Frame) -> Self {
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        let stream = Stream {
            page,
            reads: REQUESTS,
            writes: RESPONSES,
            incoming,
            outgoing,
        };
        Self { domain, stream }
    }

    /// Serves the requests that have come and writes what there is room for; whether to notify the domain. If so, it is to be called again
    /// before the domain's next event is waited for: Linux sends one only when it finds all taken that it wrote before, or when it takes
    /// something from a ring that is full.
    ///
    /// # Errors
    ///
    /// The domain broke its page.
    pub fn serve(&mut self, store: &mut XenStore) -> Result<bool, PageError> {
        let mut notify = false;
        // A domain that does not take its answers is not served.
        if self.stream.outgoing.is_empty() {
            notify |= self.stream.fill()?;
            while let Some(message) = self.stream.message()? {
                store.request(self.domain, &message);
            }
        }
        loop {
            notify |= self.stream.drain()?;
            if !self.stream.outgoing.is_empty() {
                return Ok(notify);
            }
            match store.next(self.domain) {
                Some(message) => self.stream.queue(&message),
                None => return Ok(notify),
            }
        }
    }
}

/// A domain's end of its page.
#[derive(Debug)]
pub struct StoreClient {
    stream: Stream,
}

impl StoreClient {
    /// The client of a page.
    pub fn new(page: Frame) -> Self {
        let (incoming, outgoing) = (Vec::new(), Vec::new());
        Self {
            stream: Stream {
                page,
                reads: RESPONSES,
                writes: REQUESTS,
                incoming,
                outgoing,
            },
        }
    }

    /// Sends a message, as far as there is room for it and those before. Whether to notify the store.
    ///
    /// # Errors
    ///
    /// The store broke the page.
    pub fn send(&mut self, message: &Message) -> Result<bool, PageError> {
        self.stream.queue(message);
        self.stream.drain()
    }

    /// Takes a message, and sends more of what there was no room for. Whether to notify the store comes with it.
    ///
    /// # Errors
    ///
    /// The store broke the page.
    pub fn take(&mut self) -> Result<(Option<Message>, bool), PageError> {
        let notify = self.stream.fill()? | self.stream.drain()?;
        Ok((self.stream.message()?, notify))
    }
}
