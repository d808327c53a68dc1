//! The stages over a log in memory of which parts do not answer: what they wait for, what they
//! still hear, and what they conclude when they go on.

#[path = "stages/costs.rs"]
mod costs;
#[path = "stages/held.rs"]
mod held;
#[path = "stages/refusals.rs"]
mod refusals;
#[path = "stages/repeats.rs"]
mod repeats;
#[path = "stages/views.rs"]
mod views;
#[path = "stages/waits.rs"]
mod waits;
#[path = "stages/world.rs"]
mod world;
