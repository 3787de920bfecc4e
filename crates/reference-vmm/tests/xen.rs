//! Hypercalls of a hostile guest, made in 64-bit mode on a real KVM: each has the answer that Xen gives, and the machine lives on.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod output;

use output::Output;
use reference_vmm::boot::Payload;
use reference_vmm::kvm::KvmError;
use reference_vmm::machine::stop::Stop;
use reference_vmm::machine::{Config, Machine, MachineError, Peripherals, Transport, XenDevices};

/// Where the guest is loaded and entered, and in it the table of its hypercalls; then their arguments.
const ADDRESS: u32 = 0x10_0000;
const TABLE: usize = 0x100;
const ARGUMENTS: usize = 0x4000;

/// Enters 64-bit mode, with the first 16 MiB mapped where they are; names 0x90000 as the page of hypercalls; makes those of the table, of
/// four words each, and writes the low half of each result to the serial port; powers off when a number is negative.
const GUEST: [u8; 206] = [
    0xbf, 0x00, 0x20, 0x08, 0x00, // mov edi, 0x82000
    0xb8, 0x83, 0x00, 0x00, 0x00, // mov eax, 0x83
    0xb9, 0x08, 0x00, 0x00, 0x00, // mov ecx, 8
    0x89, 0x07, 0x83, 0xc7, 0x08, // page: mov [edi], eax; add edi, 8
    0x05, 0x00, 0x00, 0x20, 0x00, 0xe2, 0xf4, // add eax, 0x200000; loop page
    0xc7, 0x05, 0x00, 0x00, 0x08, 0x00, 0x03, 0x10, 0x08, 0x00, // mov [0x80000], 0x81003
    0xc7, 0x05, 0x00, 0x10, 0x08, 0x00, 0x03, 0x20, 0x08, 0x00, // mov [0x81000], 0x82003
    0xb8, 0x00, 0x00, 0x08, 0x00, 0x0f, 0x22, 0xd8, // mov eax, 0x80000; mov cr3, eax
    0xb8, 0x20, 0x00, 0x00, 0x00, 0x0f, 0x22, 0xe0, // mov eax, PAE; mov cr4, eax
    0xb9, 0x80, 0x00, 0x00, 0xc0, // mov ecx, EFER
    0xb8, 0x00, 0x01, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, // mov eax, LME; xor edx, edx; wrmsr
    0xb8, 0x01, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, // mov eax, PG | PE; mov cr0, eax
    0x0f, 0x01, 0x15, 0xc8, 0x00, 0x10, 0x00, // lgdt [descriptor]
    0xea, 0x63, 0x00, 0x10, 0x00, 0x08, 0x00, // jmp 8:long
    0xb9, 0x00, 0x00, 0x00, 0x40, // long: mov ecx, 0x40000000
    0xb8, 0x00, 0x00, 0x09, 0x00, 0x31, 0xd2, 0x0f,
    0x30, // mov eax, 0x90000; xor edx, edx; wrmsr
    0xbb, 0x00, 0x01, 0x10, 0x00, // mov ebx, table
    0x48, 0x8b, 0x03, 0x48, 0x8b, 0x7b, 0x08, // next: mov rax, [rbx]; mov rdi, [rbx+8]
    0x48, 0x8b, 0x73, 0x10, 0x48, 0x8b, 0x53, 0x18, // mov rsi, [rbx+16]; mov rdx, [rbx+24]
    0x48, 0x83, 0xc3, 0x20, 0x48, 0x83, 0xf8, 0x00, // add rbx, 32; cmp rax, 0
    0x7c, 0x21, // jl off
    0xc1, 0xe0, 0x05, 0x05, 0x00, 0x00, 0x09, 0x00, // shl eax, 5; add eax, 0x90000
    0xbc, 0x00, 0x80, 0x09, 0x00, 0xff, 0xd0, // mov esp, 0x98000; call rax
    0xb9, 0x04, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, // mov ecx, 4; mov dx, 0x3f8
    0xee, 0x48, 0xc1, 0xe8, 0x08, 0xe2, 0xf9, // byte: out dx, al; shr rax, 8; loop byte
    0xeb, 0xc6, // jmp next
    0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee,
    0xf4, // off: mov dx, 0x600; mov al, 0x34; out; hlt
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // no segment
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00, // 64-bit code
    0x0f, 0x00, 0xb8, 0x00, 0x10, 0x00, // descriptor: 16 bytes, from `no segment` on
];

/// Hypercalls (`xen.h`).
const MEMORY: u64 = 12;
const VERSION: u64 = 17;
const GRANT_TABLE: u64 = 20;
const VCPU: u64 = 24;
const SCHED: u64 = 29;
const EVENT_CHANNEL: u64 = 32;
const HVM: u64 = 34;

/// Errors (`errno.h`).
const EPERM: i32 = -1;
const ENOENT: i32 = -2;
const EFAULT: i32 = -14;
const EBUSY: i32 = -16;
const EINVAL: i32 = -22;
const ENOSYS: i32 = -38;

const SELF: u64 = 0x7ff0;

/// A guest's hypercalls, with the results that they must have.
#[derive(Default)]
struct Calls {
    table: Vec<[u64; 4]>,
    arguments: Vec<u8>,
    expected: Vec<i32>,
}

impl Calls {
    /// A hypercall with these words.
    fn raw(&mut self, call: u64, words: [u64; 3], expected: i32) {
        let [first, second, third] = words;
        self.table.push([call, first, second, third]);
        self.expected.push(expected);
    }

    /// Where an argument is that consists of `words`.
    fn argument(&mut self, words: &[u64]) -> u64 {
        let at = u64::from(ADDRESS) + (ARGUMENTS + self.arguments.len()) as u64;
        self.arguments
            .extend(words.iter().flat_map(|word| word.to_le_bytes()));
        at
    }

    /// A hypercall with a command and an argument in memory.
    fn call(&mut self, call: u64, command: u64, words: &[u64], expected: i32) {
        let at = self.argument(words);
        self.raw(call, [command, at, 0], expected);
    }

    /// Makes them, if there is a KVM that can be Xen.
    fn run(&self, cpus: u8) {
        let mut image = GUEST.to_vec();
        image.resize(TABLE, 0);
        for word in self.table.iter().flatten().chain(&[u64::MAX]) {
            image.extend(word.to_le_bytes());
        }
        assert!(image.len() <= ARGUMENTS);
        image.resize(ARGUMENTS, 0);
        image.extend(&self.arguments);
        let output = Output::default();
        let machine = Machine::new(Config {
            cpus,
            memory: 16 << 20,
            payload: Payload::Flat {
                image,
                address: ADDRESS,
            },
            peripherals: Peripherals::default(),
            transport: Transport::Pci,
            iommu: None,
            xen: Some(XenDevices::default()),
            serial: Box::new(output.clone()),
            debug_exit: None,
            timed: false,
        });
        let machine = match machine {
            Err(MachineError::Kvm(
                error @ (KvmError::Missing | KvmError::Permission | KvmError::NoXen(_)),
            )) => {
                println!("SKIPPED: {error}");
                return;
            }
            machine => machine.unwrap(),
        };
        let stopped = machine.start().unwrap().wait().unwrap();
        assert_eq!(stopped.reason, Stop::PowerOff);
        let bytes = output.0.lock().unwrap();
        let results = bytes
            .chunks_exact(4)
            .map(|word| i32::from_le_bytes(word.try_into().unwrap()));
        let results: Vec<_> = results.collect();
        for (index, call) in self.table.iter().enumerate() {
            let result = results.get(index);
            assert_eq!(result, Some(&self.expected[index]), "{index}: {call:x?}");
        }
        assert_eq!(results.len(), self.expected.len());
    }
}

/// `xen_add_to_physmap` in words.
fn place(domain: u64, space: u64, index: u64, frame: u64) -> [u64; 3] {
    [domain | space << 32, index, frame]
}

#[test]
fn unknown_operations_and_bad_pointers_are_refused() {
    let mut calls = Calls::default();
    calls.raw(VERSION, [0; 3], 0x4000a);
    calls.raw(VERSION, [99, 0, 0], ENOSYS);
    calls.raw(VERSION, [6, 0xdead_0000_0000, 0], EFAULT);
    calls.raw(VERSION, [6, u64::MAX - 3, 0], EFAULT);
    // The last of the mapped memory, and what is not mapped after it.
    calls.raw(VERSION, [6, (16 << 20) - 4, 0], EFAULT);
    for call in [0, 1, 63, 100] {
        calls.raw(call, [u64::MAX; 3], ENOSYS);
    }
    for call in [MEMORY, HVM, EVENT_CHANNEL] {
        calls.raw(
            call,
            [9999, 0, 0],
            if call == EVENT_CHANNEL {
                EINVAL
            } else {
                ENOSYS
            },
        );
    }
    calls.raw(HVM, [1, u64::MAX, 0], EFAULT);
    calls.call(HVM, 1, &[SELF | 99 << 32, 0], EINVAL);
    calls.call(HVM, 1, &[5, 0], EPERM);
    calls.call(HVM, 0, &[SELF | 1 << 32, 0x1000], EPERM);
    calls.call(HVM, 23, &[3 << 32], EINVAL);
    calls.call(HVM, 23, &[9 | 0x40 << 32], ENOENT);
    calls.call(HVM, 23, &[0x40 << 32], 0);
    calls.call(SCHED, 2, &[77], EINVAL);
    calls.raw(VCPU, [10, u64::MAX, 0], ENOENT);
    calls.raw(VCPU, [5, 0, u64::MAX], EFAULT);
    calls.run(1);
}

#[test]
fn pages_are_shown_where_nothing_else_is() {
    let mut calls = Calls::default();
    calls.call(MEMORY, 7, &place(SELF, 9, 0, 0x300), EINVAL);
    calls.call(MEMORY, 7, &place(7, 0, 0, 0x300), EPERM);
    calls.call(MEMORY, 7, &place(SELF, 0, 0, 0x1000), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 0, 0, u64::MAX), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 0, 0, 0x300), 0);
    calls.call(MEMORY, 7, &place(SELF, 0, 0, 0x300), 0);
    calls.call(MEMORY, 7, &place(SELF, 0, 0, 0x301), EBUSY);
    // The grant table: in RAM, beyond its limit, nowhere, and where there is room.
    calls.call(MEMORY, 7, &place(SELF, 1, 0, 0x301), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, 64, 0xf_0000), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, u64::MAX, 0xf_0000), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, 0, u64::MAX), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, 0, u64::MAX >> 12), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, 0, 0xf_0000), 0);
    calls.call(MEMORY, 7, &place(SELF, 1, 1, 0xf_0000), EINVAL);
    calls.call(MEMORY, 7, &place(SELF, 1, 0, 0xf_0001), 0);
    calls.call(MEMORY, 15, &[SELF, 0xf_0000], ENOENT);
    calls.call(MEMORY, 15, &[SELF, 0xf_0001], 0);
    calls.call(MEMORY, 15, &[SELF, u64::MAX], ENOENT);
    // The operations of the table: with a negative count, with arguments that are not there, and in order.
    let query = calls.argument(&[SELF, 0]);
    calls.raw(GRANT_TABLE, [6, query, u64::from(u32::MAX)], EINVAL);
    calls.raw(GRANT_TABLE, [0, u64::MAX - 7, 4], EFAULT);
    calls.raw(GRANT_TABLE, [77, query, 1], ENOSYS);
    calls.raw(GRANT_TABLE, [6, query, 1], 0);
    // A vCPU's info: across the end of a page, unaligned, beyond RAM, in order.
    for (frame, offset, expected) in [
        (0x302, 4095, EINVAL),
        (0x302, 4, EINVAL),
        (0x302, u64::from(u32::MAX), EINVAL),
        (0x1000, 0, EINVAL),
        (u64::MAX, 0, EINVAL),
        (0x302, 64, 0),
    ] {
        let at = calls.argument(&[frame, offset]);
        calls.raw(VCPU, [10, 0, at], expected);
    }
    calls.run(1);
}

#[test]
fn event_channels_are_checked_and_vcpus_told() {
    let mut calls = Calls::default();
    calls.call(EVENT_CHANNEL, 7, &[0, 0], EINVAL); // no shared info yet
    calls.call(MEMORY, 7, &place(SELF, 0, 0, 0x300), 0);
    calls.call(HVM, 1, &[SELF | 2 << 32, 0], 0);
    calls.call(EVENT_CHANNEL, 11, &[0x301, 0, 0], ENOSYS);
    calls.call(EVENT_CHANNEL, 7, &[7, 0], ENOENT);
    calls.call(EVENT_CHANNEL, 7, &[1, 0], 0); // port 2, of the other vCPU, which waits to be started
    calls.call(EVENT_CHANNEL, 1, &[1 << 32, 0], 0); // port 3, its timer
    calls.call(EVENT_CHANNEL, 1, &[1 << 32, 0], -17);
    calls.call(HVM, 23, &[1 | 0x40 << 32], 0);
    calls.call(EVENT_CHANNEL, 4, &[2], 0);
    calls.call(EVENT_CHANNEL, 4, &[9999], EINVAL);
    for port in [0, 4, 4096, u64::from(u32::MAX)] {
        calls.call(EVENT_CHANNEL, 3, &[port], EINVAL);
    }
    for port in [2, 3, 1] {
        calls.call(EVENT_CHANNEL, 3, &[port], 0);
        calls.call(EVENT_CHANNEL, 3, &[port], EINVAL);
    }
    calls.run(2);
}
