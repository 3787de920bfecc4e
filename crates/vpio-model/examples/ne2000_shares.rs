//! Which share of what Linux's ne2k-pci does the NE2000's model has to see, as JSON: its accesses (drivers/net/ethernet/8390), packet by
//! packet, counted by the derived hooks. An element of a string instruction is an access, as in the paper.

use serde_json::{Value, json};
use vpio_model::engine::At;
use vpio_model::hooks::Hooks;
use vpio_model::language::{Access, LanguageError};
use vpio_model::model::{Model, Sharing};
use vpio_model::models;

const CR: u64 = 0;
const BNRY: u64 = 3;
const TSR: u64 = 4;
const TPSR: u64 = 4;
const TBCR: [u64; 2] = [5, 6];
const ISR: u64 = 7;
const CURR: u64 = 7;
const RSAR: [u64; 2] = [8, 9];
const RBCR: [u64; 2] = [10, 11];
const IMR: u64 = 15;
const DATA: u64 = 0x10;
/// CR: started, with remote DMA off in page 0 and 1, reading, writing, and sending.
const PAGE0: u64 = 0x22;
const PAGE1: u64 = 0x60;
const READ: u64 = 0x0a;
const WRITE: u64 = 0x12;
const SEND: u64 = 0x26;

/// Bytes of the packets: full ones, acknowledgements, and a keystroke and its echo in a session of ssh.
const FULL: u64 = 1514;
const SHORT: u64 = 66;
const KEY: u64 = 102;

struct Driver {
    hooks: Hooks,
    accesses: u64,
    hooked: u64,
}

impl Driver {
    fn access(&mut self, access: Access, offset: u64, width: u8, value: u64) {
        let at = At {
            space: 0,
            offset,
            width,
        };
        self.accesses += 1;
        self.hooked += u64::from(self.hooks.contains(access, at, value));
    }

    fn write(&mut self, offset: u64, value: u64) {
        self.access(Access::Write, offset, 1, value);
    }

    fn read(&mut self, offset: u64) {
        self.access(Access::Read, offset, 1, 0);
    }

    fn write_both(&mut self, [low, high]: [u64; 2], value: u64) {
        self.write(low, value & 0xff);
        self.write(high, value >> 8);
    }

    /// A string instruction of words of 4 bytes, and what is left.
    fn data(&mut self, access: Access, bytes: u64) {
        for _ in 0..bytes / 4 {
            self.access(access, DATA, 4, 0);
        }
        for (bit, width) in [(2, 2), (1, 1)] {
            if bytes & bit != 0 {
                self.access(access, DATA, width, 0);
            }
        }
    }

    fn fetch(&mut self, address: u64, bytes: u64) {
        self.write(CR, PAGE0);
        self.write_both(RBCR, bytes);
        self.write_both(RSAR, address);
        self.write(CR, READ);
        self.data(Access::Read, bytes);
        self.write(ISR, 0x40);
    }

    fn send(&mut self, bytes: u64) {
        self.write(IMR, 0);
        self.write(CR, PAGE0);
        self.write(ISR, 0x40);
        self.write_both(RBCR, bytes);
        self.write_both(RSAR, 0x4000);
        self.write(CR, WRITE);
        self.data(Access::Write, bytes.next_multiple_of(2));
        self.read(ISR);
        self.write(ISR, 0x40);
        self.read(CR);
        self.write_both(TBCR, bytes);
        self.write(TPSR, 0x40);
        self.write(CR, SEND);
        self.write(IMR, 0x3f);
        self.interrupted();
        self.read(TSR);
        self.write(ISR, 0x0a);
        self.done();
    }

    /// Packets that one interrupt tells of.
    fn receive(&mut self, packets: u64, bytes: u64) {
        self.interrupted();
        for number in 0..=packets {
            self.write(CR, PAGE1);
            self.read(CURR);
            self.write(CR, PAGE0);
            if number < packets {
                self.fetch(0x4c00, 4);
                self.fetch(0x4c04, bytes);
                self.write(BNRY, 0x4c);
            }
        }
        self.write(ISR, 0x05);
        self.done();
    }

    fn interrupted(&mut self) {
        self.write(CR, PAGE0);
        self.read(ISR);
    }

    fn done(&mut self) {
        self.read(ISR);
        self.write(CR, PAGE0);
    }
}

/// What a workload has the driver do.
type Work = fn(&mut Driver);

fn download(driver: &mut Driver, bytes: u64) {
    for _ in 0..bytes.div_ceil(2 * (FULL - SHORT)) {
        driver.receive(2, FULL);
        driver.send(SHORT);
    }
}

fn main() -> Result<(), LanguageError> {
    let model = Model::parse("ne2000.vpio", models::NE2000)?;
    let workloads: [(&str, Work); 3] = [
        ("session", |driver| {
            for _ in 0..1000 {
                driver.receive(1, KEY);
                driver.send(KEY);
                driver.receive(1, SHORT);
            }
        }),
        ("small download", |driver| download(driver, 16 << 10)),
        ("large download", |driver| download(driver, 16 << 20)),
    ];
    let count = |(name, work): (&str, Work)| {
        let mut driver = Driver {
            hooks: model.hooks(Sharing::Exclusive),
            accesses: 0,
            hooked: 0,
        };
        work(&mut driver);
        json!({ "workload": name, "accesses": driver.accesses, "hooked": driver.hooked })
    };
    let counted: Vec<Value> = workloads.map(count).into();
    println!("{}", Value::from(counted));
    Ok(())
}
