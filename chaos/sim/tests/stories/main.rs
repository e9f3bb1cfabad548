//! Stories of a fleet, each with a fixed course.

mod calls;
mod endpoints;
mod health;
mod kernel;
mod lives;
mod losses;
mod nodes;
mod reserve;
mod routing;
mod services;
mod services_outside;
mod snapshot;
mod store;
