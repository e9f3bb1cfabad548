//! Bytes shared by kernel programs and user space.
