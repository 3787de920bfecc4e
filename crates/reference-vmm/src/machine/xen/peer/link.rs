//! What two VMMs tell each other: a message at a time, with a file or without.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;

use vmm_sys_util::sock_ctrl_msg::ScmSocket as _;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a message is about.
pub(super) mod kind {
    /// A region of the guest's memory: its address, its size, and where in the file that comes along. Not answered.
    pub const MEMORY: u32 = 1;
    /// Those were all. Not answered.
    pub const READY: u32 = 2;
    /// Use a page that the other guest grants: its reference, and flags. Answered with a handle and the number of the page.
    pub const MAP: u32 = 3;
    /// End that: the handle.
    pub const UNMAP: u32 = 4;
    /// Connect to a port of the other guest's: that, and the asker's name of the channel. The eventfd that comes along tells of the asker's
    /// events. Answered with the other name of the channel, and an eventfd for the other direction.
    pub const BIND: u32 = 5;
    /// A channel is closed, which is named by whoever is told.
    pub const CLOSE: u32 = 6;
}

/// A question or an answer.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Message {
    /// [`kind`]; of an answer the same as the question's.
    pub kind: u32,
    /// Of an answer: 0, or what was refused, as the hypercall tells it.
    pub status: i32,
    pub values: [u64; 3],
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Link(pub UnixStream);

impl Link {
    pub fn send(&self, message: &Message, file: Option<&File>) -> io::Result<()> {
        let bytes = message.as_bytes();
        let sent = match file {
            Some(file) => self.0.send_with_fd(bytes, file.as_raw_fd())?,
            None => 0,
        };
        (&self.0).write_all(bytes.get(sent..).unwrap_or_default())
    }

    pub fn receive(&self) -> io::Result<(Message, Option<File>)> {
        let mut message = Message::default();
        let bytes = message.as_mut_bytes();
        let (received, file) = self.0.recv_with_fd(bytes)?;
        let rest = bytes.get_mut(received..).unwrap_or_default();
        if received == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        (&self.0).read_exact(rest)?;
        Ok((message, file))
    }

    /// Asks, and waits for the answer.
    pub fn ask(
        &self,
        kind: u32,
        values: [u64; 3],
        file: Option<&File>,
    ) -> io::Result<(Message, Option<File>)> {
        let status = 0;
        let question = Message {
            kind,
            status,
            values,
        };
        self.send(&question, file)?;
        self.receive()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_with_their_file() {
        let (one, other) = UnixStream::pair().unwrap();
        let (one, other) = (Link(one), Link(other));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"memory").unwrap();
        let message = Message {
            kind: kind::MEMORY,
            status: -3,
            values: [1, u64::MAX, 3],
        };
        one.send(&message, Some(&file)).unwrap();
        one.send(&Message::default(), None).unwrap();
        let (received, same) = other.receive().unwrap();
        assert_eq!(received.as_bytes(), message.as_bytes());
        assert_eq!(same.unwrap().metadata().unwrap().len(), 6);
        let (received, none) = other.receive().unwrap();
        assert_eq!(received.as_bytes(), Message::default().as_bytes());
        assert!(none.is_none());
        // One that goes in the middle of a message.
        one.0
            .try_clone()
            .unwrap()
            .write_all(&message.as_bytes()[..7])
            .unwrap();
        drop(one);
        assert!(other.receive().is_err());
        assert!(other.receive().is_err());
    }
}
