//! Xen grant tables, event channels and PV rings. Nothing is implemented yet.
