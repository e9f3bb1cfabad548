//! Flow decoding, metric and event schema, drop reason texts.
