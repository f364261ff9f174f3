//! Training: parameters in one piece of memory, batches from a corpus, AdamW, and checkpoints that resume to the byte.

pub mod artifacts;
#[cfg(test)]
mod artifacts_tests;
pub mod batches;
pub mod checkpoint;
mod contrastive;
pub mod corpus;
pub mod dropout;
pub mod host;
pub mod lora;
mod loss;
#[cfg(test)]
mod loss_tests;
pub mod metrics;
pub mod objective;
#[cfg(test)]
mod objective_tests;
pub mod optimizer;
pub mod optimizer_graph;
pub mod parameters;
pub mod resident;
pub mod schedule;
pub mod tensorboard;
pub mod trainer;

#[cfg(test)]
mod families_tests;
#[cfg(test)]
mod host_tests;
