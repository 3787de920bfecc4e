//! Devices that other processes serve.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use virtio_devices::block::spec::Features as BlockFeatures;
use virtio_devices::net::spec::Features as NetFeatures;
use virtio_devices::transport::vhost_user::{FrontendError, FrontendOptions, VhostUserFrontend};
use virtio_devices::{DeviceType, DmaView, Worker};

/// Descriptors in each queue: backends take as many.
const QUEUE_SIZE: u16 = 256;

/// What a network device does without its control queue, which backends leave to the frontend.
const WITHOUT_CONTROL: NetFeatures = NetFeatures::GUEST_OFFLOADS
    .union(NetFeatures::HOST_OFFLOADS)
    .union(NetFeatures::MRG_RXBUF)
    .union(NetFeatures::MAC)
    .union(NetFeatures::STATUS);

/// What a vhost-user backend serves: the protocol does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VhostUserKind {
    /// A block device.
    Block,
    /// A network device, of one queue pair and without a control queue.
    Net,
}

/// A connection to a vhost-user backend.
pub struct VhostUser {
    kind: VhostUserKind,
    path: PathBuf,
    stream: UnixStream,
}

/// Why a vhost-user backend could not be used.
#[derive(Debug, thiserror::Error)]
pub enum VhostUserError {
    /// Its DMA would pass by the IOMMU.
    #[error(
        "a vhost-user backend maps all of the guest's memory, and cannot be put behind an IOMMU"
    )]
    Iommu,
    /// Nobody listens.
    #[error("cannot connect to the vhost-user backend at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is no backend, or cannot do enough.
    #[error("the vhost-user backend at {}: {source}", path.display())]
    Backend {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: FrontendError,
    },
}

impl VhostUser {
    /// Connects to the backend that listens at `path`.
    pub fn connect(kind: VhostUserKind, path: &Path) -> Result<Self, VhostUserError> {
        let stream = UnixStream::connect(path).map_err(|source| VhostUserError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            kind,
            path: path.to_owned(),
            stream,
        })
    }

    /// The device, whose interrupts `worker` passes on.
    pub(super) fn device<A: DmaView>(
        self,
        worker: Worker,
    ) -> Result<VhostUserFrontend<A>, VhostUserError> {
        let Self { kind, path, stream } = self;
        let options = match kind {
            VhostUserKind::Block => FrontendOptions {
                device_type: DeviceType::BLOCK,
                queues: 1,
                queue_size: QUEUE_SIZE,
                hidden_features: BlockFeatures::MQ.bits(),
                config: Vec::new(),
            },
            VhostUserKind::Net => FrontendOptions {
                device_type: DeviceType::NET,
                queues: 2,
                queue_size: QUEUE_SIZE,
                hidden_features: !WITHOUT_CONTROL.bits(),
                config: Vec::new(),
            },
        };
        VhostUserFrontend::new(stream, worker, options)
            .map_err(|source| VhostUserError::Backend { path, source })
    }
}
