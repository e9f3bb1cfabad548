//! Services: what people want of them, and what that is in this node's kernel.

mod call;
mod view;
