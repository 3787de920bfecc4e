//! Indirect descriptor tables (virtio 1.3 §2.7.5.3, §2.8.7).

use vm_memory::GuestAddressSpace;
use zerocopy::transmute;

use crate::chain::Builder;
use crate::error::Rule;
use crate::mapping::Anchor;
use crate::spec::{DescriptorFlags, packed, split};

/// Appends and finishes the chain in a split ring's table, which begins at its first entry and is linked by `next`.
#[inline(never)]
pub(crate) fn walk_linked<H, A>(
    mut chain: Builder<'_, H, A>,
    addr: u64,
    len: u32,
) -> Result<(), Rule>
where
    H: Anchor,
    A: GuestAddressSpace<M = H::Memory>,
{
    let table = chain.table(addr, len)?;
    let mut index = 0;
    loop {
        let descriptor: split::Descriptor = transmute!(table.entry(usize::from(index))?);
        let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
        if flags.contains(DescriptorFlags::INDIRECT) {
            return Err(Rule::IndirectNested);
        }
        chain.add(
            descriptor.addr.get(),
            descriptor.len.get(),
            flags.contains(DescriptorFlags::WRITE),
        )?;
        if !flags.contains(DescriptorFlags::NEXT) {
            return chain.finish();
        }
        index = descriptor.next.get();
        if usize::from(index) >= table.entries() {
            return Err(Rule::Next(index));
        }
    }
}

/// Appends a packed ring's table: all of it, in order. Of the flags only `WRITE` counts, but tables do not nest.
#[inline(never)]
pub(crate) fn walk_sequence<H, A>(
    chain: &mut Builder<'_, H, A>,
    addr: u64,
    len: u32,
) -> Result<(), Rule>
where
    H: Anchor,
    A: GuestAddressSpace<M = H::Memory>,
{
    let table = chain.table(addr, len)?;
    for index in 0..table.entries() {
        let descriptor: packed::Descriptor = transmute!(table.entry(index)?);
        let flags = DescriptorFlags::from_bits_retain(descriptor.flags.get());
        if flags.contains(DescriptorFlags::INDIRECT) {
            return Err(Rule::IndirectNested);
        }
        chain.add(
            descriptor.addr.get(),
            descriptor.len.get(),
            flags.contains(DescriptorFlags::WRITE),
        )?;
    }
    Ok(())
}
