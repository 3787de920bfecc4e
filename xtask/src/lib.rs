//! The README of the workspace, so that its examples are tested.
#![doc = include_str!("../../README.md")]
