//! Node::handle(now, event) -> commands, pure.
