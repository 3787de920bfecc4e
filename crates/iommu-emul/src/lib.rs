//! Emulated IOMMUs. Nothing is implemented yet: VT-d, the mapping layer and the sidecore come here.
