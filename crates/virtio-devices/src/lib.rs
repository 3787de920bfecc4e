//! Virtio devices: the status machine, the transports, the device models and their host back-ends.
