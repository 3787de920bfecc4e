//! A device at a socket.

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use virtio_devices::transport::vhost_user::VhostUserBackend;

/// Between two attempts to connect to a frontend.
const RETRY: Duration = Duration::from_millis(100);
/// How long a frontend's last requests may take when the program is to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where frontends come from.
pub enum Endpoint {
    /// A socket that was passed to this process.
    Passed(UnixListener),
    /// A path to listen at.
    Listen(PathBuf),
    /// A path at which the frontend listens.
    Connect(PathBuf),
}

/// What a device has transferred, in a line.
pub type Report = Box<dyn Fn() -> String + Send>;

/// A device that is to be served.
pub struct Device {
    /// To whom.
    pub endpoint: Endpoint,
    /// The device.
    pub backend: Arc<VhostUserBackend>,
    /// What is said of it in the end.
    pub report: Option<Report>,
}

/// A device that is served.
pub struct Service {
    current: Arc<Current>,
    report: Option<Report>,
    /// To be removed in the end.
    path: Option<PathBuf>,
}

/// The frontend that is served now.
#[derive(Default)]
struct Current {
    state: Mutex<State>,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    stream: Option<UnixStream>,
}

impl Current {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Serves `device` on a thread of its own.
    pub fn start(device: Device) -> Result<Self> {
        let Device {
            endpoint,
            backend,
            report,
        } = device;
        let current = Arc::new(Current::default());
        let serving = Arc::clone(&current);
        let mut path = None;
        let mut next: Box<dyn FnMut() -> io::Result<UnixStream> + Send> = match endpoint {
            Endpoint::Passed(listener) => Box::new(move || Ok(listener.accept()?.0)),
            Endpoint::Listen(at) => {
                let listener =
                    listen(&at).with_context(|| format!("cannot listen at {}", at.display()))?;
                path = Some(at);
                Box::new(move || Ok(listener.accept()?.0))
            }
            Endpoint::Connect(at) => Box::new(move || {
                loop {
                    match UnixStream::connect(&at) {
                        Ok(stream) => return Ok(stream),
                        Err(_) => thread::sleep(RETRY),
                    }
                }
            }),
        };
        thread::Builder::new()
            .name("frontend".to_owned())
            .spawn(move || {
                loop {
                    let result = next().and_then(|stream| serve(&backend, stream, &serving));
                    if let Err(error) = result {
                        eprintln!("vring-vhost: {error}");
                        // Such as no descriptors left.
                        thread::sleep(RETRY);
                    }
                }
            })?;
        Ok(Self {
            current,
            report,
            path,
        })
    }

    /// Lets go of the frontend, once what it asked for is done.
    pub fn stop(self) {
        let mut state = self.current.lock();
        state.stopping = true;
        if let Some(stream) = &state.stream {
            // Fails if the frontend is gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Frontends that hold it up for longer lose what is in flight.
        let _ = self
            .current
            .idle
            .wait_timeout_while(state, PATIENCE, |state| state.stream.is_some());
        if let Some(path) = self.path {
            let _ = std::fs::remove_file(path);
        }
        if let Some(report) = self.report {
            println!("{}", report());
        }
    }
}

fn serve(backend: &VhostUserBackend, stream: UnixStream, current: &Current) -> io::Result<()> {
    let clone = stream.try_clone()?;
    {
        let mut state = current.lock();
        if state.stopping {
            return Ok(());
        }
        state.stream = Some(clone);
    }
    let result = backend.serve(stream);
    current.lock().stream = None;
    current.idle.notify_all();
    result.map_err(io::Error::other)
}

/// Listens at `path`, also where a process that died has left its socket.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => match UnixStream::connect(path) {
            Err(refused) if refused.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(error),
        },
        result => result,
    }
}
