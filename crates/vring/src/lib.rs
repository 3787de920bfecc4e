//! Virtqueues (virtio 1.3 §2.7, §2.8): the rings through which a guest's driver and a device exchange buffers.
