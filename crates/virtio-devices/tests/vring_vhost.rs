//! The program as a user, a service manager and a frontend meet it.
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use driver::{Memory, wait_until};
use virtio_devices::transport::vhost_user::{FrontendOptions, VhostUserFrontend};
use virtio_devices::{DeviceType, VirtioDevice, Worker};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vring-vhost");

/// Killed with the test, if it still runs.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Ends it as a service manager does, and returns what it printed.
    fn terminate(mut self) -> String {
        let pid = self.0.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(killed.unwrap().success());
        assert!(self.0.wait().unwrap().success());
        let mut output = String::new();
        let mut stdout = self.0.stdout.take().unwrap();
        stdout.read_to_string(&mut output).unwrap();
        output
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

/// The capacity of the disk at `socket`, in sectors.
fn capacity(socket: &Path) -> u64 {
    let options = FrontendOptions {
        device_type: DeviceType::BLOCK,
        queues: 1,
        queue_size: 64,
        hidden_features: 0,
        config: Vec::new(),
    };
    let stream = UnixStream::connect(socket).unwrap();
    let worker = Worker::spawn("relay").unwrap();
    let disk = VhostUserFrontend::<Memory>::new(stream, worker, options).unwrap();
    let mut capacity = [0; 8];
    disk.read_config(0, &mut capacity);
    u64::from_le_bytes(capacity)
}

#[test]
fn help_names_every_device_and_option() {
    for (args, wanted) in [
        (
            &["--help"][..],
            &["blk", "net", "LISTEN_FDS", "SIGTERM"][..],
        ),
        (
            &["blk", "--help"],
            &[
                "--socket",
                "--connect",
                "--file",
                "--null",
                "--read-only",
                "--queues",
            ],
        ),
        (
            &["net", "--help"],
            &[
                "--tap",
                "--loopback",
                "--forward",
                "--flood",
                "--queue-pairs",
                "--mac",
            ],
        ),
    ] {
        let output = run(args);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        for word in wanted {
            assert!(text.contains(word), "{args:?}: {word}");
        }
    }
}

#[test]
fn wrong_arguments_are_refused() {
    for (args, status, wanted) in [
        (&["blk"][..], 2, "--file"),
        (&["blk", "--null", "512", "--file", "f"], 2, "--null"),
        (&["net", "--loopback", "--connect"], 2, "--socket"),
        (
            &["net", "--loopback"],
            1,
            "1 sockets are needed, 0 were given",
        ),
        (
            &["net", "--forward", "--socket", "s"],
            1,
            "2 sockets are needed, 1 were given",
        ),
        (
            &["blk", "--file", "/no/disk", "--socket", "s"],
            1,
            "cannot open /no/disk",
        ),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(wanted), "{args:?}: {text}");
    }
}

#[test]
fn sigterm_ends_it_cleanly_also_while_a_frontend_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let program = Running::start(
        Command::new(PROGRAM)
            .args(["net", "--loopback", "--socket"])
            .arg(&socket),
    );
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    let _frontend = UnixStream::connect(&socket).unwrap();
    let output = program.terminate();
    assert!(output.starts_with("net 0: "), "{output}");
    assert!(!socket.exists());
}

#[test]
fn a_socket_that_a_dead_process_left_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    drop(UnixListener::bind(&socket).unwrap());
    let mut command = Command::new(PROGRAM);
    command
        .args(["blk", "--null", "8192", "--socket"])
        .arg(&socket);
    let program = Running::start(&mut command);
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    assert_eq!(capacity(&socket), 16);
    // But not that of one that lives.
    let second = command.output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    program.terminate();
}

#[test]
fn it_serves_the_socket_that_systemd_passes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    // The listener comes as descriptor 3, and the process has the number that the environment says (sd_listen_fds(3)).
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" blk --null 8192 3<&0 </dev/null";
    let program = Running::start(
        Command::new("sh")
            .args(["-c", script, PROGRAM])
            .stdin(OwnedFd::from(listener)),
    );
    assert_eq!(capacity(&socket), 16);
    assert_eq!(capacity(&socket), 16);
    program.terminate();
    // It is systemd's.
    assert!(socket.exists());
    // For another process, the variables mean nothing.
    let other = Command::new(PROGRAM)
        .args(["blk", "--null", "8192"])
        .envs([("LISTEN_PID", "1"), ("LISTEN_FDS", "1")])
        .output()
        .unwrap();
    assert_eq!(other.status.code(), Some(1));
}

#[test]
fn a_tap_interface_is_there_while_it_is_served() {
    const NAME: &str = "vringvhosttest";
    let interface = Path::new("/sys/class/net").join(NAME);
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let mut command = Command::new(PROGRAM);
    command
        .args(["net", "--tap", NAME, "--socket"])
        .arg(&socket);
    let tun = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    let root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    if !root || tun.is_err() {
        println!("SKIPPED: no tap interfaces can be made here");
        return;
    }
    let program = Running::start(&mut command);
    wait_until("it listens", || UnixStream::connect(&socket).is_ok());
    assert!(interface.exists());
    program.terminate();
    assert!(!interface.exists());
}
