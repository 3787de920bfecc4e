//! Serves a file as a disk to the kernel of domain 0 of a real Xen, which also is the only other user of the store that this serves.
//!
//! `blkback FILE DETACH`: the disk is `/dev/xvda` until the file `DETACH` is there; what is left then is closed. Nothing else of Xen's may run: no xenstored, no back end.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "an example of few words"
)]

#[cfg(target_os = "linux")]
fn main() {
    use std::path::Path;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file, detach] = &arguments[..] else {
        panic!("usage: blkback FILE DETACH");
    };
    dom0::serve(Path::new(file), Path::new(detach));
}

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
mod dom0 {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;
    use std::time::Duration;

    use grant_table::block::{BlockBack, Disk, Limits};
    use grant_table::guest::Access;
    use grant_table::linux::{EventDevice, GrantDevice, KernelStore};
    use grant_table::spec::DomId;
    use grant_table::spec::block::SECTOR;
    use grant_table::spec::event::Port;
    use grant_table::spec::grant::GrantRef;
    use grant_table::spec::xenbus::XenbusState as State;
    use grant_table::spec::xenstore::kind;
    use grant_table::xenbus::{Action, Role, closed, react};
    use grant_table::xenstore::{Connection, Message, Quota, XenStore};

    /// The kernel's domain, in which this program runs too.
    const KERNEL: DomId = DomId(0);
    /// Who this program is to the store, so that its answers are not the kernel's.
    const SELF: DomId = DomId(1);
    const BACK: &str = "/local/domain/0/backend/vbd/0/51712";
    const FRONT: &str = "/local/domain/0/device/vbd/51712";
    const LIMITS: Limits = Limits {
        indirect_segments: 32,
        persistent: 256,
        read_only: false,
    };

    struct FileDisk(File);

    impl Disk for FileDisk {
        fn sectors(&self) -> u64 {
            self.0.metadata().unwrap().len() / SECTOR as u64
        }

        fn read(&mut self, sector: u64, bytes: &mut [u8]) -> io::Result<()> {
            self.0.read_exact_at(bytes, sector * SECTOR as u64)
        }

        fn write(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()> {
            self.0.write_all_at(bytes, sector * SECTOR as u64)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.sync_data()
        }
    }

    /// Makes a request of the store; the answer, unless it is an error.
    fn ask(store: &mut XenStore, who: DomId, kind: u32, payload: &str) -> Option<String> {
        let message = Message {
            kind,
            request: 0,
            transaction: 0,
            payload: payload.into(),
        };
        store.request(who, &message);
        loop {
            let answer = store.next(who)?;
            match answer.kind {
                kind::WATCH_EVENT => {}
                kind::ERROR => return None,
                _ => return Some(String::from_utf8_lossy(&answer.payload).into_owned()),
            }
        }
    }

    /// The store as tools make it for a disk.
    fn prepare(sectors: u64) -> XenStore {
        let mut store = XenStore::new(Quota::default());
        store.introduce(SELF);
        let mut tool = |kind, payload: &str| {
            let answer = ask(&mut store, KERNEL, kind, payload);
            assert!(answer.is_some(), "{payload:?} was refused");
        };
        let back = [
            ("frontend", FRONT.to_owned()),
            ("frontend-id", "0".to_owned()),
            ("sectors", sectors.to_string()),
            ("sector-size", SECTOR.to_string()),
            ("info", "0".to_owned()),
            ("feature-flush-cache", "1".to_owned()),
            ("feature-persistent", "1".to_owned()),
            (
                "feature-max-indirect-segments",
                LIMITS.indirect_segments.to_string(),
            ),
            ("state", State::InitWait.value()),
        ];
        let front = [
            ("backend", BACK.to_owned()),
            ("backend-id", "0".to_owned()),
            ("virtual-device", "51712".to_owned()),
            ("device-type", "disk".to_owned()),
            ("state", State::Initialising.value()),
        ];
        for (folder, permissions, nodes) in [
            (BACK, "n1\0r0\0", &back[..]),
            (FRONT, "n0\0r1\0", &front[..]),
        ] {
            tool(kind::MKDIR, &format!("{folder}\0"));
            tool(kind::SET_PERMS, &format!("{folder}\0{permissions}"));
            for (name, value) in nodes {
                tool(kind::WRITE, &format!("{folder}/{name}\0{value}"));
            }
        }
        store
    }

    /// A disk in use: its port, and what serves its ring.
    type Connected = (Port, BlockBack<GrantDevice, FileDisk>);

    struct Server {
        store: XenStore,
        events: EventDevice,
        grants: GrantDevice,
        file: File,
        state: State,
        connected: Option<Connected>,
    }

    pub fn serve(file: &Path, detach: &Path) {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(file)
            .unwrap();
        let disk = FileDisk(file.try_clone().unwrap());
        let kernel = KernelStore::open().unwrap();
        let events = EventDevice::open().unwrap();
        let kernel_port = events.bind_interdomain(KERNEL, kernel.port).unwrap();
        let mut connection = Connection::new(KERNEL, kernel.page);
        let mut server = Server {
            store: prepare(disk.sectors()),
            events,
            grants: GrantDevice::open().unwrap(),
            file,
            state: State::InitWait,
            connected: None,
        };
        server.events.notify(kernel_port).unwrap();
        while server.state != State::Closed {
            server.events.wait(Duration::from_millis(200)).unwrap();
            let ports = server.events.take().unwrap();
            server.serve_ring();
            if detach.exists() && server.state == State::Connected {
                server.enter(State::Closing);
            }
            server.follow();
            // What this program changed is the kernel's to know.
            while connection.serve(&mut server.store).unwrap() {
                server.events.notify(kernel_port).unwrap();
                server.follow();
            }
            server.events.unmask(&ports).unwrap();
        }
        println!("blkback: closed");
    }

    impl Server {
        fn serve_ring(&mut self) {
            let Some((port, back)) = &mut self.connected else {
                return;
            };
            loop {
                if back.serve().unwrap() {
                    self.events.notify(*port).unwrap();
                }
                if !back.is_waiting() {
                    return;
                }
            }
        }

        fn read(&mut self, name: &str) -> Option<String> {
            ask(
                &mut self.store,
                SELF,
                kind::READ,
                &format!("{FRONT}/{name}\0"),
            )
        }

        fn enter(&mut self, state: State) {
            self.state = state;
            let node = format!("{BACK}/state\0{}", state.value());
            ask(&mut self.store, SELF, kind::WRITE, &node).unwrap();
        }

        /// Does what the front end's state asks for.
        fn follow(&mut self) {
            let peer = State::parse(self.read("state").unwrap_or_default().as_bytes());
            let Some((action, next)) = react(Role::Back, self.state, peer) else {
                return;
            };
            match action {
                Action::Publish => {}
                Action::Connect => self.connected = Some(self.connect()),
                Action::Disconnect => {
                    if let Some((port, back)) = self.connected.take() {
                        back.disconnect();
                        self.events.unbind(port).unwrap();
                    }
                }
            }
            self.enter(next);
            if let Some(next) = closed(self.state) {
                self.enter(next);
            }
        }

        fn connect(&mut self) -> Connected {
            let mut number = |name| self.read(name).unwrap().parse().unwrap();
            let (ring, port) = (GrantRef(number("ring-ref")), Port(number("event-channel")));
            let persistent = self.read("feature-persistent").as_deref() == Some("1");
            let limits = Limits {
                persistent: if persistent { LIMITS.persistent } else { 0 },
                ..LIMITS
            };
            let page = self.grants.map(KERNEL, &[ring], Access::ReadWrite).unwrap();
            let page = page.frame(0).unwrap();
            let disk = FileDisk(self.file.try_clone().unwrap());
            let back = BlockBack::new(vec![page], KERNEL, self.grants.clone(), disk, limits);
            let port = self.events.bind_interdomain(KERNEL, port).unwrap();
            println!("blkback: connected, persistent grants: {persistent}");
            (port, back.unwrap())
        }
    }
}
