//! What the processor says about itself (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: TSC-deadline mode of the local APIC timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: several logical processors in the package.
const HTT: u32 = 1 << 28;

/// Topology levels of leaf 0xb (SDM table 3-8): a thread, and a core.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The leaves for vCPU `index` of `count`: what the host supports, with each vCPU as one core of a single package.
///
/// `tsc_deadline` says whether the in-kernel APIC has that timer mode, which KVM reports elsewhere.
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8, tsc_deadline: bool) -> CpuId {
    let mut cpuid = supported.clone();
    let count = u32::from(count);
    let core_bits = count.next_power_of_two().trailing_zeros();
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            0x1 => {
                entry.ebx &= 0x0000_ffff;
                entry.ebx |= u32::from(index) << 24 | count.min(255) << 16;
                entry.ecx |= HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                if count > 1 {
                    entry.edx |= HTT;
                }
            }
            0x4 => share_caches(entry, core_bits),
            0xb | 0x1f => topology(entry, index, count, core_bits),
            0x8000_0008 => {
                // Number of cores and bits of the APIC ID that number them (APM E.4.7).
                entry.ecx &= !0xf0ff;
                entry.ecx |= core_bits << 12 | count.saturating_sub(1) & 0xff;
            }
            0x8000_001d => share_caches(entry, core_bits),
            0x8000_001e => {
                // Extended APIC ID; core ID, one thread a core; node ID, one node a processor (APM E.4.16).
                entry.eax = index.into();
                entry.ebx = index.into();
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    cpuid
}

/// Width of a physical address (leaf 0x8000_0008 EAX), 36 if the processor does not say.
pub fn address_bits(supported: &CpuId) -> u8 {
    supported
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008)
        .map_or(36, |entry| entry.eax.to_le_bytes()[0])
}

/// Caches up to the second level belong to one core, the rest to all (the deterministic cache parameters, EAX bits
/// 7:5 level and 25:14 processors that share).
fn share_caches(entry: &mut kvm_cpuid_entry2, core_bits: u32) {
    let level = entry.eax >> 5 & 7;
    let sharing = if level < 3 {
        0
    } else {
        (1u32 << core_bits).saturating_sub(1)
    };
    entry.eax &= !(0xfff << 14);
    entry.eax |= (sharing & 0xfff) << 14;
    if entry.function == 0x4 {
        // Bits 31:26: cores in the package.
        entry.eax &= 0x03ff_ffff;
        entry.eax |= ((1u32 << core_bits).saturating_sub(1) & 0x3f) << 26;
    }
}

/// The extended topology: threads below cores, and each core has one.
fn topology(entry: &mut kvm_cpuid_entry2, index: u8, count: u32, core_bits: u32) {
    entry.flags |= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    let (shift, processors, level) = match entry.index {
        0 => (0, 1, LEVEL_SMT),
        1 => (core_bits, count, LEVEL_CORE),
        _ => (0, 0, 0),
    };
    entry.eax = shift;
    entry.ebx = processors;
    entry.ecx = level << 8 | entry.index & 0xff;
    entry.edx = index.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    fn host() -> CpuId {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            ebx: 0xffff_ffff,
            ..Default::default()
        };
        let mut caches = entry(4, 3);
        caches.eax = 3 << 5 | 0x3fff << 14 | 0x3f << 26;
        let mut address = entry(0x8000_0008, 0);
        address.eax = 40;
        let leaves = [
            entry(1, 0),
            caches,
            entry(0xb, 0),
            entry(0xb, 1),
            address,
            entry(0x8000_001e, 0),
        ];
        CpuId::from_entries(&leaves).unwrap()
    }

    #[test]
    fn every_vcpu_is_a_core_of_its_own() {
        for count in 1..=64u8 {
            for index in 0..count {
                let cpuid = for_vcpu(&host(), index, count, true);
                let features = leaf(&cpuid, 1, 0);
                assert_eq!(features.ebx >> 24, u32::from(index));
                assert_eq!(features.ebx >> 16 & 0xff, u32::from(count));
                assert_ne!(features.ecx & HYPERVISOR, 0);
                assert_ne!(features.ecx & TSC_DEADLINE, 0);
                assert_eq!(features.edx & HTT != 0, count > 1);
                let (threads, cores) = (leaf(&cpuid, 0xb, 0), leaf(&cpuid, 0xb, 1));
                assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
                assert_eq!(cores.ebx, u32::from(count));
                assert_eq!(cores.ecx, 0x201);
                assert_eq!(cores.edx, u32::from(index));
                // The package is the same for all.
                assert_eq!(u32::from(index) >> cores.eax, 0);
            }
        }
    }

    #[test]
    fn address_width_is_the_hosts() {
        assert_eq!(address_bits(&host()), 40);
        assert_eq!(address_bits(&CpuId::new(0).unwrap()), 36);
    }
}
