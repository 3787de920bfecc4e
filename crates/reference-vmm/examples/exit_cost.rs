//! Prints how many cycles a guest's write to a register that user space emulates takes: the exit, the way through KVM to the device
//! and back. The device is a VT-d unit that has nothing to do. `cargo xtask bench iommu` runs it.

#![expect(clippy::unwrap_used, reason = "a measuring program")]

#[path = "../tests/output/mod.rs"]
mod output;

use output::Output;
use reference_vmm::boot::Payload;
use reference_vmm::machine::stop::Stop;
use reference_vmm::machine::{Config, Iommu, Machine, Peripherals, Transport, VtdOptions};

const ADDRESS: u32 = 0x20_0000;
const WRITES: u16 = 10_000;

/// 32-bit code that writes 0 to the unit's invalidation queue tail so many times, prints the cycles as 8 bytes and turns the power off.
fn image() -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, WRITES
    code.extend(u32::from(WRITES).to_le_bytes());
    code.extend([0xbf, 0x88, 0x00, 0xd9, 0xfe]); // mov edi, 0xfed90088
    code.extend([0x31, 0xed]); // xor ebp, ebp
    code.extend([0x0f, 0x31, 0x89, 0xc6, 0x89, 0xd3]); // rdtsc; mov esi, eax; mov ebx, edx
    code.extend([0x89, 0x2f, 0x49, 0x75, 0xfb]); // 1: mov [edi], ebp; dec ecx; jnz 1b
    code.extend([0x0f, 0x31, 0x29, 0xf0, 0x19, 0xda]); // rdtsc; sub eax, esi; sbb edx, ebx
    code.extend([0xa3, 0x00, 0x00, 0x30, 0x00]); // mov [0x300000], eax
    code.extend([0x89, 0x15, 0x04, 0x00, 0x30, 0x00]); // mov [0x300004], edx
    code.extend([0xbe, 0x00, 0x00, 0x30, 0x00]); // mov esi, 0x300000
    code.extend([0xb9, 0x08, 0x00, 0x00, 0x00]); // mov ecx, 8
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xfc, 0xf3, 0x6e]); // mov dx, 0x3f8; cld; rep outsb
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]); // mov dx, 0x600; mov al, 0x34; out dx, al
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code
}

fn main() {
    let output = Output::default();
    let machine = Machine::new(Config {
        cpus: 1,
        memory: 16 << 20,
        payload: Payload::Flat {
            image: image(),
            address: ADDRESS,
        },
        peripherals: Peripherals::default(),
        transport: Transport::Pci,
        iommu: Some(Iommu::Vtd(VtdOptions::default())),
        xen: None,
        serial: Box::new(output.clone()),
        debug_exit: None,
        timed: false,
    });
    let stopped = machine.unwrap().start().unwrap().wait().unwrap();
    assert_eq!(stopped.reason, Stop::PowerOff);
    let bytes = output.0.lock().unwrap();
    let cycles = u64::from_le_bytes(bytes.as_slice().try_into().unwrap());
    println!("{}", cycles / u64::from(WRITES));
}
