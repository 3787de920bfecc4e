//! QEMU as an oracle for tests: its device models alone, driven line by line in its `qtest` protocol.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::NamedTempFile;

/// The program.
const PROGRAM: &str = "qemu-system-x86_64";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The instruction.
const HLT: u8 = 0xf4;

/// A Q35 machine of QEMU's that waits for commands. Ends with the value.
///
/// Its methods panic where QEMU does not answer or answers that it failed: a test cannot go on.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    stream: BufReader<UnixStream>,
    commands: u64,
    /// Kept as long as QEMU may read it.
    _firmware: Option<NamedTempFile>,
}

impl Qemu {
    /// A machine with `arguments`, words with spaces between, whose processor never starts.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started: [`io::ErrorKind::NotFound`] where it is not installed.
    pub fn stopped(arguments: &str) -> io::Result<Self> {
        Self::start(Command::new(PROGRAM).arg("-S"), arguments, None)
    }

    /// A machine with `arguments`, words with spaces between, whose processor halts at once, and whose clock runs.
    ///
    /// # Errors
    ///
    /// As [`stopped`](Self::stopped).
    pub fn halted(arguments: &str) -> io::Result<Self> {
        let mut code = [HLT; 0x1_0000];
        // At the reset vector: cli, hlt, and back.
        code[0xfff0..0xfff4].copy_from_slice(&[0xfa, HLT, 0xeb, 0xfd]);
        let mut firmware = NamedTempFile::new()?;
        firmware.write_all(&code)?;
        let mut command = Command::new(PROGRAM);
        command.arg("-bios").arg(firmware.path());
        Self::start(&mut command, arguments, Some(firmware))
    }

    fn start(
        command: &mut Command,
        arguments: &str,
        firmware: Option<NamedTempFile>,
    ) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        let theirs = OwnedFd::from(theirs);
        let child = command
            .args("-M q35 -m 16M -accel tcg -nodefaults -display none".split(' '))
            .args("-qtest stdio -qtest-log none".split(' '))
            .args(arguments.split_whitespace())
            .stdin(Stdio::from(theirs.try_clone()?))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            child,
            stream: BufReader::new(ours),
            commands: 0,
            _firmware: firmware,
        })
    }

    /// What QEMU answers to a command.
    #[expect(clippy::panic, reason = "see the type")]
    pub fn ask(&mut self, command: &str) -> String {
        self.commands += 1;
        match self.answer(command) {
            Ok(answer) => match answer.strip_prefix("OK") {
                Some(answer) => answer.trim().to_owned(),
                None => panic!("{command}: {answer}"),
            },
            Err(error) => panic!("{command}: {error}"),
        }
    }

    fn answer(&mut self, command: &str) -> io::Result<String> {
        writeln!(self.stream.get_mut(), "{command}")?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer)?;
        Ok(answer)
    }

    /// Gives a command that answers nothing.
    pub fn tell(&mut self, command: &str) {
        assert_eq!(self.ask(command), "", "{command}");
    }

    /// Gives a command that answers a number.
    #[expect(clippy::panic, reason = "see the type")]
    pub fn number(&mut self, command: &str) -> u64 {
        let answer = self.ask(command);
        let digits = answer.strip_prefix("0x");
        let number = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        number.unwrap_or_else(|| panic!("{command}: {answer}"))
    }

    /// Writes a register of the configuration space of the function in slot `slot` of bus 0.
    pub fn configure(&mut self, slot: u32, register: u32, value: u32) {
        let address = 0x8000_0000 | slot << 11 | register;
        self.tell(&format!("outl 0xcf8 {address:#x}"));
        self.tell(&format!("outl 0xcfc {value:#x}"));
    }

    /// How many commands there were.
    pub fn commands(&self) -> u64 {
        self.commands
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What was started; none, with a line that says so, where QEMU is not installed.
///
/// # Panics
///
/// It is installed, but could not be started.
#[expect(clippy::panic, reason = "a test cannot go on")]
pub fn if_installed(started: io::Result<Qemu>) -> Option<Qemu> {
    match started {
        Ok(qemu) => Some(qemu),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("SKIPPED: {PROGRAM} is not installed");
            None
        }
        Err(error) => panic!("{PROGRAM}: {error}"),
    }
}
