//! Store over etcd.
