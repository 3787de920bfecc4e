//! How machines end, with guests of a few bytes that are entered in 32-bit mode. They need KVM.
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod kvm;
mod output;

use kvm::has_kvm;
use output::Output;
use reference_vmm::boot::Payload;
use reference_vmm::machine::stop::{CrashCause, Stop};
use reference_vmm::machine::{
    Config, Iommu, IommuError, Machine, MachineError, Peripherals, Stopped, Transport, VtdOptions,
};
use reference_vmm::report::Report;
use reference_vmm::vcpu::ExitKind;

const ADDRESS: u32 = 0x20_0000;

/// `mov dx, 0x600; mov al, SLP_TYP 5 | SLP_EN; out dx, al`, then halt for ever.
const POWER_OFF: [u8; 10] = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xf4, 0xeb, 0xfd];
/// `mov al, 0xfe; out 0x64, al`, then halt for ever.
const RESET: [u8; 7] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// `mov eax, 0xffff0; jmp eax`: to where firmware is entered.
const ENTER_FIRMWARE: [u8; 7] = [0xb8, 0xf0, 0xff, 0x0f, 0x00, 0xff, 0xe0];
/// `mov dx, 0x505; mov al, 1; out dx, al`, then halt for ever.
const PANIC: [u8; 10] = [0x66, 0xba, 0x05, 0x05, 0xb0, 0x01, 0xee, 0xf4, 0xeb, 0xfd];
/// `ud2`, without anything to handle the exception.
const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];
/// `jmp` to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];

fn machine(image: &[u8], cpus: u8, transport: Transport, output: &Output) -> Option<Machine> {
    if !has_kvm() {
        return None;
    }
    let machine = Machine::new(config(image, cpus, transport, output));
    Some(machine.unwrap())
}

fn config(image: &[u8], cpus: u8, transport: Transport, output: &Output) -> Config {
    Config {
        cpus,
        memory: 16 << 20,
        payload: Payload::Flat {
            image: image.to_vec(),
            address: ADDRESS,
        },
        peripherals: Peripherals::default(),
        transport,
        iommu: None,
        xen: None,
        serial: Box::new(output.clone()),
        debug_exit: None,
        timed: true,
    }
}

fn run(image: &[u8]) -> Option<Stopped> {
    let machine = machine(image, 1, Transport::Pci, &Output::default())?;
    Some(machine.start().unwrap().wait().unwrap())
}

#[test]
fn power_off_and_reset_are_told_apart() {
    if let Some(stopped) = run(&POWER_OFF) {
        assert_eq!(stopped.reason, Stop::PowerOff);
        stopped.flushed.unwrap();
    }
    for image in [&RESET, &ENTER_FIRMWARE] {
        if let Some(stopped) = run(image) {
            assert_eq!(stopped.reason, Stop::Reset);
        }
    }
}

#[test]
fn an_iommu_needs_devices_that_it_can_tell_apart() {
    for transport in [Transport::Pci, Transport::PciPorts, Transport::Mmio] {
        if machine(&POWER_OFF, 1, transport, &Output::default()).is_none() {
            return;
        }
        let scalable = VtdOptions {
            scalable: true,
            sidecore: true,
            ..VtdOptions::default()
        };
        for iommu in [Iommu::Vtd(scalable), Iommu::Virtio] {
            let machine = Machine::new(Config {
                iommu: Some(iommu),
                ..config(&POWER_OFF, 1, transport, &Output::default())
            });
            match machine {
                Ok(machine) => {
                    assert_ne!(transport, Transport::Mmio);
                    let stopped = machine.start().unwrap().wait().unwrap();
                    assert_eq!(stopped.reason, Stop::PowerOff);
                }
                Err(MachineError::Iommu(IommuError::Transport)) => {
                    assert_eq!(transport, Transport::Mmio);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn triple_fault_names_the_vcpu_and_the_exit() {
    let Some(stopped) = run(&TRIPLE_FAULT) else {
        return;
    };
    let Stop::Crash(crash) = &stopped.reason else {
        panic!("{}", stopped.reason);
    };
    assert_eq!((crash.vcpu, crash.cause), (0, CrashCause::TripleFault));
    assert_eq!(crash.exit, "KVM_EXIT_SHUTDOWN");
    // KVM on AMD has forgotten where it was.
    assert!(crash.rip.is_none_or(|rip| rip == u64::from(ADDRESS)));
}

#[test]
fn panic_names_the_vcpu_and_the_instruction() {
    let Some(stopped) = run(&PANIC) else {
        return;
    };
    let Stop::Crash(crash) = &stopped.reason else {
        panic!("{}", stopped.reason);
    };
    assert_eq!((crash.vcpu, crash.cause), (0, CrashCause::Panic));
    let rip = crash.rip.unwrap();
    assert!((u64::from(ADDRESS)..u64::from(ADDRESS) + 10).contains(&rip));
}

#[test]
fn a_guest_that_never_exits_is_stopped_from_outside() {
    for transport in [Transport::Pci, Transport::PciPorts, Transport::Mmio] {
        let Some(machine) = machine(&SPIN, 2, transport, &Output::default()) else {
            return;
        };
        let switch = machine.stop_switch();
        let running = machine.start().unwrap();
        switch.throw(Stop::Signal(15));
        switch.throw(Stop::PowerOff);
        let stopped = running.finish();
        assert_eq!(stopped.reason, Stop::Signal(15), "the first reason stands");
        assert_eq!(stopped.vcpus.len(), 2);
    }
}

#[test]
fn string_output_arrives_in_order() {
    let text = b"every byte, in order\n";
    let code_size = 22;
    let mut image = vec![0xbe]; // mov esi, the text
    image.extend((ADDRESS + code_size + POWER_OFF.len() as u32 - 4).to_le_bytes());
    image.push(0xb9); // mov ecx, its length
    image.extend((text.len() as u32).to_le_bytes());
    image.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    image.extend([0xfc, 0xf3, 0x6e]); // cld; rep outsb
    image.push(0x90);
    image.extend(POWER_OFF);
    assert_eq!(image.len() as u32, code_size + POWER_OFF.len() as u32 - 4);
    image.extend(text);
    let output = Output::default();
    let Some(machine) = machine(&image, 1, Transport::Pci, &output) else {
        return;
    };
    let stopped = machine.start().unwrap().wait().unwrap();
    assert_eq!(stopped.reason, Stop::PowerOff);
    assert_eq!(*output.0.lock().unwrap(), text);
    let report = Report::new(&stopped);
    let serial = &report.buses[0].regions[0];
    assert_eq!(
        (&*serial.name, serial.writes),
        ("serial port", text.len() as u64)
    );
}

/// KVM makes one exit of many elements of `rep ins`, and of each element of `rep outs` one (Linux, arch/x86/kvm/emulate.c); whatever it
/// hands over goes through the bus at once.
#[test]
fn string_input_takes_few_exits() {
    let length = 64_u32;
    let buffer = (ADDRESS + 0x1000).to_le_bytes();
    let mut image = vec![0xbf]; // mov edi, the buffer
    image.extend(buffer);
    image.push(0xb9); // mov ecx, its length
    image.extend(length.to_le_bytes());
    image.extend([0x66, 0xba, 0x05, 0x05]); // mov dx, 0x505, which reads as 1
    image.extend([0xfc, 0xf3, 0x6c]); // cld; rep insb
    image.push(0xbe); // mov esi, the buffer
    image.extend(buffer);
    image.push(0xb9);
    image.extend(length.to_le_bytes());
    image.extend([0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6e]); // mov dx, 0x3f8; rep outsb
    image.extend(POWER_OFF);
    let output = Output::default();
    let Some(machine) = machine(&image, 1, Transport::Pci, &output) else {
        return;
    };
    let stopped = machine.start().unwrap().wait().unwrap();
    assert_eq!(stopped.reason, Stop::PowerOff);
    assert_eq!(*output.0.lock().unwrap(), vec![1; length as usize]);
    let [vcpu] = &*stopped.vcpus else {
        panic!("one vCPU");
    };
    let reads = vcpu
        .exits
        .iter()
        .find(|(kind, ..)| *kind == ExitKind::PortRead);
    assert!(reads.is_some_and(|(_, count, _)| count < u64::from(length)));
    let report = Report::new(&stopped);
    let port = report.buses[0]
        .regions
        .iter()
        .find(|region| &*region.name == "panic port");
    assert_eq!(port.unwrap().reads, u64::from(length));
}
