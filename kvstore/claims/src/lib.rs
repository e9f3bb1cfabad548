//! Ownership protocols as pure state machines: identities, pod CIDRs, addresses.
