//! The stages over a log in memory of which parts do not answer: what they wait for, what they still hear, and what they
//! conclude when they go on.

#[path = "stages/held.rs"]
mod held;
#[path = "stages/waits.rs"]
mod waits;
#[path = "stages/world.rs"]
mod world;
