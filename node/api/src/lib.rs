//! Wire types of the local HTTP API, and its client.
