//! The front end of a ring.

use std::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{RingError, Slots};
use crate::frame::Frame;
use crate::spec::ring::{REQUEST_EVENT, REQUESTS, RESPONSE_EVENT, RESPONSES};

/// The end that makes requests and takes responses.
#[derive(Debug)]
pub struct Front<Q, P> {
    slots: Slots,
    made: u32,
    taken: u32,
    kinds: PhantomData<(Q, P)>,
}

impl<Q: IntoBytes + Immutable, P: FromBytes + IntoBytes> Front<Q, P> {
    /// A new ring in these pages, whose contents are lost.
    ///
    /// # Errors
    ///
    /// The pages are no ring.
    pub fn new(pages: Vec<Frame>) -> Result<Self, RingError> {
        let slots = Slots::new(pages, size_of::<Q>().max(size_of::<P>()))?;
        slots.pages.iter().for_each(Frame::clear);
        slots.store(REQUEST_EVENT, 1);
        slots.store(RESPONSE_EVENT, 1);
        Ok(Self {
            slots,
            made: 0,
            taken: 0,
            kinds: PhantomData,
        })
    }

    /// How many slots there are.
    pub fn size(&self) -> u32 {
        self.slots.count
    }

    /// Requests that can be made now.
    pub fn free(&self) -> u32 {
        self.slots
            .count
            .wrapping_sub(self.made.wrapping_sub(self.taken))
    }

    /// Makes a request, which the back end sees when it is published.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`].
    pub fn request(&mut self, request: &Q) -> Result<(), RingError> {
        if self.free() == 0 {
            return Err(RingError::Full);
        }
        self.slots.write(self.made, request.as_bytes());
        self.made = self.made.wrapping_add(1);
        Ok(())
    }

    /// Publishes the requests; whether to notify the back end.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.slots.publish(REQUESTS, REQUEST_EVENT, self.made)
    }

    /// Takes a response.
    ///
    /// # Errors
    ///
    /// [`RingError::Overflow`]: the back end has made more responses than there were requests. The ring is not to be used any more.
    pub fn take(&mut self) -> Result<Option<P>, RingError> {
        let index = self.slots.load(RESPONSES);
        let waiting = index.wrapping_sub(self.taken);
        if waiting > self.made.wrapping_sub(self.taken) {
            return Err(RingError::Overflow {
                index,
                limit: self.made,
            });
        }
        if waiting == 0 {
            return Ok(None);
        }
        let mut response = P::new_zeroed();
        self.slots.read(self.taken, response.as_mut_bytes());
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(response))
    }

    /// Asks to be notified of the next response; whether there is one already, so that no notification comes.
    #[must_use]
    pub fn finish(&mut self) -> bool {
        self.slots.finish(RESPONSES, RESPONSE_EVENT, self.taken)
    }
}
