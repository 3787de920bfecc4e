//! What grants cost: copies beside `memcpy`, mappings beside hash maps under a mutex, the ways of a packet into a guest, and a guest's requests of
//! its disk beside virtio's and QEMU's.

use std::collections::HashMap;
use std::fmt;
use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::boots::per;
use super::{Section, criterion};
use crate::lab::xen_disks::{self, Served, Took};
use crate::progress::Progress;
use crate::workspace;

/// Operations of a batch.
const BATCH: f64 = 32.0;
/// The pages of the cold copies: 64 MiB.
const COLD: f64 = 16384.0;
/// Packets, in bytes, and how many of them are received at once.
const PACKETS: [(u32, f64); 6] = [
    (64, 32.0),
    (512, 32.0),
    (1500, 32.0),
    (4096, 32.0),
    (16_384, 8.0),
    (65_535, 2.0),
];
/// The ways of a packet into a guest. The last two leave it in a page of which the guest is free to do what it likes.
const WAYS: [(&str, &str); 5] = [
    ("persistent", "persistent"),
    ("persistent, copied by the guest", "persistent, copied"),
    ("copy", "copy"),
    ("map", "map"),
    ("flip", "flip"),
];

/// Here and the peer, in nanoseconds.
#[derive(Debug, Serialize)]
struct Beside {
    here: f64,
    peer: f64,
}

#[derive(Debug, Serialize)]
struct Packet {
    bytes: u32,
    /// In the order of [`WAYS`], each for a packet.
    ways: Vec<f64>,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// Of a page: of 64 MiB, and of 32 pages again and again.
    copies: [Beside; 2],
    /// Map + unmap of a page by one thread, and by each of two.
    mappings: [Beside; 2],
    /// Grant + end.
    grant_end: f64,
    /// With a reference that is taken and given back.
    with_reference: f64,
    packets: Vec<Packet>,
    disks: Vec<Took>,
}

/// Measures, and writes the book's page.
pub fn measure(progress: &Progress) -> Result<Section> {
    let disks = xen_disks::run(progress)?;
    let benchmarks = criterion::run(&["-p", "grant-table", "--bench", "grants"])?;
    let medians = benchmarks
        .into_iter()
        .map(|one| (one.name, one.median_ns))
        .collect();
    let figures = Figures::from(&medians, disks)?;
    let text = figures.to_string();
    let page = text.replacen("## ", "# ", 1).replace("\n### ", "\n## ");
    fs::write(workspace::root()?.join("docs/src/grant-tables.md"), page)?;
    Section::new(&figures, text)
}

impl Figures {
    fn from(medians: &HashMap<String, f64>, disks: Vec<Took>) -> Result<Self> {
        let find = |name: String, each: f64| {
            let median = medians.get(&name).with_context(|| name.clone())?;
            anyhow::Ok(median / each)
        };
        let copy = |group: &str, pages: f64| {
            anyhow::Ok(Beside {
                here: find(format!("{group}/grant copy"), pages)?,
                peer: find(format!("{group}/memcpy"), pages)?,
            })
        };
        let mapping = |threads: &str| {
            let name = |who: &str| format!("map and unmap 32/{who}/{threads}");
            anyhow::Ok(Beside {
                here: find(name("grant-table"), BATCH)?,
                peer: find(name("Mutex<HashMap>"), BATCH)?,
            })
        };
        let packet = |(bytes, packets): (u32, f64)| {
            let way =
                |(name, _): &(&str, &str)| find(format!("receive {bytes} bytes/{name}"), packets);
            let ways = WAYS.iter().map(way).collect::<Result<_>>()?;
            anyhow::Ok(Packet { bytes, ways })
        };
        Ok(Self {
            copies: [
                copy("copy, 64 MiB of fresh references", COLD)?,
                copy("copy, 32 hot pages", BATCH)?,
            ],
            mappings: [mapping("1 thread")?, mapping("2 threads")?],
            grant_end: find("guest/grant and end".to_owned(), 1.0)?,
            with_reference: find("guest/allocate, grant, end and release".to_owned(), 1.0)?,
            packets: PACKETS.into_iter().map(packet).collect::<Result<_>>()?,
            disks,
        })
    }
}

impl Packet {
    /// The fastest of some ways.
    fn fastest(&self, of: &[usize]) -> &'static str {
        let ways = WAYS.iter().zip(&self.ways).enumerate();
        let candidates = ways.filter(|(index, _)| of.contains(index));
        let fastest = candidates.min_by(|(_, (_, a)), (_, (_, b))| a.total_cmp(b));
        fastest.map_or("", |(_, ((_, name), _))| *name)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Grant tables\n\n\
             Written by `cargo xtask bench grant`; do not edit. Everything happens in one process: no hypercall's entry is in these times, and \
             nobody's TLB is flushed.\n\n\
             ### Copies\n\n\
             A page of 4 KiB by a grant's reference, 32 in a batch, beside `memcpy` of the same pages; in nanoseconds.\n\n\
             | pages | grant copy | memcpy | ratio | wanted |\n|---|---:|---:|---:|---:|"
        )?;
        let rows = [
            ("64 MiB, each reference once", 1.10),
            ("32 that are hot", 1.4),
        ];
        for ((name, wanted), Beside { here, peer }) in rows.iter().zip(&self.copies) {
            let ratio = here / peer;
            writeln!(
                f,
                "| {name} | {here:.0} | {peer:.0} | {ratio:.2} | ≤ {wanted:.2} |"
            )?;
        }
        writeln!(
            f,
            "\n### Mappings\n\n\
             Map + unmap of a page, 32 in a batch, in nanoseconds; the peer keeps everything in hash maps under one mutex. Two threads are two \
             virtual CPUs of one domain, and the time is each one's.\n\n\
             | threads | here | `Mutex<HashMap>` | times as fast | wanted | of one thread's throughput |\n|---|---:|---:|---:|---:|---:|"
        )?;
        let [one, _] = &self.mappings;
        for (threads, Beside { here, peer }) in [1.0, 2.0].into_iter().zip(&self.mappings) {
            let (ratio, scaling) = (peer / here, threads * one.here / here);
            writeln!(
                f,
                "| {threads} | {here:.0} | {peer:.0} | {ratio:.1} | ≥ 5 | {scaling:.2} |"
            )?;
        }
        writeln!(
            f,
            "\n### The guest's side\n\n\
             To grant a page and to end that takes {:.1} ns together, of which 40 were wanted at most; {:.1} ns with taking a reference and \
             giving it back. There is no lock.\n\n\
             ### Packets into a guest\n\n\
             What it takes to bring a packet into a guest's pages, in nanoseconds a packet, of as many at once as take 32 pages: written into \
             pages that stay mapped, where the guest has to copy it out before it offers the page again (*persistent*, *persistent, copied*); \
             copied by reference; mapped, written and unmapped; or written into a page that is then given to the guest, which gives another one \
             back (*flip*). In the last three the page is the guest's own when it gets it.\n",
            self.grant_end, self.with_reference
        )?;
        write!(f, "| bytes |")?;
        WAYS.iter()
            .try_for_each(|(_, name)| write!(f, " {name} |"))?;
        writeln!(
            f,
            " fastest | fastest without persistent |\n|---:|{}---|---|",
            "---:|".repeat(WAYS.len())
        )?;
        for packet in &self.packets {
            write!(f, "| {} |", packet.bytes)?;
            packet
                .ways
                .iter()
                .try_for_each(|ns| write!(f, " {ns:.0} |"))?;
            // Without the guest's copy the first is only half of the way.
            let (all, fresh) = (packet.fastest(&[1, 2, 3, 4]), packet.fastest(&[2, 3, 4]));
            writeln!(f, " {all} | {fresh} |")?;
        }
        self.write_disks(f)
    }
}

impl Figures {
    fn write_disks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n### Requests of a guest\n\n\
             4 KiB reads at random places by a Debian guest with one vCPU, in one emulated host: of a disk of Xen's under `reference-vmm --xen` and \
             under QEMU, which is Xen for it, and of virtio's. Exits are those to user space but for ports, kicks what the guest sends to the \
             device. Of the time only ratios mean something.\n\n\
             | depth | disk | requests | exits | kicks | interrupts | times as fast as QEMU's |\n|---:|---|---:|---:|---:|---:|---:|"
        )?;
        for took in &self.disks {
            let name = match took.served {
                Served::OursXen => "xen-blkfront, reference-vmm",
                Served::QemuXen => "xen-blkfront, QEMU",
                Served::OursVirtio => "virtio-blk, reference-vmm",
            };
            let peer = |other: &&Took| other.served == Served::QemuXen && other.depth == took.depth;
            let ratio = match self.disks.iter().find(peer) {
                Some(peer) => per(
                    took.requests.saturating_mul(peer.centiseconds),
                    peer.requests.saturating_mul(took.centiseconds),
                ),
                None => "–".to_owned(),
            };
            write!(f, "| {} | {name} | {} |", took.depth, took.requests)?;
            for count in [took.exits, took.kicks, took.interrupts] {
                write!(f, " {} |", per(count, took.requests))?;
            }
            writeln!(f, " {ratio} |")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_of_what_criterion_measured() {
        let mut medians = HashMap::new();
        let mut set = |name: &str, ns: f64| medians.insert(name.to_owned(), ns);
        set("copy, 64 MiB of fresh references/grant copy", 110.0 * COLD);
        set("copy, 64 MiB of fresh references/memcpy", 100.0 * COLD);
        set("copy, 32 hot pages/grant copy", 75.0 * BATCH);
        set("copy, 32 hot pages/memcpy", 50.0 * BATCH);
        for (threads, here) in [("1 thread", 80.0), ("2 threads", 100.0)] {
            set(
                &format!("map and unmap 32/grant-table/{threads}"),
                here * BATCH,
            );
            set(
                &format!("map and unmap 32/Mutex<HashMap>/{threads}"),
                500.0 * BATCH,
            );
        }
        set("guest/grant and end", 30.0);
        set("guest/allocate, grant, end and release", 70.0);
        for (bytes, packets) in PACKETS {
            for (way, (name, _)) in (1..).zip(WAYS) {
                set(
                    &format!("receive {bytes} bytes/{name}"),
                    f64::from(way) * packets,
                );
            }
        }
        let took = |served, centiseconds| Took {
            served,
            depth: 1,
            requests: 100,
            interrupts: 90,
            centiseconds,
            exits: 0,
            kicks: 50,
        };
        let disks = vec![took(Served::OursXen, 20), took(Served::QemuXen, 30)];
        let text = Figures::from(&medians, disks).unwrap().to_string();
        for row in [
            "| 32 that are hot | 75 | 50 | 1.50 | ≤ 1.40 |",
            "| 2 | 100 | 500 | 5.0 | ≥ 5 | 1.60 |",
            "| 65535 | 1 | 2 | 3 | 4 | 5 | persistent, copied | copy |",
            "| 1 | xen-blkfront, reference-vmm | 100 | 0.00 | 0.50 | 0.90 | 1.50 |",
        ] {
            assert!(text.contains(row), "{text}");
        }
        assert!(Figures::from(&HashMap::new(), Vec::new()).is_err());
    }
}
