//! Model-based virtual passthrough I/O. Nothing is implemented yet.
