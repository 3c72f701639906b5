//! Models: what a folder of config and weights computes.
//!
//! A new family is one file here that reads like its paper, over the layers of [`layer`]; parallelism and
//! devices are the layers' and the backend's business.

pub mod config;
pub mod layer;
pub mod llama;
pub mod rope;

pub use self::config::ModelConfig;
pub use self::llama::Llama;
