//! The command line, and the devices it asks for.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args as ClapArgs, Parser, Subcommand};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, FileDisk, NullDisk};
use virtio_devices::net::{Cable, FloodNet, MacAddress, Net, NetBackend, Tap};
use virtio_devices::transport::vhost_user::VhostUserBackend;

use crate::activation;
use crate::service::{Device, Endpoint, Report};

/// Serve a virtio device to vhost-user frontends, one after the other
///
/// Without --socket the sockets are taken that systemd passes (LISTEN_FDS). SIGTERM and SIGINT end the program, after what is in
/// flight is done.
#[derive(Parser, Debug)]
#[command(version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    device: Kind,
}

#[derive(Subcommand, Debug)]
enum Kind {
    /// Serve a disk
    Blk(Blk),
    /// Serve a network card
    Net(NetArgs),
}

#[derive(ClapArgs, Debug)]
struct Sockets {
    /// Path of the Unix socket; twice for net --forward
    #[arg(long = "socket", value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Connect to a socket on which the frontend listens, again and again, instead of listening
    #[arg(long, requires = "paths")]
    connect: bool,
}

#[derive(ClapArgs, Debug)]
struct Blk {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    medium: Medium,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Number of request queues
    #[arg(long, default_value_t = 1, value_name = "N")]
    queues: u16,
    /// Greatest size of each queue, in descriptors
    #[arg(long, default_value_t = 256, value_name = "N")]
    queue_size: u16,
}

#[derive(ClapArgs, Debug)]
#[group(required = true, multiple = false)]
struct Medium {
    /// Image file or block device
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A disk of this many bytes that stores nothing, to measure with
    #[arg(long, value_name = "BYTES")]
    null: Option<u64>,
}

#[derive(ClapArgs, Debug)]
struct NetArgs {
    #[command(flatten)]
    sockets: Sockets,
    #[command(flatten)]
    network: Network,
    /// Number of queue pairs
    #[arg(long, default_value_t = 1, value_name = "N")]
    queue_pairs: u16,
    /// Address of the card; a second card has the next one
    #[arg(long, default_value = "02:00:00:00:00:01", value_name = "MAC")]
    mac: MacAddress,
}

#[derive(ClapArgs, Debug)]
#[group(required = true, multiple = false)]
struct Network {
    /// Tap interface, which is made if it does not exist
    #[arg(long, value_name = "NAME")]
    tap: Option<String>,
    /// Hand frames back to where they come from
    #[arg(long)]
    loopback: bool,
    /// Take all frames, and have short ones without end to receive, to measure with
    #[arg(long)]
    flood: bool,
    /// Hand frames from one of two sockets to the other
    #[arg(long)]
    forward: bool,
}

impl Sockets {
    /// As many as are needed, and no more.
    fn endpoints(self, count: usize) -> Result<Vec<Endpoint>> {
        let endpoints: Vec<Endpoint> = match (self.paths, self.connect) {
            (paths, false) if paths.is_empty() => activation::sockets()?
                .into_iter()
                .map(Endpoint::Passed)
                .collect(),
            (paths, false) => paths.into_iter().map(Endpoint::Listen).collect(),
            (paths, true) => paths.into_iter().map(Endpoint::Connect).collect(),
        };
        ensure!(
            endpoints.len() == count,
            "{count} sockets are needed, {} were given",
            endpoints.len()
        );
        Ok(endpoints)
    }
}

impl Args {
    /// Makes the devices.
    pub fn devices(self) -> Result<Vec<Device>> {
        match self.device {
            Kind::Blk(args) => args.devices(),
            Kind::Net(args) => args.devices(),
        }
    }
}

impl Blk {
    fn devices(self) -> Result<Vec<Device>> {
        let endpoints = self.sockets.endpoints(1)?;
        let options = BlockOptions {
            queues: self.queues,
            queue_size: self.queue_size,
            ..BlockOptions::default()
        };
        let workers = workers("blk", self.queues)?;
        let backend = match (self.medium.file, self.medium.null) {
            (Some(path), _) => {
                let disk = FileDisk::open(&path, self.read_only)
                    .with_context(|| format!("cannot open {}", path.display()))?;
                VhostUserBackend::new(Arc::new(Block::new(disk, workers, options)?))
            }
            (None, Some(size)) => {
                let block = Block::new(NullDisk::new(size), workers, options)?;
                VhostUserBackend::new(Arc::new(block))
            }
            (None, None) => bail!("--file or --null is needed"),
        };
        let backend = Arc::new(backend);
        let devices = endpoints.into_iter().map(|endpoint| Device {
            endpoint,
            backend: Arc::clone(&backend),
            report: None,
        });
        Ok(devices.collect())
    }
}

impl NetArgs {
    fn devices(self) -> Result<Vec<Device>> {
        let pairs = self.queue_pairs;
        let endpoints = self
            .sockets
            .endpoints(if self.network.forward { 2 } else { 1 })?;
        let mut macs = (0..).map_while(|n| next_mac(self.mac, n));
        let mut card = |endpoint, number| {
            let mac = macs.next().context("there is no next address")?;
            Ok::<_, anyhow::Error>((endpoint, number, mac))
        };
        let cards = endpoints
            .into_iter()
            .zip(0..)
            .map(|(endpoint, number)| card(endpoint, number))
            .collect::<Result<Vec<_>>>()?;
        if let Some(name) = &self.network.tap {
            let backends = [Tap::open(name, pairs)?];
            return net_devices(cards, backends, pairs);
        }
        if self.network.loopback {
            return net_devices(cards, [Cable::looped(pairs)?], pairs);
        }
        if self.network.flood {
            return net_devices(cards, [FloodNet::new(pairs)?], pairs);
        }
        net_devices(cards, <[Cable; 2]>::from(Cable::new(pairs)?), pairs)
    }
}

fn net_devices<B: NetBackend>(
    cards: Vec<(Endpoint, usize, MacAddress)>,
    backends: impl IntoIterator<Item = B>,
    pairs: u16,
) -> Result<Vec<Device>> {
    cards
        .into_iter()
        .zip(backends)
        .map(|((endpoint, number, mac), backend)| {
            let workers = workers("net", pairs)?;
            let net = Arc::new(Net::new(backend, mac, workers)?);
            let counters = Arc::clone(&net);
            let report: Report =
                Box::new(move || format!("net {number}: {:?}", counters.statistics()));
            Ok(Device {
                endpoint,
                backend: Arc::new(VhostUserBackend::new(net)),
                report: Some(report),
            })
        })
        .collect()
}

/// The `n`th address after `mac`.
fn next_mac(mac: MacAddress, n: u8) -> Option<MacAddress> {
    let [rest @ .., last] = mac.0;
    let last = last.checked_add(n)?;
    let [a, b, c, d, e] = rest;
    Some(MacAddress([a, b, c, d, e, last]))
}

fn workers(name: &str, count: u16) -> Result<Vec<Worker>> {
    (0..count)
        .map(|n| Ok(Worker::spawn(&format!("{name}-{n}"))?))
        .collect()
}
