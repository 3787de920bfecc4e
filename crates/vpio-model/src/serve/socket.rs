//! Packets with files.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::cmsg_space;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    accept_with, bind, connect, listen, recvmsg, sendmsg, socket_with, socketpair,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How many guests may wait to be accepted.
const BACKLOG: i32 = 16;

/// A connection between a guest's VMM and an arbiter.
#[derive(Debug)]
pub struct Connection(OwnedFd);

impl Connection {
    /// Connects to an arbiter.
    ///
    /// # Errors
    ///
    /// Nobody listens at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let socket = packets()?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self(socket))
    }

    /// Both ends of one.
    ///
    /// # Errors
    ///
    /// There is no socket to be had.
    pub fn pair() -> io::Result<(Self, Self)> {
        let kind = SocketType::SEQPACKET;
        let (one, other) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Self(one), Self(other)))
    }

    pub(super) fn send<T: IntoBytes + Immutable>(
        &self,
        message: &T,
        file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = file.into_iter().collect();
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let bytes = [IoSlice::new(message.as_bytes())];
        let sent = retried(|| sendmsg(&self.0, &bytes, &mut control, SendFlags::NOSIGNAL))?;
        // A packet goes as a whole.
        debug_assert_eq!(sent, size_of::<T>());
        Ok(())
    }

    /// None at the end of the connection. A packet of another length, or with more than one file, is an error.
    pub(super) fn receive<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
    ) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut message = T::new_zeroed();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(message.as_mut_bytes())];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = retried(|| recvmsg(&self.0, &mut bytes, &mut control, flags))?;
        let mut files = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = part {
                files.extend(some);
            }
        }
        let whole = !received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        match (received.bytes, files.len()) {
            (0, 0) => Ok(None),
            (bytes, 0 | 1) if bytes == size_of::<T>() && whole => Ok(Some((message, files.pop()))),
            _ => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Where an arbiter waits for guests.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Makes a socket at `path`, where nothing may be. Whoever may write to it may take part.
    ///
    /// # Errors
    ///
    /// There is something, or the folder may not be written to.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = packets()?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(Self(socket))
    }

    /// Waits for the next guest.
    ///
    /// # Errors
    ///
    /// As of accept(2).
    pub fn accept(&self) -> io::Result<Connection> {
        Ok(Connection(retried(|| {
            accept_with(&self.0, SocketFlags::CLOEXEC)
        })?))
    }
}

fn packets() -> io::Result<OwnedFd> {
    let kind = SocketType::SEQPACKET;
    Ok(socket_with(
        AddressFamily::UNIX,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn retried<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    Ok(rustix::io::retry_on_intr(&mut call)?)
}
