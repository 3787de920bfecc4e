//! Whether this machine has a KVM.

/// Whether it has one that can be used; says so on a line where not.
pub fn has_kvm() -> bool {
    let usable = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    if !usable {
        println!("SKIPPED: /dev/kvm is not usable here");
    }
    usable
}
