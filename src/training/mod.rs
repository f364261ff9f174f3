//! Training: parameters in one piece of memory, batches from a corpus, AdamW, and checkpoints that resume to the byte.

pub mod artifacts;
#[cfg(test)]
mod artifacts_tests;
pub mod batches;
pub(crate) mod checkpoint;
mod contrastive;
pub(crate) mod corpus;
pub mod dropout;
pub mod host;
pub(crate) mod lora;
mod loss;
#[cfg(test)]
mod loss_tests;
pub(crate) mod metrics;
pub mod objective;
#[cfg(test)]
mod objective_tests;
pub(crate) mod optimizer;
pub(crate) mod optimizer_graph;
pub(crate) mod parameters;
pub(crate) mod resident;
pub(crate) mod schedule;
pub(crate) mod tensorboard;
pub mod trainer;

#[cfg(test)]
mod families_tests;
#[cfg(test)]
mod host_tests;
