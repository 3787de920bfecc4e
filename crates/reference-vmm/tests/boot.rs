//! What a kernel is told, without entering it.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::io::Write;

use proptest::prelude::*;
use reference_vmm::boot::{BootError, Entry, Image, Linux, Payload, load};
use reference_vmm::machine::layout::{Layout, MIB};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RSDP: u64 = 0xe_0000;

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A bzImage with nothing but a header that is true (Linux, Documentation/arch/x86/boot.rst).
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0x1f1, &[1]); // setup_sects
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes()); // version
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x214, &0x10_0000_u32.to_le_bytes()); // code32_start
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &1_u16.to_le_bytes()); // xloadflags: XLF_KERNEL_64
    put(0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(0x258, &0x100_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x80_0000_u32.to_le_bytes()); // init_size
    image
}

struct Loaded {
    memory: GuestMemoryMmap,
    entry: Result<Entry, BootError>,
}

fn boot(kernel: &[u8], initrd: Option<&[u8]>, cmdline: &str, ram: u64) -> Loaded {
    let layout = Layout::new(ram, 40).unwrap();
    let size = usize::try_from(ram).unwrap();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap();
    let (kernel, initrd) = (file(kernel), initrd.map(file));
    let payload = Payload::Linux(Linux {
        kernel: Image::open(kernel.path(), "kernel").unwrap(),
        initrd: initrd.map(|initrd| Image::open(initrd.path(), "initrd").unwrap()),
        cmdline: cmdline.to_owned(),
    });
    let entry = load(&memory, &layout, payload, RSDP);
    Loaded { memory, entry }
}

#[test]
fn zero_page_tells_the_kernel_everything() {
    let initrd = vec![0x5a; 10_000];
    let loaded = boot(&bzimage(), Some(&initrd), "quiet", 64 * MIB);
    let Ok(Entry::Linux64 { rip, boot_params }) = loaded.entry else {
        panic!("{:?}", loaded.entry);
    };
    assert_eq!(rip, 0x10_0200);
    let page = |offset: u64| GuestAddress(boot_params + offset);
    let memory = &loaded.memory;
    assert_eq!(memory.read_obj::<u64>(page(0x70)).unwrap(), RSDP);
    assert_eq!(
        memory.read_obj::<u8>(page(0x210)).unwrap(),
        0xff,
        "type_of_loader"
    );
    let cmdline: u32 = memory.read_obj(page(0x228)).unwrap();
    let text: [u8; 6] = memory.read_obj(GuestAddress(cmdline.into())).unwrap();
    assert_eq!(&text, b"quiet\0");
    let start: u32 = memory.read_obj(page(0x218)).unwrap();
    let size: u32 = memory.read_obj(page(0x21c)).unwrap();
    assert_eq!(usize::try_from(size).unwrap(), initrd.len());
    assert!(u64::from(start + size) <= 64 * MIB && start.is_multiple_of(4096));
    let mut copied = vec![0; initrd.len()];
    memory
        .read_slice(&mut copied, GuestAddress(start.into()))
        .unwrap();
    assert_eq!(copied, initrd);
    // The first entry of the memory map is conventional memory.
    assert!(memory.read_obj::<u8>(page(0x1e8)).unwrap() >= 3);
    assert_eq!(memory.read_obj::<u64>(page(0x2d0)).unwrap(), 0);
    assert_eq!(memory.read_obj::<u64>(page(0x2d8)).unwrap(), 0xa_0000);
}

#[test]
fn what_does_not_fit_is_refused() {
    let long = "x".repeat(2048);
    let loaded = boot(&bzimage(), None, &long, 64 * MIB);
    assert!(matches!(
        loaded.entry,
        Err(BootError::CommandLine {
            length: 2048,
            limit: 2047
        })
    ));
    // The kernel unpacks itself to 24 MiB.
    let loaded = boot(&bzimage(), None, "", 16 * MIB);
    assert!(matches!(
        loaded.entry,
        Err(BootError::Memory { what: "kernel", .. })
    ));
    let initrd = vec![0; 2 << 20];
    let loaded = boot(&bzimage(), Some(&initrd), "", 25 * MIB);
    assert!(matches!(
        loaded.entry,
        Err(BootError::Memory { what: "initrd", .. })
    ));
}

#[test]
fn what_is_no_kernel_for_this_machine_is_refused() {
    let mut old = bzimage();
    old[0x236] = 0;
    let mut elf = vec![0; 120];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[0x20] = 64; // e_phoff
    elf[0x36] = 56; // e_phentsize
    for wrong in [&b""[..], b"abc", &[0; 4096], &old, &elf] {
        let loaded = boot(wrong, None, "", 64 * MIB);
        assert!(
            matches!(loaded.entry, Err(BootError::Format { .. })),
            "{:?}",
            loaded.entry
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_setup_header_is_taken_or_refused(header in proptest::collection::vec(any::<u8>(), 123), keep in any::<[bool; 123]>()) {
        let mut image = bzimage();
        for (index, byte) in header.iter().enumerate().filter(|(index, _)| !keep[*index]) {
            image[0x1f1 + index] = *byte;
        }
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let loaded = boot(&image, Some(&[1, 2, 3]), "quiet", 32 * MIB);
        if let Ok(Entry::Linux64 { rip, .. }) = loaded.entry {
            prop_assert!(rip < 32 * MIB);
        }
    }
}
