//! The real model on the real backend, without a network: golden outputs, and the promise that a request's
//! bits do not depend on its company.

mod bits;
mod golden;
mod harness;
