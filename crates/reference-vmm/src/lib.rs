#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod acpi;
pub mod boot;
pub mod cli;
pub mod demo;
pub mod devices;
pub mod irq;
#[expect(unsafe_code, reason = "memory slots and the shared pages of a vCPU")]
pub mod kvm;
pub mod machine;
pub mod report;
pub mod vcpu;
