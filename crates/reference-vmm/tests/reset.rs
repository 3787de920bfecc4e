//! What becomes of a guest that resets. They need KVM.
#![expect(clippy::unwrap_used, reason = "test code")]

mod kvm;
mod support;

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use kvm::has_kvm;
use support::{kernel, run};

/// Answers each prompt of the guest with the next of `keys`; returns how many prompts there were, the status and the messages.
fn dialogue(keys: &[u8], options: &[&str]) -> Option<(usize, Option<i32>, String)> {
    if !has_kvm() {
        return None;
    }
    let kernel = kernel();
    let mut child: Child = run(&kernel)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut keys = keys.iter();
    let mut prompts = 0;
    let mut byte = [0];
    while output.read(&mut byte).unwrap() == 1 {
        assert_eq!(byte, *b">");
        prompts += 1;
        if let Some(key) = keys.next() {
            input.write_all(&[*key]).unwrap();
        }
    }
    let ended = child.wait_with_output().unwrap();
    let messages = String::from_utf8(ended.stderr).unwrap();
    Some((prompts, ended.status.code(), messages))
}

#[test]
fn a_guest_that_resets_boots_again() {
    let disk = tempfile::NamedTempFile::new().unwrap();
    disk.as_file().set_len(1 << 20).unwrap();
    let disk = disk.path().to_str().unwrap();
    if let Some((prompts, status, messages)) = dialogue(b"xrrp", &["--disk", disk, "--cpus", "2"]) {
        assert_eq!((prompts, status), (4, Some(0)), "{messages}");
        assert_eq!(messages, "");
    }
}

#[test]
fn without_reboots_a_reset_has_a_status_of_its_own() {
    if let Some((prompts, status, messages)) = dialogue(b"r", &["--no-reboot"]) {
        assert_eq!((prompts, status), (1, Some(4)));
        assert_eq!(messages, "reference-vmm: the guest asked for a reset\n");
    }
}

#[test]
fn a_triple_fault_is_not_a_reset() {
    if let Some((prompts, status, messages)) = dialogue(b"rf", &[]) {
        assert_eq!((prompts, status), (2, Some(3)));
        assert!(messages.contains("triple fault on vCPU 0"), "{messages}");
    }
}
