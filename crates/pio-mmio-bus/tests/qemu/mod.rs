//! QEMU as an oracle: its device models alone, with no CPU running, driven line by line (QEMU's `qtest` protocol).
#![allow(dead_code, reason = "each test uses what it needs of the oracle")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A QEMU that waits for accesses. Ends with the test.
pub struct Qemu {
    child: Child,
    stream: BufReader<UnixStream>,
}

impl Qemu {
    /// A Q35 machine with `arguments`. `None`, with a line that says so, where QEMU is not installed.
    pub fn start(arguments: &[&str]) -> Option<Self> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let theirs = OwnedFd::from(theirs);
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg",
                "-S",
                "-nodefaults",
                "-display",
                "none",
            ])
            .args(["-qtest", "stdio", "-qtest-log", "none"])
            .args(arguments)
            .stdin(Stdio::from(theirs.try_clone().unwrap()))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self {
                child,
                stream: BufReader::new(ours),
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("SKIPPED: qemu-system-x86_64 is not installed");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.stream.get_mut(), "{command}").unwrap();
        let mut answer = String::new();
        self.stream.read_line(&mut answer).unwrap();
        let result = answer.trim_end().strip_prefix("OK");
        result
            .unwrap_or_else(|| panic!("{command}: {answer}"))
            .trim()
            .to_owned()
    }

    /// Sends a command that answers nothing.
    pub fn tell(&mut self, command: &str) {
        assert_eq!(self.ask(command), "", "{command}");
    }

    /// Sends a command that answers a number.
    pub fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        u64::from_str_radix(answer.strip_prefix("0x").unwrap(), 16).unwrap()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that are the same in each run (xorshift64*).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 32) % bound
    }
}
