//! Frames between DPDK's driver and the backend's network card, every one counted at both ends.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::backend::stopped;
use super::testpmd::{Testpmd, ensure_testpmd, total};
use super::{Lab, wait_for};
use crate::progress::Progress;

/// How long traffic flows in each mode of each layout.
const TRAFFIC: Duration = Duration::from_secs(10);
/// How long it flows before and after the backend is killed.
const BESIDE_KILL: Duration = Duration::from_secs(1);

/// The layouts of rings, as DPDK's driver is told of them.
const LAYOUTS: [(&str, &str); 3] = [
    ("split", ""),
    ("packed", ",packed_vq=1"),
    ("packed, in order", ",packed_vq=1,in_order=1"),
];

pub fn run(lab: &Lab, progress: &Progress) -> Result<Vec<String>> {
    ensure_testpmd()?;
    let mut checks = Vec::new();
    for (name, options) in LAYOUTS {
        for (buffers, mergeable) in [("mergeable", 1), ("not mergeable", 0)] {
            let options = format!("{options},mrg_rxbuf={mergeable}");
            for pairs in [1, 2] {
                let name = format!("{name}, {buffers}, {pairs} queue pair(s)");
                progress.step(&format!("testpmd: {name}"));
                for check in [forward, transmit_and_receive] {
                    let counted = check(lab, &options, pairs).with_context(|| name.clone())?;
                    checks.push(format!("testpmd, {name}: {counted}"));
                }
            }
        }
    }
    progress.step("testpmd: the backend is killed");
    checks.push(killed(lab)?);
    Ok(checks)
}

/// Has testpmd forward what it receives, over a cable that ends where it begins.
fn forward(lab: &Lab, options: &str, pairs: u16) -> Result<String> {
    let (socket, pairs) = (lab.path("net.sock"), pairs.to_string());
    let args = ["net", "--loopback", "--queue-pairs", &pairs, "--socket"];
    let backend = lab.backend(&[&args[..], &[&socket]].concat(), Some(&socket))?;
    let mut testpmd = Testpmd::start(
        "forward",
        &device(&socket, &pairs, options),
        &queues(&pairs),
    )?;
    testpmd.tell("set fwd mac\nstart tx_first 8")?;
    sleep(TRAFFIC / 2);
    // Stopped and started again, it goes on.
    testpmd.tell("stop\nport stop all\nport start all\nstart tx_first 8")?;
    sleep(TRAFFIC / 2);
    let first = testpmd.end()?;
    // So does another driver on the same socket.
    let mut testpmd = Testpmd::start(
        "forward",
        &device(&socket, &pairs, options),
        &queues(&pairs),
    )?;
    testpmd.tell("set fwd mac\nstart tx_first 8")?;
    sleep(BESIDE_KILL);
    let second = testpmd.end()?;
    let [card] = stopped(backend)?[..] else {
        bail!("the backend reports another number of cards");
    };
    let sum = |counter| Ok::<_, anyhow::Error>((total(&first, counter)?, total(&second, counter)?));
    let ((received, received_again), (sent, sent_again)) = (sum("RX-packets")?, sum("TX-packets")?);
    ensure!(
        received > 0 && received_again > 0,
        "nothing came back:\n{first}\n{second}"
    );
    let (received, sent) = (received + received_again, sent + sent_again);
    ensure!(
        card.transmitted == sent && card.transmit_dropped == 0,
        "testpmd sent {sent} frames, the backend counts {card:?}"
    );
    // Some wait in the driver's ring when it stops.
    ensure!(
        card.received >= received && card.received <= sent,
        "testpmd received {received} frames, the backend counts {card:?}"
    );
    Ok(format!("mac: {sent} frames, all counted"))
}

/// One testpmd sends as fast as it can, another receives.
fn transmit_and_receive(lab: &Lab, options: &str, pairs: u16) -> Result<String> {
    let (one, two, pairs) = (
        lab.path("one.sock"),
        lab.path("two.sock"),
        pairs.to_string(),
    );
    let args = [
        "net",
        "--forward",
        "--queue-pairs",
        &pairs,
        "--socket",
        &one,
        "--socket",
        &two,
    ];
    let backend = lab.backend(&args, Some(&two))?;
    let mut receiver = Testpmd::start("rxonly", &device(&two, &pairs, options), &queues(&pairs))?;
    receiver.tell("set fwd rxonly\nstart")?;
    let mut sender = Testpmd::start("txonly", &device(&one, &pairs, options), &queues(&pairs))?;
    sender.tell("set fwd txonly\nstart")?;
    sleep(TRAFFIC);
    let sent = total(&sender.end()?, "TX-packets")?;
    let received = total(&receiver.end()?, "RX-packets")?;
    let [first, second] = stopped(backend)?[..] else {
        bail!("the backend reports another number of cards");
    };
    ensure!(
        first.transmitted + first.transmit_dropped == sent,
        "testpmd sent {sent} frames, the backend counts {first:?}"
    );
    ensure!(
        received > 0 && received == second.received && first.transmitted >= received,
        "testpmd received {received} frames, the backend counts {first:?} and {second:?}"
    );
    Ok(format!(
        "txonly: {sent} frames, rxonly: {received}, all counted"
    ))
}

/// The backend is killed under traffic; another takes its place.
fn killed(lab: &Lab) -> Result<String> {
    let socket = lab.path("server.sock");
    let args = ["net", "--loopback", "--connect", "--socket", &socket];
    let backend = lab.backend(&args, None)?;
    let mut testpmd = Testpmd::start("server", &device(&socket, "1", ",server=1"), &[])?;
    testpmd.tell("set fwd mac\nstart tx_first 8")?;
    sleep(BESIDE_KILL);
    drop(backend);
    let backend = lab.backend(&args, None)?;
    wait_for("testpmd to take the new backend", || {
        Ok(testpmd.text().contains("reconnection succeeds"))
    })
    .with_context(|| testpmd.text())?;
    testpmd.tell("stop\nstart tx_first 8")?;
    sleep(BESIDE_KILL);
    let output = testpmd.end()?;
    let [card] = stopped(backend)?[..] else {
        bail!("the backend reports another number of cards");
    };
    ensure!(
        card.received > 10_000,
        "no traffic after the backend was killed: {card:?}\n{output}"
    );
    Ok(format!(
        "testpmd, backend killed: {} frames after that",
        card.received
    ))
}

/// A device of DPDK's virtio driver.
fn device(socket: &str, pairs: &str, options: &str) -> String {
    format!("net_virtio_user0,path={socket},queues={pairs},queue_size=256{options}")
}

/// testpmd's options for so many queue pairs.
fn queues(pairs: &str) -> [String; 2] {
    [format!("--rxq={pairs}"), format!("--txq={pairs}")]
}
