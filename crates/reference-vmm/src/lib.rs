//! A VMM on KVM that composes the crates of this workspace.
