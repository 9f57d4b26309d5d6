//! The function as a whole, over fakes.

mod bars;
mod construction;
mod interrupts;
mod properties;
mod quiet;
mod sleep;
