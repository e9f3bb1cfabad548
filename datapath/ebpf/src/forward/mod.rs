//! What is done with a packet once its flow is known or decided.

mod execute;
pub mod reject;
pub mod tunnel;

pub use execute::execute;
