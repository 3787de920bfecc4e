//! Kernels with a Multiboot header: what is loaded where, and, with KVM, how they are entered.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod kvm;

use std::io::{self, Write};

use kvm::has_kvm;
use proptest::prelude::*;
use reference_vmm::boot::{BootError, Entry, Image, Linux, MultibootError, Payload, load};
use reference_vmm::machine::layout::{Layout, MIB};
use reference_vmm::machine::stop::Stop;
use reference_vmm::machine::{Config, Machine, Peripherals, Transport};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MAGIC: u32 = 0x1bad_b002;
/// Where the test kernels are loaded, and where they believe to be.
const PHYSICAL: u32 = 0x20_0000;
const VIRTUAL: u32 = 0xc020_0000;
/// Port of the debug exit.
const PORT: u8 = 0xf4;

/// Ends with 0x21 if EAX holds the loader's magic number and EBX points to information with a memory map, else with 1.
const PROGRAM: [u8; 27] = [
    0x3d, 0x02, 0xb0, 0xad, 0x2b, // cmp eax, 0x2badb002
    0x75, 0x0c, // jne failed
    0xf6, 0x03, 0x40, // test byte [ebx], 1 << 6
    0x74, 0x07, // jz failed
    0xb0, 0x21, // mov al, 0x21
    0xe6, PORT, // out PORT, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the halt
    0xb0, 0x01, // failed: mov al, 1
    0xe6, PORT, // out PORT, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the halt
    0x90,
];

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[MAGIC, flags, 0u32.wrapping_sub(MAGIC.wrapping_add(flags))])
}

/// A 32-bit ELF file of one segment, which is the header and the program, and room for as much again.
fn elf(flags: u32) -> Vec<u8> {
    let mut content = header(flags);
    let entry = VIRTUAL + content.len() as u32;
    content.extend(PROGRAM);
    let size = content.len() as u32;
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 3, 0]); // ET_EXEC, EM_386
    image.extend(words(&[1, entry, 52, 0, 0]));
    image.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    image.extend(words(&[1, 84, VIRTUAL, PHYSICAL, size, 2 * size, 5, 4]));
    image.extend(content);
    image
}

/// A file that is no ELF file, loaded by the addresses in its header, which 64 bytes precede that are not loaded.
fn flat() -> Vec<u8> {
    let mut image = vec![0xcc; 64];
    image.extend(header(1 << 16));
    let entry = PHYSICAL + 32;
    image.extend(words(&[PHYSICAL, PHYSICAL, 0, PHYSICAL + 4096, entry]));
    image.extend(PROGRAM);
    image
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn payload(kernel: &NamedTempFile, module: Option<&NamedTempFile>) -> Payload {
    Payload::Linux(Linux {
        kernel: Image::open(kernel.path(), "kernel").unwrap(),
        initrd: module.map(|module| Image::open(module.path(), "initrd").unwrap()),
        cmdline: "a word".to_owned(),
    })
}

fn boot(kernel: &[u8], module: Option<&[u8]>) -> (GuestMemoryMmap, Result<Entry, BootError>) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let layout = Layout::new(16 * MIB, 40).unwrap();
    let (kernel, module) = (file(kernel), module.map(file));
    let entry = load(
        &memory,
        &layout,
        payload(&kernel, module.as_ref()),
        0xe_0000,
    );
    (memory, entry)
}

fn u32_at(memory: &GuestMemoryMmap, address: u32) -> u32 {
    memory.read_obj(GuestAddress(address.into())).unwrap()
}

#[test]
fn segments_go_to_their_physical_addresses_and_the_kernel_is_told() {
    let (memory, entry) = boot(&elf(3), Some(b"module"));
    let Ok(Entry::Multiboot { rip, information }) = entry else {
        panic!("{entry:?}");
    };
    assert_eq!(rip, u64::from(PHYSICAL) + 12);
    assert_eq!(u32_at(&memory, PHYSICAL), MAGIC);
    let field = |offset: u32| u32_at(&memory, information as u32 + offset);
    // Memory, command line, modules, memory map, loader's name.
    assert_eq!(field(0), 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((field(4), field(8)), (640, 15 << 10));
    let cmdline: [u8; 7] = memory.read_obj(GuestAddress(field(16).into())).unwrap();
    assert_eq!(&cmdline, b"a word\0");
    assert_eq!(field(20), 1);
    let (start, end) = (u32_at(&memory, field(24)), u32_at(&memory, field(24) + 4));
    assert_eq!((start % 4096, end - start), (0, 6));
    let module: [u8; 6] = memory.read_obj(GuestAddress(start.into())).unwrap();
    assert_eq!(&module, b"module");
    // Entries of 24 bytes, the first for conventional memory.
    assert_eq!(field(44) % 24, 0);
    let map = field(48);
    assert_eq!(
        [0, 4, 12, 20].map(|at| u32_at(&memory, map + at)),
        [20, 0, 0xa_0000, 1]
    );
}

#[test]
fn addresses_in_the_header_stand_for_an_elf_file() {
    let (memory, entry) = boot(&flat(), None);
    let rip = u64::from(PHYSICAL) + 32;
    assert!(matches!(entry, Ok(Entry::Multiboot { rip: at, .. }) if at == rip));
    assert_eq!(u32_at(&memory, PHYSICAL), MAGIC);
    let program: [u8; 27] = memory.read_obj(GuestAddress(rip)).unwrap();
    assert_eq!(program, PROGRAM);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let refused = |kernel: &[u8]| match boot(kernel, None).1 {
        Err(BootError::Multiboot { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    // A video mode.
    assert!(matches!(refused(&elf(4)), MultibootError::Demands(4)));
    // Below 1 MiB, where the information is.
    let mut low = elf(0);
    low.splice(64..68, 0x7000u32.to_le_bytes());
    assert!(matches!(
        refused(&low),
        MultibootError::Place { start: 0x7000, .. }
    ));
    // The header before the beginning of the file.
    let mut early = flat();
    early.splice(76..80, (PHYSICAL + 65).to_le_bytes());
    assert!(matches!(refused(&early), MultibootError::Addresses));
    let mut short = elf(0);
    short.truncate(90);
    assert!(boot(&short, None).1.is_err());
}

proptest! {
    /// A kernel comes from whoever it comes from.
    #[test]
    fn any_bytes_are_loaded_or_refused(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..16),
        at in 0usize..120,
        is_elf: bool,
    ) {
        let mut image = if is_elf { elf(3) } else { flat() };
        bytes.truncate(image.len().saturating_sub(at));
        image.splice(at..at + bytes.len(), bytes);
        let _ = boot(&image, None);
    }
}

#[test]
fn kernel_is_entered_as_the_specification_says() {
    if !has_kvm() {
        return;
    }
    for image in [elf(3), flat()] {
        let machine = Machine::new(Config {
            cpus: 1,
            memory: 16 << 20,
            payload: payload(&file(&image), None),
            peripherals: Peripherals::default(),
            transport: Transport::Pci,
            iommu: None,
            xen: None,
            serial: Box::new(io::sink()),
            debug_exit: Some(PORT.into()),
            timed: false,
        });
        let stopped = machine.unwrap().start().unwrap().wait().unwrap();
        assert_eq!(stopped.reason, Stop::Exit(0x21));
    }
}
