//! The binary statistics of a VM or vCPU (Documentation/virt/kvm/api.rst §4.133, Linux 5.14 and later).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_MASK, KVM_STATS_UNIT_MASK, KVM_STATS_UNIT_NONE, KVMIO,
};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;
use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// More descriptors or longer names than this are not believed; Linux 6.12 has about sixty, of 48 bytes.
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;

/// `struct kvm_stats_header`.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    flags: U32,
    name_size: U32,
    descriptors: U32,
    id_offset: U32,
    descriptor_offset: U32,
    data_offset: U32,
}

/// `struct kvm_stats_desc`, which its name follows.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Descriptor {
    flags: U32,
    exponent: I16,
    size: U16,
    offset: U32,
    bucket_size: U32,
}

/// A counter of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The kernel's name for it, such as `io_exits`.
    pub name: String,
    /// How often it happened.
    pub count: u64,
}

/// Why statistics could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The kernel has none, or reading failed.
    #[error("KVM statistics: {0}")]
    Io(#[from] io::Error),
    /// The kernel's answer makes no sense.
    #[error("KVM statistics: {0}")]
    Format(&'static str),
}

/// Reads the counters of a VM or vCPU that only ever grow and count events.
pub fn read_stats(fd: &impl AsRawFd) -> Result<Vec<Stat>, StatsError> {
    parse(&open(fd)?)
}

fn open(fd: &impl AsRawFd) -> io::Result<File> {
    // SAFETY: the ioctl takes no argument and returns a new descriptor or an error.
    let stats = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
    if stats < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { File::from_raw_fd(stats) })
}

fn parse(file: &impl FileExt) -> Result<Vec<Stat>, StatsError> {
    let mut bytes = [0; size_of::<Header>()];
    file.read_exact_at(&mut bytes, 0)?;
    let header = Header::read_from_bytes(&bytes).map_err(|_| StatsError::Format("header"))?;
    let (count, name_size) = (header.descriptors.get(), header.name_size.get());
    if count > MAX_DESCRIPTORS || name_size > MAX_NAME {
        return Err(StatsError::Format("too many or too long descriptors"));
    }
    let mut stats = Vec::new();
    let mut at = u64::from(header.descriptor_offset.get());
    let mut entry = vec![0; size_of::<Descriptor>().saturating_add(name_size as usize)];
    for _ in 0..count {
        file.read_exact_at(&mut entry, at)?;
        at = at.saturating_add(entry.len() as u64);
        let (descriptor, name) =
            Descriptor::read_from_prefix(&entry).map_err(|_| StatsError::Format("descriptor"))?;
        let flags = descriptor.flags.get();
        if flags & KVM_STATS_TYPE_MASK != KVM_STATS_TYPE_CUMULATIVE
            || flags & KVM_STATS_UNIT_MASK != KVM_STATS_UNIT_NONE
            || descriptor.size.get() != 1
        {
            continue;
        }
        let mut value = [0; size_of::<U64>()];
        let offset = u64::from(header.data_offset.get()) + u64::from(descriptor.offset.get());
        file.read_exact_at(&mut value, offset)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        stats.push(Stat {
            name: String::from_utf8_lossy(name).into_owned(),
            count: u64::from_le_bytes(value),
        });
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn descriptor(flags: u32, size: u16, offset: u32, name: &[u8; 8]) -> Vec<u8> {
        let mut bytes = flags.to_le_bytes().to_vec();
        bytes.extend(0i16.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(name);
        bytes
    }

    #[test]
    fn reads_counters_and_skips_histograms() {
        let mut bytes: Vec<u8> = [0u32, 8, 3, 0, 24, 96].map(u32::to_le_bytes).concat();
        bytes.extend(descriptor(KVM_STATS_TYPE_CUMULATIVE, 1, 8, b"exits\0\0\0"));
        bytes.extend(descriptor(4, 1, 0, b"histo\0\0\0"));
        bytes.extend(descriptor(KVM_STATS_TYPE_CUMULATIVE, 1, 0, b"io_exits"));
        bytes.extend([7u64, 9].map(u64::to_le_bytes).concat());
        let stats = parse(&file(&bytes)).unwrap();
        let named = |name: &str, count| Stat {
            name: name.to_owned(),
            count,
        };
        assert_eq!(stats, [named("exits", 9), named("io_exits", 7)]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&file(&bytes));
        }
    }
}
