//! Scenarios of a fleet with a fixed course.

mod calls;
mod endpoints;
mod health;
mod kernel;
mod nodes;
mod reserve;
mod routing;
mod services;
mod services_external;
mod snapshot;
mod store;
mod store_generations;
mod store_losses;
