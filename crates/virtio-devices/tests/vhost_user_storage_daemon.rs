//! A disk that QEMU's storage daemon serves (package qemu-utils), behind our frontend.

mod driver;

use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use driver::{EVENT_IDX, Memory, Part, Reports, Ring};
use virtio_devices::transport::vhost_user::{FrontendOptions, VhostUserFrontend};
use virtio_devices::{DeviceType, VirtioDevice, Worker};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

const DAEMON: &str = "qemu-storage-daemon";

/// Ends with the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_storage_daemons_disk_works_behind_the_frontend() {
    if Command::new(DAEMON).arg("--version").output().is_err() {
        let on_ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
        assert!(!on_ci, "on CI {DAEMON} must be there");
        println!("SKIPPED: there is no {DAEMON} here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (image, socket) = (folder.path().join("image"), folder.path().join("socket"));
    let file = std::fs::File::create_new(&image).unwrap();
    file.set_len(1 << 20).unwrap();
    let blockdev = format!("driver=file,node-name=disk,filename={}", image.display());
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={}",
        socket.display()
    );
    let daemon = Command::new(DAEMON)
        .args(["--blockdev", &blockdev, "--export", &export])
        .spawn();
    let _daemon = Daemon(daemon.unwrap());
    let end = Instant::now() + Duration::from_secs(20);
    let stream = loop {
        match UnixStream::connect(&socket) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        sleep(Duration::from_millis(10));
    };

    let options = FrontendOptions {
        device_type: DeviceType::BLOCK,
        queues: 2,
        queue_size: 64,
        hidden_features: 0,
        config: Vec::new(),
    };
    let worker = Worker::spawn("relay").unwrap();
    let device = VhostUserFrontend::<Memory>::new(stream, worker, options).unwrap();
    let reports = Arc::new(Reports::default());
    device.connect(reports.clone());
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), (1 << 20) / 512);
    let mut block = [0; 4];
    device.read_config(20, &mut block);
    assert_eq!(u32::from_le_bytes(block), 512);
    // It has no such bytes, and says so.
    device.read_config(252, &mut block);
    assert_eq!(block, [0; 4]);

    let ram = tempfile::tempfile().unwrap();
    ram.set_len(0x80_0000).unwrap();
    let range = (GuestAddress(0), 0x80_0000, Some(FileOffset::new(ram, 0)));
    let memory = Arc::new(GuestMemoryMmap::from_ranges_with_files([range]).unwrap());
    // VERSION_1, EVENT_IDX, and of the device FLUSH and MQ.
    let features = 1 << 32 | EVENT_IDX | 1 << 9 | 1 << 12;
    let mut rings = [0, 1].map(|index| Ring::new(&memory, index, 64, features));
    for (index, ring) in (0..).zip(&rings) {
        ring.start(&device, index, None);
    }
    let header = |kind: u32, sector: u64| {
        let mut header = [kind.to_le_bytes(), [0; 4]].concat();
        header.extend(sector.to_le_bytes());
        Part::Read(header)
    };
    for round in 0..100u8 {
        let sector = u64::from(round) * 4;
        let [first, second] = &mut rings;
        let data = vec![round + 1; 2048];
        let write = [header(1, sector), Part::Read(data.clone()), Part::Write(1)];
        assert_eq!(first.round_trip(&write).bytes, [0]);
        let read = second.round_trip(&[header(0, sector), Part::Write(2048), Part::Write(1)]);
        assert_eq!(read.bytes, [&data[..], &[0]].concat());
        if round == 50 {
            // Stopped and started, it goes on.
            let state = device.stop_queue(0);
            assert!(state.is_some());
            first.start(&device, 0, state);
        }
    }
    let flush = rings[0].round_trip(&[header(4, 0), Part::Write(1)]);
    assert_eq!(flush.bytes, [0]);
    for round in 0..100u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, u64::from(round) * 2048 + 2047)
            .unwrap();
        assert_eq!(byte, [round + 1]);
    }
    assert!(!reports.needs_reset());
}
