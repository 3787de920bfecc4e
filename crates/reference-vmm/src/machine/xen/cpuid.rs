//! Xen's CPUID leaves.

use grant_table::spec::DomId;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::spec::{HYPERCALL_MSR, VERSION, cpuid};

/// Puts Xen in the place of the hypervisor that `leaves` tells of. None if they become too many.
pub(crate) fn for_guest(leaves: &CpuId, domain: DomId, vcpu: u8) -> Option<CpuId> {
    let others = leaves.as_slice().iter().copied();
    let mut entries: Vec<_> = others
        .filter(|entry| !cpuid::HYPERVISORS.contains(&entry.function))
        .collect();
    let leaf = |function, [eax, ebx, ecx]: [u32; 3]| kvm_cpuid_entry2 {
        function,
        eax,
        ebx,
        ecx,
        ..Default::default()
    };
    let [b, c, d] = cpuid::SIGNATURE.map(u32::from_le_bytes);
    entries.push(kvm_cpuid_entry2 {
        edx: d,
        ..leaf(cpuid::SIGNATURE_LEAF, [cpuid::HVM_LEAF, b, c])
    });
    entries.push(leaf(cpuid::VERSION_LEAF, [VERSION, 0, 0]));
    entries.push(leaf(cpuid::HYPERCALL_LEAF, [1, HYPERCALL_MSR, 0]));
    entries.extend((0..3).map(|index| kvm_cpuid_entry2 {
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        ..leaf(cpuid::TIME_LEAF, [0; 3])
    }));
    let features = cpuid::HVM_VCPU_ID | cpuid::HVM_DOMAIN_ID | cpuid::HVM_UPCALL_VECTOR;
    entries.push(leaf(
        cpuid::HVM_LEAF,
        [features, vcpu.into(), domain.0.into()],
    ));
    CpuId::from_entries(&entries).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_xen_is_left() {
        let kvm = [0x1, 0x4000_0000, 0x4000_0001, 0x8000_0000].map(|function| kvm_cpuid_entry2 {
            function,
            ..Default::default()
        });
        let leaves = CpuId::from_entries(&kvm).unwrap();
        let xen = for_guest(&leaves, DomId(1), 3).unwrap();
        let find = |function| {
            let entries = xen.as_slice().iter();
            let found: Vec<_> = entries.filter(|entry| entry.function == function).collect();
            assert_eq!(found.len(), 1);
            *found[0]
        };
        let signature = find(cpuid::SIGNATURE_LEAF);
        let text = [signature.ebx, signature.ecx, signature.edx].map(u32::to_le_bytes);
        assert_eq!(text.as_flattened(), b"XenVMMXenVMM");
        assert_eq!(signature.eax, cpuid::HVM_LEAF);
        assert_eq!(find(cpuid::VERSION_LEAF).eax, 0x4000a);
        assert_eq!(
            (find(cpuid::HVM_LEAF).ebx, find(cpuid::HVM_LEAF).ecx),
            (3, 1)
        );
        assert_eq!(find(0x1).function, 1);
        assert_eq!(find(0x8000_0000).function, 0x8000_0000);
    }
}
