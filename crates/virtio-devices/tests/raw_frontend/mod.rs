//! A frontend of vhost-user that writes its messages by hand.
#![allow(dead_code, reason = "each test uses its part")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use virtio_devices::transport::vhost_user::{VhostUserBackend, VhostUserError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

pub const VERSION_1: u64 = 1 << 32;
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// LOG_SHMFD, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
pub const PROTOCOL: u64 = 1 << 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 15;

/// A frontend that writes its messages by hand.
pub struct Raw {
    pub stream: UnixStream,
    pub serving: JoinHandle<Result<(), VhostUserError>>,
}

pub fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn halves(halves: &[u32]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

impl Raw {
    pub fn connect(backend: &Arc<VhostUserBackend>) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let backend = Arc::clone(backend);
        let serving = thread::spawn(move || backend.serve(theirs));
        Self { stream, serving }
    }

    /// One that has negotiated all that is needed.
    pub fn negotiated(backend: &Arc<VhostUserBackend>) -> Self {
        let raw = Self::connect(backend);
        raw.send(SET_OWNER, &[], &[]);
        raw.send(1, &[], &[]);
        raw.reply();
        raw.send(SET_PROTOCOL_FEATURES, &words(&[PROTOCOL]), &[]);
        raw.send(SET_FEATURES, &words(&[VERSION_1 | PROTOCOL_FEATURES]), &[]);
        raw
    }

    pub fn send(&self, code: u32, payload: &[u8], files: &[RawFd]) {
        let size = u32::try_from(payload.len()).unwrap();
        let message = [halves(&[code, 1, size]), payload.to_vec()].concat();
        // Fails if the backend has hung up, which is what most tests wait for.
        let _ = self.stream.send_with_fds(&[message.as_slice()], files);
    }

    pub fn reply(&self) -> Vec<u8> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).unwrap();
        let size = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        let mut payload = vec![0; size as usize];
        (&self.stream).read_exact(&mut payload).unwrap();
        payload
    }

    /// Shares `size` bytes of `file` at guest-physical (and its own) address `at`.
    pub fn share(&self, file: &File, at: u64, size: u64, offset: u64) {
        let table = [halves(&[1, 0]), words(&[at, size, at, offset])].concat();
        self.send(SET_MEM_TABLE, &table, &[file.as_raw_fd()]);
    }

    /// What the backend has against it.
    pub fn refused(self) -> VhostUserError {
        self.serving.join().unwrap().unwrap_err()
    }

    /// Nothing was wrong.
    pub fn served(self) {
        drop(self.stream);
        self.serving.join().unwrap().unwrap();
    }
}

pub fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

pub fn event() -> EventFd {
    EventFd::new(EFD_NONBLOCK).unwrap()
}

/// An in-flight message: length, offset, number and size of queues.
pub fn in_flight(len: u64, offset: u64, queues: u16, size: u16) -> Vec<u8> {
    let sizes = halves(&[u32::from(size) << 16 | u32::from(queues), 0]);
    [words(&[len, offset]), sizes].concat()
}
