//! Reads blocks of 4 KiB at random places of a disk, past the page cache: `random-read DISK DEPTH COUNT` makes COUNT reads, DEPTH
//! at a time. The guest of the lab's comparisons runs it; nothing but the standard library, so that `rustc` alone builds it.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

const BLOCK: usize = 4096;
/// `O_DIRECT` of Linux on x86 (include/uapi/asm-generic/fcntl.h).
const O_DIRECT: i32 = 0o40000;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [disk, depth, count] = arguments.as_slice() else {
        return Err(io::Error::other("usage: random-read DISK DEPTH COUNT"));
    };
    let number = |text: &str| text.parse::<u64>().map_err(io::Error::other);
    let (depth, count) = (number(depth)?.max(1), number(count)?);
    let mut disk = OpenOptions::new()
        .read(true)
        .custom_flags(O_DIRECT)
        .open(disk)?;
    let blocks = disk.seek(SeekFrom::End(0))? / BLOCK as u64;
    let disk = &disk;
    thread::scope(|scope| {
        let readers: Vec<_> = (0..depth)
            .map(|reader| scope.spawn(move || read(disk, blocks, reader, count / depth)))
            .collect();
        readers.into_iter().try_for_each(|reader| {
            let panicked = |_| Err(io::Error::other("a reader panicked"));
            reader.join().unwrap_or_else(panicked)
        })
    })
}

/// Reads `count` of the disk's `blocks`; which ones, the number of the reader decides.
fn read(disk: &File, blocks: u64, reader: u64, count: u64) -> io::Result<()> {
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK);
    let buffer = memory
        .get_mut(start..start + BLOCK)
        .ok_or_else(|| io::Error::other("no aligned memory"))?;
    // Knuth's linear congruential generator (The Art of Computer Programming, vol. 2, §3.3.4), whose upper bits are random.
    let mut state = reader;
    for _ in 0..count {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 33) % blocks.max(1);
        disk.read_exact_at(buffer, block * BLOCK as u64)?;
    }
    Ok(())
}
