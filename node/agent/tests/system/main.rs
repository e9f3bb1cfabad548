//! The built `warrend` on a real kernel, each test in a network namespace, a pin folder and folders of its own,
//! with the store in memory. Where root or BPF is missing, a test prints `skipped: why`.

mod answers;
mod life;
mod replay;
mod restart;
mod stage;
mod start;
mod underlay;
mod without_etcd;
