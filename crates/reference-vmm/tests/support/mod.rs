//! The program with a guest that does what is typed on its serial port.

use std::io::Write;
use std::process::Command;

use tempfile::NamedTempFile;

/// Where the guest is loaded and entered.
const ENTRY: u32 = 0x10_0000;

/// Prints `>`, reads a character from the serial port, and powers off if it is `p`, resets if it is `r`, or has a triple fault if it
/// is `f`; again with any other. Entered in 32-bit mode.
const GUEST: [u8; 50] = [
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'>', 0xee, // mov al, '>'; out dx, al
    0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
    0xec, 0xa8, 0x01, // in al, dx; test al, 1
    0x74, 0xf7, // jz wait
    0x66, 0xba, 0xf8, 0x03, 0xec, // mov dx, 0x3f8; in al, dx
    0x3c, b'p', 0x74, 0x0a, // cmp al, 'p'; je off
    0x3c, b'r', 0x74, 0x0e, // cmp al, 'r'; je reset
    0x3c, b'f', 0x74, 0x0f, // cmp al, 'f'; je fault
    0xeb, 0xdd, // jmp from the start
    0x66, 0xba, 0x00, 0x06, // off: mov dx, 0x600
    0xb0, 0x34, 0xee, 0xf4, // mov al, SLP_TYP 5 | SLP_EN; out dx, al; hlt
    0xb0, 0xfe, 0xe6, 0x64, 0xf4, // reset: mov al, 0xfe; out 0x64, al; hlt
    0x0f, 0x0b, // fault: ud2, which nothing handles
];

/// The guest as an ELF file with a PVH entry point (Xen, docs/misc/pvh.pandoc; note 18 of "Xen").
pub fn kernel() -> NamedTempFile {
    let (headers, note) = (64_u64, 20_u64);
    let (note_at, code_at) = (headers + 2 * 56, headers + 2 * 56 + note);
    let size = u64::try_from(GUEST.len()).unwrap();
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, version
    for word in [u64::from(ENTRY), headers, 0] {
        elf.extend(word.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]); // sizes and counts
    let mut segment = |kind: u32, offset: u64, address: u64, size: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(7_u32.to_le_bytes());
        for word in [offset, address, address, size, size, 4] {
            elf.extend(word.to_le_bytes());
        }
    };
    segment(1, code_at, ENTRY.into(), size); // PT_LOAD
    segment(4, note_at, 0, note); // PT_NOTE
    for word in [4, 4, 18] {
        elf.extend(u32::to_le_bytes(word)); // name and description have 4 bytes, the type
    }
    elf.extend(b"Xen\0");
    elf.extend(ENTRY.to_le_bytes());
    elf.extend(GUEST);
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(&elf).unwrap();
    file
}

/// `reference-vmm run` with the guest.
pub fn run(kernel: &NamedTempFile) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reference-vmm"));
    command
        .args(["run", "--memory", "16M", "--kernel"])
        .arg(kernel.path());
    command
}
