//! Packet logic on plain values, run by the kernel programs and by host tests.
#![no_std]
