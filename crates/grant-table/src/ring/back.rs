//! The back end of a ring.

use std::marker::PhantomData;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{RingError, Slots};
use crate::frame::Frame;
use crate::spec::ring::{REQUEST_EVENT, REQUESTS, RESPONSE_EVENT, RESPONSES};

/// The end that takes requests and makes responses.
#[derive(Debug)]
pub struct Back<Q, P> {
    slots: Slots,
    taken: u32,
    answered: u32,
    kinds: PhantomData<(Q, P)>,
}

impl<Q: FromBytes + IntoBytes, P: IntoBytes + Immutable> Back<Q, P> {
    /// The back end of a ring in which no response has been made.
    ///
    /// # Errors
    ///
    /// The pages are no ring.
    pub fn new(pages: Vec<Frame>) -> Result<Self, RingError> {
        Ok(Self {
            slots: Slots::new(pages, size_of::<Q>().max(size_of::<P>()))?,
            taken: 0,
            answered: 0,
            kinds: PhantomData,
        })
    }

    /// How many slots there are.
    pub fn size(&self) -> u32 {
        self.slots.count
    }

    /// Requests that were taken and not answered.
    pub fn unanswered(&self) -> u32 {
        self.taken.wrapping_sub(self.answered)
    }

    /// Requests that can be taken now.
    ///
    /// # Errors
    ///
    /// [`RingError::Overflow`]: the front end has made more requests than there are slots. The ring is not to be used any more.
    pub fn waiting(&self) -> Result<u32, RingError> {
        let index = self.slots.load(REQUESTS);
        let limit = self.answered.wrapping_add(self.slots.count);
        let ahead = index.wrapping_sub(self.answered);
        if ahead > self.slots.count || ahead < self.unanswered() {
            return Err(RingError::Overflow { index, limit });
        }
        Ok(index.wrapping_sub(self.taken))
    }

    /// Takes a request.
    ///
    /// # Errors
    ///
    /// As [`waiting`](Self::waiting).
    pub fn take(&mut self) -> Result<Option<Q>, RingError> {
        if self.waiting()? == 0 {
            return Ok(None);
        }
        let mut request = Q::new_zeroed();
        self.slots.read(self.taken, request.as_mut_bytes());
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(request))
    }

    /// Makes a response, which the front end sees when it is published.
    ///
    /// # Errors
    ///
    /// [`RingError::NoRequest`]: all requests that were taken are answered.
    pub fn respond(&mut self, response: &P) -> Result<(), RingError> {
        if self.unanswered() == 0 {
            return Err(RingError::NoRequest);
        }
        self.slots.write(self.answered, response.as_bytes());
        self.answered = self.answered.wrapping_add(1);
        Ok(())
    }

    /// Publishes the responses; whether to notify the front end.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.slots.publish(RESPONSES, RESPONSE_EVENT, self.answered)
    }

    /// Asks to be notified of the next request; whether there is one already, so that no notification comes.
    #[must_use]
    pub fn finish(&mut self) -> bool {
        self.finish_beyond(0)
    }

    /// As [`finish`](Self::finish), where `waiting` requests are there and are too few.
    #[must_use]
    pub fn finish_beyond(&mut self, waiting: u32) -> bool {
        let known = self.taken.wrapping_add(waiting);
        self.slots.finish(REQUESTS, REQUEST_EVENT, known)
    }
}
