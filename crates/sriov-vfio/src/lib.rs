//! SR-IOV and VFIO. Nothing is implemented yet.
